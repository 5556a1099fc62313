"""What a run writes of its epochs, mixed into a task."""


class EpochLogMixin:
    """Mixed into a task of fairseq's, before it; :mod:`fairseq_transnorm.checkpointing` shows it the trainer."""
