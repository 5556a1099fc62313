"""fairseq adapters; importing this package registers every model and architecture."""

from .birth import basic, full
from .dslm import bert
from .normgrowth import lm as normgrowth_lm
from .rasp import transformer
from .transnormer import lm, mlm
