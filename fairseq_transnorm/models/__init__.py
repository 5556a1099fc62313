"""fairseq adapters; importing this package registers every model and architecture."""

from .dslm import bert
from .transnormer import lm, mlm
