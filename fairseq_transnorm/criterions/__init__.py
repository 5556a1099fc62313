"""Criterions; importing this package registers them (fairseq's spelling of the folder)."""

from . import bert_sop  # noqa: F401  (importing registers)
