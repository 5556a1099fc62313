"""What models of bigram sequences with triggers have to show for induction heads to grow in them as measured before.

The runs are those of ``scripts/repro_birth.sh``, by name: a variant and the number of its seed, as ``basic-1``. Numbers
of updates are those that the weights have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .criteria import Criterion, compare, of_variant

Array = NDArray[np.float64]
Log = Sequence[Mapping[str, Any]]
RELEASE = 200  # updates, of the matrices that are frozen at first
QUICK = 600  # updates, of the simplified model
LONG = 1000  # updates, of the standard transformer
LEVELS = {"wo1_acc": 0.9, "wk0_64_acc": 0.5, "acc_end_test": 0.9}  # that have to be reached in this order


class Run:
    """What one training logged of its probes.

    Args:
        name: for messages.
        log: lines of a ``probes.jsonl``, in their order.

    Raises:
        LookupError: from the methods, naming run, probe and update that are missing.
    """

    def __init__(self, name: str, log: Log) -> None:
        self.name = name
        self.trained = [line for line in log if line.get("split") in (None, "train")]
        self.validated = [line for line in log if line.get("split") == "valid"]

    def series(self, probe: str) -> tuple[Array, Array]:
        """Return updates and values, without the lines that have none."""
        pairs = [(line["iter"], line[probe]) for line in self.trained if line.get(probe) is not None]
        if not pairs:
            raise LookupError(f"the log of {self.name} has no {probe}")
        updates, values = np.asarray(pairs, dtype=np.float64).T
        return updates, values

    def at(self, update: int, probe: str) -> float:
        """Return the value of the weights after so many updates."""
        updates, values = self.series(probe)
        if update not in updates:
            raise LookupError(
                f"the log of {self.name} has no {probe} after {update} updates, it ends at {updates[-1]:g}"
            )
        return float(values[updates == update][0])

    def crossing(self, probe: str) -> float:
        """Return the first update at which a probe has its level of ``LEVELS``; infinity where it never has."""
        updates, values = self.series(probe)
        reached = updates[values >= LEVELS[probe]]
        return float(reached[0]) if len(reached) else math.inf

    def last(self, probe: str) -> float:
        """Return the value of the last validation, over all its sequences."""
        if not self.validated or self.validated[-1].get(probe) is None:
            raise LookupError(f"the log of {self.name} has no validation with {probe}")
        return float(self.validated[-1][probe])


class Evidence:
    """Logs of runs, looked up by variant.

    Args:
        logs: name of a run -> lines of its log of probes.
    """

    def __init__(self, logs: Mapping[str, Log]) -> None:
        self.runs = {name: Run(name, log) for name, log in logs.items()}

    def seeds(self, variant: str) -> list[Run]:
        """Return the runs of a variant.

        Raises:
            LookupError: there is none.
        """
        return of_variant(self.runs, variant, "a probes.jsonl")


def _each(variant: str, measure: Callable[[Run], float]) -> Callable[[Evidence], list[float]]:
    return lambda e: [measure(run) for run in e.seeds(variant)]


def _at(variant: str, update: int, probe: str) -> Callable[[Evidence], list[float]]:
    return _each(variant, lambda run: run.at(update, probe))


def _between(first: str, second: str) -> Callable[[Evidence], list[float]]:
    """Updates from one crossing of the simplified model to another; not finite where one of them never is."""
    return _each("basic", lambda run: run.crossing(second) - run.crossing(first))


def _kept(run: Run) -> float:
    return run.at(RELEASE, "wo1_acc") - run.at(0, "wo1_acc")


def _late_accuracy(run: Run) -> float:
    # of training batches, which are new ones each time: a few sequences in which a trigger is its own output weigh much
    updates, values = run.series("acc_end")
    return float(values[(updates >= QUICK) & (updates <= LONG)].mean())


def _share_of_decrease(probe: str, update: int) -> Callable[[Run], float]:
    """How much of its decrease, from the first value to the mean of the last five, a loss has made by an update."""

    def measure(run: Run) -> float:
        values = run.series(probe)[1]
        return float((values[0] - run.at(update, probe)) / (values[0] - values[-5:].mean()))

    return measure


CRITERIA: tuple[Criterion[Evidence], ...] = (
    Criterion(6, "an induction head grows", "basic: accuracy after 600", _at("basic", QUICK, "acc_end_test"), 0.85),
    Criterion(6, "the memories are perfect", "basic: W_O2 after 400", _at("basic", 400, "wo1_acc"), 0.95),
    Criterion(6, "", "basic: W_K2 after 400", _at("basic", 400, "wk1_acc"), 1.0),
    Criterion(6, "but that of positions", "basic: W_K1 after 600", _at("basic", QUICK, "wk0_acc"), 0.2),
    Criterion(
        6, "which begins with the first", "basic: W_K1, t < 64, after 600", _at("basic", QUICK, "wk0_64_acc"), 0.5
    ),
    Criterion(
        6,
        "",
        "basic: the same, less all t",
        _each("basic", lambda run: run.at(QUICK, "wk0_64_acc") - run.at(QUICK, "wk0_acc")),
        1e-6,
    ),
    Criterion(
        6,
        "from the output to the input",
        "basic: updates from W_O2 to W_K1",
        _between("wo1_acc", "wk0_64_acc"),
        1,
        QUICK,
    ),
    Criterion(6, "", "basic: updates from W_K1 to accuracy", _between("wk0_64_acc", "acc_end_test"), 1, QUICK),
    Criterion(7, "W_O2 is learnt without keys", "keys frozen: W_O2 after 200", _at("keys", RELEASE, "wo1_acc"), 0.6),
    Criterion(7, "and is not enough", "keys frozen: accuracy after 200", _at("keys", RELEASE, "acc_end_test"), 0, 0.4),
    Criterion(
        7, "nothing is learnt without W_O2", "W_O2 frozen: accuracy", _at("wo2", RELEASE, "acc_end_test"), 0, 0.1
    ),
    Criterion(7, "", "W_O2 frozen: W_K1, t < 64", _at("wo2", RELEASE, "wk0_64_acc"), 0, 0.1),
    Criterion(7, "", "W_O2 frozen: change of its memory", _each("wo2", _kept), 0, 0),
    Criterion(
        8, "two layers copy in context", "two layers: accuracy after 600", _at("full", QUICK, "acc_end_test"), 0.95
    ),
    Criterion(8, "", "two layers: loss_head after 600", _at("full", QUICK, "loss_head"), 0, 0.3),
    Criterion(8, "one layer does not", "one layer: acc_end, 600 to 1000", _each("one_layer", _late_accuracy), 0, 0.6),
    Criterion(
        8,
        "",
        "one layer: least loss_head",
        _each("one_layer", lambda run: float(run.series("loss_head")[1].min())),
        1,
    ),
    Criterion(
        8,
        "global tokens come first",
        "two layers: loss_bigram's decrease by 100, share",
        _each("full", _share_of_decrease("loss_bigram", 100)),
        0.85,
    ),
    Criterion(
        8,
        "",
        "two layers: loss_head's decrease by 100, share",
        _each("full", _share_of_decrease("loss_head", 100)),
        -math.inf,
        0.6,
    ),
    Criterion(
        11,
        "layer 2 looks behind the trigger",
        "basic: score2_acc of validation",
        _each("basic", lambda run: run.last("score2_acc")),
        0.8,
    ),
)


def check(evidence: Evidence) -> list[dict[str, Any]]:
    """Compare the evidence with ``CRITERIA``; a line a demand, as of :func:`compare`.

    Raises:
        LookupError: a run, or a value in its log, is missing.
    """
    return compare(CRITERIA, evidence)
