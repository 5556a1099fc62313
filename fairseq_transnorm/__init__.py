"""Linear attention, stability and interpretability of transformers, as one fairseq plugin."""

import logging

_level = logging.getLogger().level
from . import checkpointing, criterions, models, optim, processes, tasks  # noqa: E402, F401  (importing registers)
from .data import bert_wordpiece  # noqa: E402, F401

logging.getLogger().setLevel(_level)  # one of fairseq's own models sets it to DEBUG on import

checkpointing.protect()
processes.mend()

__version__ = "0.1.0"
USER_DIR = __path__[0]  # for --user-dir from Python; a resolved symlink would fail fairseq's one-name-one-path check
