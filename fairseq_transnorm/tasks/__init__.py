"""Tasks; importing this package registers them."""

from . import bert_sop_lm  # noqa: F401  (importing registers)
