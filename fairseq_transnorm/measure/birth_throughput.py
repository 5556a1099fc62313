"""Sequences a second of training an induction-head model: fairseq-train's own path beside a plain loop, in turns.

Both train ``ihead_basic`` with frozen embeddings and output on bigram sequences with five fixed triggers, learning from
outputs from their second occurrence on. The one is what fairseq-train runs: task, data set in a process of its own,
criterion, trainer. The other is one process with nothing but torch: it draws a batch with the reference sampler, then
computes every product, all weights and all logits by themselves, as the formulas read.
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer
from fairseq_cli.train import train
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.trigger_sequences import ReferenceSampler

FAIRSEQ, PLAIN = "fairseq-train", "plain loop"
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.03, 0.9, 1e-4
SEED = 42  # of the data
# relative difference of losses, and of parameters over how far they have moved: float32 in another order
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        corpus: text, or a ``.json`` of its statistics.
        width: D, of the model.
        length: T, tokens of a sequence.
        batch: sequences of an update.
        held: most sequences that fairseq's path holds at once, ``--batch-size``; ``--update-freq`` makes up the rest.
        updates: of a turn, which is an epoch of fairseq's.
        sampler: of fairseq's path, ``vectorised`` or ``reference``.
    """

    corpus: str
    width: int = 256
    length: int = 256
    batch: int = 512
    held: int = 64
    updates: int = 10
    sampler: str = "vectorised"

    def __post_init__(self) -> None:
        if self.batch % min(self.batch, self.held):
            raise ValueError(
                f"--held {self.held} sequences at once do not divide the --batch {self.batch} of an update"
            )

    @property
    def micro_batches(self) -> int:
        """Of an update."""
        return self.batch // min(self.batch, self.held)

    def flags(self, save_dir: str) -> list[str]:
        """Return the command line of fairseq-train."""
        source = "--bigram-stats" if self.corpus.endswith(".json") else "--corpus"
        values = {
            "--task": "bigram_icl",
            source: self.corpus,
            "--num-triggers": 5,
            "--tokens-per-sample": self.length,
            "--epoch-sequences": self.batch * self.updates,
            "--data-seed": SEED,
            "--sampler": self.sampler,
            "--arch": "ihead_basic",
            "--ihead-dim": self.width,
            "--criterion": "bigram_icl",
            "--optimizer": "sgd",
            "--lr": LEARNING_RATE,
            "--momentum": MOMENTUM,
            "--weight-decay": WEIGHT_DECAY,
            "--lr-scheduler": "fixed",
            "--batch-size": self.batch // self.micro_batches,
            "--update-freq": self.micro_batches,
            "--required-batch-size-multiple": 1,
            "--num-workers": 1,
            "--save-dir": save_dir,
            "--log-format": "none",
        }
        switches = ["--fixed-triggers", "--freeze-embeddings", "--freeze-output", "--loss-head-only"]
        return [
            *(str(part) for pair in values.items() for part in pair),
            *switches,
            *("--cpu", "--no-save", "--disable-validation"),
        ]


class PlainModel(nn.Module):
    """The formulas of ``ihead_basic``, each product by itself; its parameters have the names that they have there."""

    positions: Tensor

    def __init__(self, vocabulary: int, width: int, length: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.register_buffer("positions", torch.zeros(length, width))
        names = ("wk", "wv", "wo")
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in names}) for _ in range(2)
        )
        self.output = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T N"]:
        """Return all logits."""
        x = self.embed_tokens(tokens) + self.positions[: tokens.shape[1]]
        later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            scores = x @ layer["wk"](x).transpose(1, 2) / x.shape[-1] ** 0.5
            weights = torch.softmax(scores.masked_fill(later, float("-inf")), dim=-1)
            x = x + layer["wo"](layer["wv"](weights @ x))
        return self.output(x)


class PlainTraining:
    """Training of ``PlainModel`` in one process.

    Args:
        model: an ``ihead_basic`` whose values, and whose choice of what is trained, are copied.
        sampler: of its sequences.
        batch: sequences of an update.
    """

    def __init__(self, model: nn.Module, sampler: ReferenceSampler, batch: int) -> None:
        values: Any = model.state_dict()
        length, width = values["positions"].shape
        self.model = PlainModel(len(values["embed_tokens.weight"]), width, length)
        self.model.load_state_dict(values)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained)
        own = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(own, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.sampler, self.rngs = sampler, [np.random.default_rng([SEED, 0])] * batch

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, next tokens and counters of a batch, ``B T`` each."""
        tokens, counters, _ = map(torch.from_numpy, self.sampler.sequences(self.rngs))
        return tokens[:, :-1], tokens[:, 1:], counters

    def update(self, tokens: Tensor, targets: Tensor, counters: Tensor) -> float:
        """Make one update and return the loss before it, in nats."""
        known = counters >= 2
        loss = F.cross_entropy(self.model(tokens)[known], targets[known])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def turn(self, updates: int) -> dict[str, float]:
        """Train, and return the seconds that it took and those of drawing the data."""
        start, drawing = time.perf_counter(), 0.0
        for _ in range(updates):
            before = time.perf_counter()
            batch = self.draw()
            drawing += time.perf_counter() - before
            self.update(*batch)
        return {"seconds": time.perf_counter() - start, "data_seconds": drawing}


class FairseqTraining:
    """Training by what fairseq-train runs, an epoch at a time; nothing is saved, validated or logged.

    Args:
        setting: of the training.
        save_dir: an empty folder.
    """

    def __init__(self, setting: Setting, save_dir: str) -> None:
        parser = options.get_training_parser()
        self.micro_batches = setting.micro_batches
        self.cfg = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, setting.flags(save_dir)))
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

    def observed_turn(self) -> tuple[list[list[Tensor]], list[float]]:
        """Train an epoch; return tokens, next tokens and counters of its updates, and the loss of each, in nats."""
        sums: list[tuple[float, float]] = []

        def note(_criterion: Any, _inputs: Any, output: tuple[Tensor, Any, Any]) -> None:
            sums.append((float(output[0].detach()), float(output[1])))

        hook = self.criterion.register_forward_hook(note)
        try:
            waiting = self._train(keep=True)
        finally:
            hook.remove()
        self._end_workers()
        parts = [(b["net_input"]["src_tokens"], b["target"], b["counters"]) for b in waiting.kept]
        starts = range(0, len(parts), self.micro_batches)
        updates = [list(map(torch.cat, zip(*parts[i : i + self.micro_batches], strict=True))) for i in starts]
        totals = [map(sum, zip(*sums[i : i + self.micro_batches], strict=True)) for i in starts]
        return updates, [loss / size for loss, size in totals]

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
        self.kept: list[Mapping[str, Any]] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        while self.batches.has_next():
            start = time.perf_counter()
            batch = next(self.batches)
            self.seconds.append(time.perf_counter() - start)
            if self.keep:
                self.kept.append(batch)
            yield batch


@contextmanager
def both_trainings(setting: Setting) -> Iterator[tuple[FairseqTraining, PlainTraining]]:
    """Yield the two trainings, from the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        ours = FairseqTraining(setting, folder)
        sampler = ReferenceSampler(ours.task.statistics, ours.task.settings("train"))
        yield ours, PlainTraining(ours.model, sampler, setting.batch)


def check_agreement(ours: FairseqTraining, plain: PlainTraining) -> dict[str, float]:
    """Train both on the same batches, an epoch of fairseq's, and return the largest differences.

    Returns:
        ``loss_difference``, over the loss, and ``parameter_difference``, over how far the parameters have moved.

    Raises:
        ValueError: the two do not compute the same.
    """
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    batches, losses = ours.observed_turn()
    expected = [plain.update(*batch) for batch in batches]
    loss = max(abs(own - other) / other for own, other in zip(losses, expected, strict=True))
    values = ours.model.state_dict()
    moved = max(float((value - before[name]).abs().max()) for name, value in plain.model.state_dict().items())
    apart = max(float((value - values[name]).abs().max()) for name, value in plain.model.state_dict().items())
    found = {"loss_difference": loss, "parameter_difference": apart / moved}
    if not max(found.values()) <= TOLERANCE:
        raise ValueError(
            f"after {len(batches)} updates on the same batches the losses differ by {loss:.2g} and the parameters by "
            f"{apart / moved:.2g} of their way, more than {TOLERANCE:g}: the two forms do not compute the same"
        )
    return found


def throughput_rows(setting: Setting, repeats: int) -> list[dict[str, Any]]:
    """Train both forms in turns, after one turn on the same batches in which they must agree.

    Args:
        setting: of both.
        repeats: timed turns of each.

    Returns:
        A row a turn and form: ``seconds``, ``sequences_per_second``, ``data_share``, the share of the time in which
        training waited for a batch or drew it, ``ratio`` to the plain loop of the same turn, and for fairseq's path
        ``first_batch``, the seconds until the data process had started and made one.
    """
    rows = []
    with both_trainings(setting) as (ours, plain):
        agreement = check_agreement(ours, plain)
        for turn in range(repeats):
            found = {PLAIN: plain.turn(setting.updates), FAIRSEQ: ours.turn()}
            for form, times in found.items():
                rows.append(
                    {"form": form, "turn": turn, "sequences": setting.batch * setting.updates}
                    | {"sequences_per_second": setting.batch * setting.updates / times["seconds"]}
                    | {"seconds": times["seconds"], "data_share": times["data_seconds"] / times["seconds"]}
                    | {"first_batch": times.get("first_batch"), "ratio": found[PLAIN]["seconds"] / times["seconds"]}
                    | agreement
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
