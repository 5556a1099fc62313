"""Means in fairseq's log that are exact: one sum divided by another, both over all batches."""

from fairseq.logging import metrics


def log_ratio(name: str, total: float, count: float) -> None:
    """Log total / count so that fairseq's mean over several of them is the exact ratio of their sums."""
    metrics.log_scalar_sum(f"_{name}_total", total)
    metrics.log_scalar_sum(f"_{name}_count", count)
    # fairseq wants a loss of every update
    if count or name == "loss":
        metrics.log_derived(name, lambda meters: meters[f"_{name}_total"].sum / max(meters[f"_{name}_count"].sum, 1))
