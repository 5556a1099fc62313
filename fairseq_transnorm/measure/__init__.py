"""Numbers out of models, checkpoints and training logs; drawing them is left to ``plotting``."""
