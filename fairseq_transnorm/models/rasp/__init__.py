"""Transformers on formal languages (RASP)."""
