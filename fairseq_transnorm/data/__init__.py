"""Corpora: downloads, cleaning, splits and tokenisers, each ending in the real ``fairseq-preprocess``.

Importing this package, or a module of it, needs no extra; what is missing is named when it is first used.
"""
