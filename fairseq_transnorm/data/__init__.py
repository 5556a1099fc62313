"""Corpora and sentence tasks: downloads, cleaning, splits and tokenisers, ending in fairseq's own formats.

Importing this package, or a module of it, needs no extra; what is missing is named when it is first used.
"""
