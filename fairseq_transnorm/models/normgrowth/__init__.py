"""Norm growth: the language models whose parameter norm and saturation are followed through training."""
