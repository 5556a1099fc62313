"""The probes of a checkpoint of the task ``bigram_icl``, measured again: they are those that training logged."""

from __future__ import annotations

from typing import Any

from ..criterions.bigram_icl import BigramICLCriterionConfig
from ..tasks.task_probes import held_out_batches, parameter_norms, task_probes
from .checkpoints import Run
from .copying import in_context_accuracy


def recomputed_probes(run: Run) -> dict[str, float | None]:
    """Return what a line of the log of probes tells of the weights alone, with ``iter`` the updates of the checkpoint.

    Args:
        run: of :func:`load_run`, on any device; trained with any criterion.

    Returns:
        ``acc_end_test``, the weight probes, and ``norm_<parameter>`` of what is trained at the next update; None is no
        value. They equal those of a training line, and the probes those of a validation line, of the same ``iter``;
        ``acc_end_test`` is ``acc_end`` of a validation of the first set.

    Raises:
        ValueError: the run is of another task.
    """
    if not hasattr(run.task, "fixed_triggers"):
        raise ValueError(f"{run.path} is of the task {run.cfg.task._name!r}: its probes are those of bigram_icl only")
    options = probe_options(run)
    run.model.set_num_updates(run.updates)  # what is frozen for a while is so at the next update
    batches = held_out_batches(run.task, run.cfg.dataset, next(run.model.parameters()).device)
    return {
        "acc_end_test": in_context_accuracy(run.model, batches, options.probe_end_length),
        **task_probes(run.model, run.task, options.probe_position_cutoff),
        **parameter_norms(run.model),
    }


def probe_options(run: Run) -> Any:
    """Return the criterion's options of a run, their defaults where it was trained with another criterion."""
    options = run.cfg.criterion
    return options if options._name == "bigram_icl" else BigramICLCriterionConfig()
