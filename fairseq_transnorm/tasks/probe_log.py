"""Probes of the induction head, seen while a model trains: mixed into a task of triggers."""

from typing import Any


class ProbeLogMixin:
    """Mixed into a task of fairseq's, before it."""

    cfg: Any

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, **kwargs: Any
    ) -> Any:
        """Make forward and backward as the task does; the criterion hears the number of the update."""
        if hasattr(criterion, "set_num_updates"):
            criterion.set_num_updates(update_num)
        return super().train_step(sample, model, criterion, optimizer, update_num, **kwargs)  # type: ignore[misc]
