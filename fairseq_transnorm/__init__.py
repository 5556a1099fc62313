"""Linear attention, stability and interpretability of transformers, as one fairseq plugin."""

from .interrupts import take_early

take_early()  # before the imports below, which take seconds

import logging  # noqa: E402

# fairseq's text_to_speech sends a note on tensorboardX to the terminal on import, one of its models sets DEBUG for all
_levels = {logger: logger.level for logger in map(logging.getLogger, (None, "fairseq.tasks.text_to_speech"))}
logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)
from . import checkpointing, criterions, models, optim, processes, tasks  # noqa: E402, F401  (importing registers)
from .data import bert_wordpiece  # noqa: E402, F401

for _logger, _level in _levels.items():
    _logger.setLevel(_level)

checkpointing.protect()
processes.mend()

__version__ = "0.1.0"
USER_DIR = __path__[0]  # for --user-dir from Python; a resolved symlink would fail fairseq's one-name-one-path check
