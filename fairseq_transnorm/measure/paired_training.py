"""Training by fairseq-train's own path beside a plain loop of one process, in turns, after both learned the same."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer
from fairseq_cli.train import train
from torch import nn

FAIRSEQ, PLAIN = "fairseq-train", "plain loop"
# relative difference of losses, and of parameters over how far they have moved: float32 in another order
TOLERANCE = 1e-3
Batch = Mapping[str, Any]  # of a data set's collater


class PlainTraining(Protocol):
    """A plain loop over the same model."""

    @property
    def model(self) -> nn.Module:
        """The model, with the names of parameters that fairseq's has."""
        ...

    def learn(self, batches: Sequence[Batch]) -> float:
        """Make one update from fairseq's batches of it, and return the loss before it, in nats."""
        ...

    def turn(self, updates: int) -> dict[str, float]:
        """Make updates from own data; return ``seconds`` and, of them, ``data_seconds`` of making the data."""
        ...


class FairseqTraining:
    """Training by what fairseq-train runs, an epoch at a time; nothing is saved, validated or logged.

    Args:
        flags: the command line of fairseq-train, but for those of the folder and of what is left out.
        save_dir: an empty folder.
    """

    def __init__(self, flags: Sequence[str], save_dir: str) -> None:
        rest = ["--save-dir", save_dir, "--log-format", "none", "--cpu", "--no-save", "--disable-validation"]
        parsed = options.parse_args_and_arch(options.get_training_parser(), [*flags, *rest])
        self.cfg = convert_namespace_to_omegaconf(parsed)
        utils.set_torch_seed(self.cfg.common.seed)
        self.task: Any = tasks.setup_task(self.cfg.task)
        self.model = self.task.build_model(self.cfg.model)
        self.criterion = self.task.build_criterion(self.cfg.criterion)
        self.trainer = Trainer(self.cfg, self.task, self.model, self.criterion)
        _, self.epoch = checkpoint_utils.load_checkpoint(self.cfg.checkpoint, self.trainer)

    def turn(self) -> dict[str, float]:
        """Train an epoch; return its seconds, those of waiting for data, and those of the wait for the first batch."""
        start = time.perf_counter()
        waiting = self._train()
        seconds = time.perf_counter() - start
        self._end_workers()
        return {"seconds": seconds, "data_seconds": sum(waiting.seconds), "first_batch": waiting.seconds[0]}

    def observed_turn(self) -> tuple[list[list[Batch]], list[float]]:
        """Train an epoch; return the batches of each update, and its loss in nats."""
        sums: list[tuple[float, float]] = []

        def note(_criterion: Any, _inputs: Any, output: tuple[Any, Any, Any]) -> None:
            sums.append((float(output[0].detach()), float(output[1])))

        hook = self.criterion.register_forward_hook(note)
        try:
            waiting = self._train(keep=True)
        finally:
            hook.remove()
        self._end_workers()
        size = int(self.cfg.optimization.update_freq[0])
        starts = range(0, len(waiting.kept), size)
        totals = [map(sum, zip(*sums[i : i + size], strict=True)) for i in starts]
        return [waiting.kept[i : i + size] for i in starts], [loss / count for loss, count in totals]

    def _train(self, keep: bool = False) -> _Waiting:
        found: list[_Waiting] = []
        own = self.epoch.next_epoch_itr

        def watched(*args: Any, **kwargs: Any) -> _Waiting:
            found.append(_Waiting(own(*args, **kwargs), keep))
            return found[0]

        self.epoch.next_epoch_itr = watched
        train(self.cfg, self.trainer, self.task, self.epoch)
        self.epoch = self.trainer.get_train_iterator(self.epoch.next_epoch_idx, load_dataset=False)
        return found[0]

    def _end_workers(self) -> None:
        gc.collect()
        for process in multiprocessing.active_children():
            process.join()


class _Waiting:
    """An iterator of fairseq's that knows how long it was waited for."""

    def __init__(self, batches: Any, keep: bool) -> None:
        self.batches, self.keep = batches, keep
        self.n = batches.n
        self.seconds: list[float] = []
        self.kept: list[Batch] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        while self.batches.has_next():
            start = time.perf_counter()
            batch = next(self.batches)
            self.seconds.append(time.perf_counter() - start)
            if self.keep:
                self.kept.append(batch)
            yield batch


def check_agreement(ours: FairseqTraining, plain: PlainTraining) -> dict[str, float]:
    """Train both on the same batches, an epoch of fairseq's, and return the largest differences.

    Returns:
        ``loss_difference``, over the loss, and ``parameter_difference``, over how far the parameters have moved.

    Raises:
        ValueError: the two do not compute the same.
    """
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    updates, losses = ours.observed_turn()
    expected = [plain.learn(batches) for batches in updates]
    loss = max(abs(own - other) / other for own, other in zip(losses, expected, strict=True))
    values = ours.model.state_dict()
    moved = max(float((value - before[name]).abs().max()) for name, value in plain.model.state_dict().items())
    apart = max(float((value - values[name]).abs().max()) for name, value in plain.model.state_dict().items())
    found = {"loss_difference": loss, "parameter_difference": apart / moved}
    if not max(found.values()) <= TOLERANCE:
        raise ValueError(
            f"after {len(updates)} updates on the same batches the losses differ by {loss:.2g} and the parameters by "
            f"{apart / moved:.2g} of their way, more than {TOLERANCE:g}: the two forms do not compute the same"
        )
    return found


def turns(
    ours: FairseqTraining, plain: PlainTraining, updates: int, sequences: int, repeats: int
) -> list[dict[str, Any]]:
    """Train both forms in turns.

    Args:
        ours, plain: both.
        updates: of a turn, which is an epoch of fairseq's.
        sequences: of a turn.
        repeats: timed turns of each.

    Returns:
        A row a turn and form: ``seconds``, ``sequences_per_second``, ``data_share``, the share of the time in which
        training waited for a batch or made it, ``ratio`` to the plain loop of the same turn, and for fairseq's path
        ``first_batch``, the seconds until its data process had started and made one.
    """
    rows = []
    for turn in range(repeats):
        found = {PLAIN: plain.turn(updates), FAIRSEQ: ours.turn()}
        for form, times in found.items():
            rows.append(
                {"form": form, "turn": turn, "sequences": sequences}
                | {"sequences_per_second": sequences / times["seconds"]}
                | {"seconds": times["seconds"], "data_share": times["data_seconds"] / times["seconds"]}
                | {"first_batch": times.get("first_batch"), "ratio": found[PLAIN]["seconds"] / times["seconds"]}
            )
    return rows


def medians(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for each form: medians over its turns, of the ratio too, whose turns are pairs."""
    lines = []
    for form in (PLAIN, FAIRSEQ):
        mine = [row for row in rows if row["form"] == form]
        values = {key: float(np.median([row[key] for row in mine])) for key in _MEDIANS}
        lines.append({"form": form, "turns": len(mine)} | values)
    return lines


_MEDIANS = ("sequences_per_second", "ratio", "data_share")
