"""Optimisers; importing this package registers them."""

from . import bert_adam, hold_linear, norm_sgd, rasp_exponential
