"""Linear attention, stability and interpretability of transformers, as one fairseq plugin."""

from . import checkpointing, models  # noqa: F401  (importing registers)

checkpointing.protect()

__version__ = "0.1.0"
USER_DIR = __path__[0]  # for --user-dir from Python; a resolved symlink would fail fairseq's one-name-one-path check
