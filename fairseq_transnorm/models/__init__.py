"""fairseq adapters; importing this package registers every model and architecture."""

from .transnormer import lm, mlm
