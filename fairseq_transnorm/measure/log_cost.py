"""What the log of norm growth costs: training steps with and without it, taking turns in one process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import BaseFairseqModel
from fairseq.tasks import FairseqTask
from omegaconf import OmegaConf

from ..tasks.growth_log import GrowthLogConfig, GrowthLogMixin
from .efficiency import TrainingStep, build_model, median_times

LEAST_TURNS = 3


class _Task(GrowthLogMixin, FairseqTask):
    """Nothing but the log."""


class _LoggedStep(TrainingStep):
    """A step whose update goes through a task, or past it."""

    task: FairseqTask | None = None
    updates = 0
    seconds = 0.0  # in the log itself

    def update(self) -> None:
        if self.task is None:
            self.optimizer.step()
            return
        start = time.perf_counter()
        # in fairseq-train torch's optimiser is inside one of fairseq's
        optimizer = SimpleNamespace(step=self._step, get_lr=lambda: self.optimizer.param_groups[0]["lr"])
        self.task.optimizer_step(optimizer, model=self.model, update_num=self.updates)
        self.seconds += time.perf_counter() - start
        self.updates += 1

    def _step(self) -> None:
        start = time.perf_counter()
        self.optimizer.step()
        self.seconds -= time.perf_counter() - start


def logging_task(model: BaseFairseqModel, folder: Path, interval: int, scope: str, detail: bool) -> FairseqTask:
    """Return a task that logs the updates of a model into a folder, as if fairseq-train had begun.

    Args:
        model: what is trained.
        folder: for the file; made here.
        interval: updates between two records.
        scope: of the parameters.
        detail: whether records also have every layer and every parameter.
    """
    folder.mkdir()
    options = GrowthLogConfig(norm_log_interval=interval, norm_log_layers=detail, norm_log_tensors=detail)
    task = _Task(OmegaConf.structured(options))
    task.cfg.norm_scope = scope
    cfg = OmegaConf.structured(FairseqConfig())
    cfg.checkpoint.save_dir, cfg.checkpoint.no_save = str(folder), True
    task.begin_training(
        SimpleNamespace(
            cfg=cfg,
            get_model=lambda: model,
            get_lr=lambda: 0.0,
            get_num_updates=lambda: 0,
            is_data_parallel_master=True,
        )
    )
    return task


def cost_rows(
    name: str, cases: Sequence[tuple[int, bool]], steps: int, scope: str, sentences: int, length: int, **size: Any
) -> list[dict[str, Any]]:
    """Time blocks of as many steps as the interval, with one record and without, in turn.

    Args:
        name: architecture.
        cases: updates between two records, and whether these also have every layer and every parameter.
        steps: timed with and without the log in each case; but no fewer than three blocks.
        scope: of the parameters.
        sentences, length: of the batch, tokens per sentence.
        size: of the model, as in ``efficiency.build_model``.

    Returns:
        Rows with ``interval``, ``detail``, ``parameters`` of the scope, ``plain`` and ``logged``, the median seconds of
        a step, and ``log``, the mean seconds in the log itself, which other work of the machine disturbs less.
    """
    model = build_model(name, length, **size)
    step = _LoggedStep(model, length, sentences * length)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for interval, detail in cases:
            step.updates, step.seconds = 0, 0.0
            task: Any = logging_task(model, Path(folder, f"{interval}-{detail}"), interval, scope, detail)
            blocks = {"plain": _block(step, None, interval), "logged": _block(step, task, interval)}
            seconds = median_times(blocks, max(LEAST_TURNS, steps // interval))
            count = sum(p.numel() for p in task._recorder.parameters.values())
            rows.append(
                {"interval": interval, "detail": detail, "parameters": count}
                | {form: value / interval for form, value in seconds.items()}
                | {"log": step.seconds / step.updates}
            )
    return rows


def _block(step: _LoggedStep, task: FairseqTask | None, count: int) -> Callable[[], None]:
    def run() -> None:
        step.task = task
        for _ in range(count):
            step()

    return run
