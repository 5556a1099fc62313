"""What small language models have to show for norm growth and saturation to behave as measured before, run by run.

The runs are those of ``scripts/repro_normgrowth.sh``: 4 layers of width 64 on 6,000 sentences of plays, by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .criteria import Criterion, compare
from .fits import SQUARED, fit_law
from .saturated_heads import HARDMAX

Rows = Sequence[Mapping[str, Any]]
Array = NDArray[np.float64]
FUTURE_MODE = 0.2  # positions; a head that is uniform over the future lies as close to the prediction


class Evidence:
    """Tables of the analyses, looked up by run.

    Args:
        trajectory: rows of ``measure.trajectory``.
        scores: rows of ``measure.language_scores``, several of a run.
        heads: rows of ``measure.saturated_heads`` with all sentences of ``length`` positions.

    Raises:
        LookupError: from the methods, naming the table and run that are missing.
    """

    def __init__(self, trajectory: Rows, scores: Rows, heads: Rows, length: int) -> None:
        self.trajectory, self._scores, self._heads, self.length = trajectory, scores, heads, length

    def series(self, run: str, column: str, scope: str = "layers") -> tuple[Array, Array]:
        """Return updates and a column of the trajectory of a whole scope, without the rows where it is None."""
        mine = [r for r in self.trajectory if (r["run"], r["scope"], r["layer"]) == (run, scope, None)]
        pairs = [(r["updates"], r[column]) for r in mine if r[column] is not None]
        if not pairs:
            raise LookupError(f"the trajectories have no {column} of {run}, scope {scope}")
        updates, values = np.asarray(pairs, dtype=np.float64).T
        return updates, values

    def scores(self, run: str) -> list[Mapping[str, Any]]:
        """Return the scores of a run's checkpoints, by updates."""
        mine = [r for r in self._scores if r["model"] == run]
        if not mine:
            raise LookupError(f"the scores have no checkpoint of {run}")
        return sorted(mine, key=lambda r: r["updates"])

    def heads(self, model: str, column: str = "positions_attended") -> Array:
        """Return a column of the heads of a model, in its softmax network with large parameters."""
        heads = [r for r in self._heads if r["model"] == model and r["head"] is not None]
        mine = [r[column] for r in heads if r["network"] != HARDMAX]
        if not mine:
            raise LookupError(f"the attention heads have no model {model}")
        return np.asarray(mine, dtype=np.float64)

    def growth(self, run: str, epochs: int, scope: str = "layers") -> float:
        """Return the norm after some epochs over the first one."""
        updates, norms = self.series(run, "norm", scope)
        return float(norms[updates <= self.scores(run)[epochs]["updates"]][-1] / norms[0])

    def r_squared(self, run: str, law: str) -> float:
        """Return R^2 of a law for the norm of the layers."""
        updates, norms = self.series(run, "norm")
        fit = fit_law(law, updates.tolist(), norms.tolist())
        return math.nan if fit is None or fit.r_squared is None else fit.r_squared


def _least_change(run: str) -> Callable[[Evidence], float]:
    """The least change of the norm between checkpoints, from the second on."""

    def measure(e: Evidence) -> float:
        updates, norms = e.series(run, "norm")
        return float(np.diff(norms[updates > 0]).min())

    return measure


def _identity_error(e: Evidence) -> float:
    """The largest difference between the sides of the identities of a step, over rho^2, in all runs and checkpoints."""
    worst, before = 0.0, dict[Any, float]()
    for r in e.trajectory:  # in the order of updates
        place = r["run"], r["scope"], r["stack"], r["layer"]
        if r["step_norm"]:
            rho, after, step = before[place], r["norm"], r["step_norm"]
            squared = after**2 + rho**2 - 2 * rho * after * r["direction_cosine"]
            alignment = (after * r["direction_cosine"] - rho) / step
            worst = max(worst, abs(squared - step**2) / after**2, abs(alignment - r["alignment"]))
            worst = max(worst, abs(after**2 - rho**2 - 2 * r["product"] - step**2) / after**2)
        before[place] = r["norm"]
    return worst


def _cosine_rise(e: Evidence) -> float:
    cosines = e.series("control", "direction_cosine")[1]
    return float(cosines[-1] - cosines[0])


def _score(run: str, column: str, epoch: int = -1) -> Callable[[Evidence], float]:
    return lambda e: float(e.scores(run)[epoch][column])


def _rise(run: str) -> Callable[[Evidence], float]:
    return lambda e: float(e.scores(run)[-1]["saturation"] - e.scores(run)[0]["saturation"])


def _against_unigram(run: str) -> Callable[[Evidence], float]:
    def measure(e: Evidence) -> float:
        rows = e.scores(run)
        return float(rows[-1]["perplexity_later_words"] / rows[-1]["unigram_perplexity_later_words"])

    return measure


def _best(e: Evidence, run: str) -> float:
    return min(float(row["perplexity_later_words"]) for row in e.scores(run))


def _future_heads(e: Evidence) -> float:
    predicted = (e.length - 1) / 2 + 1 / e.length
    return float((np.abs(e.heads("control-original") - predicted) <= FUTURE_MODE).sum())


def _sqrt_fits(run: str, phenomenon: str) -> list[Criterion[Evidence]]:
    def lead(e: Evidence) -> float:
        return e.r_squared(run, "sqrt t") - e.r_squared(run, "t")

    return [
        Criterion(4, phenomenon, f"{run}, R2 of sqrt t", lambda e: e.r_squared(run, "sqrt t"), 0.98),
        Criterion(4, "", f"{run}, R2 of sqrt t - of t", lead, 0.01),
    ]


CRITERIA: tuple[Criterion[Evidence], ...] = (
    Criterion(2, "the norm of the layers grows", "control, least change", _least_change("control"), 0.0),
    Criterion(2, "", "control, growth in 3 epochs", lambda e: e.growth("control", 3), 1.08),
    Criterion(2, "", "pre_norm, growth in 5 epochs", lambda e: e.growth("pre_norm", 5), 1.03),
    Criterion(3, "the norm of all hides it", "control, all, 3 epochs", lambda e: e.growth("control", 3, "all"), 0, 1),
    *_sqrt_fits("control-small", "sqrt t fits best here"),
    *_sqrt_fits("control-small-lr1e-2", ""),
    Criterion(5, "the squared norm is linear", "control, R2", lambda e: e.r_squared("control", SQUARED), 0.98),
    Criterion(6, "the direction converges", "identities, largest error", _identity_error, 0, 1e-10),
    Criterion(6, "", "control, cosine, last - first", _cosine_rise, 0.0),
    Criterion(
        6, "", "control, largest alignment", lambda e: float(e.series("control", "alignment")[1].max()), -1, 0.15
    ),
    Criterion(7, "training saturates", "control, rise of saturation", _rise("control"), 0.03),
    Criterion(7, "", "pre_norm, rise of saturation", _rise("pre_norm"), 0.03),
    Criterion(
        8, "a larger rate saturates more", "pre_norm-lr1e-2, saturation", _score("pre_norm-lr1e-2", "saturation"), 0.97
    ),
    Criterion(8, "", "pre_norm-lr1e-2, collapse", _score("pre_norm-lr1e-2", "collapse"), -1, 0.6),
    Criterion(9, "full saturation is collapse", "control-lr1e-2, collapse", _score("control-lr1e-2", "collapse"), 0.95),
    Criterion(
        11,
        "the multiplicative mask leaks",
        "best perplexity, mult / causal",
        lambda e: _best(e, "control-mult") / _best(e, "control"),
        0,
        0.5,
    ),
    Criterion(12, "heads of the leak", "control-original, uniform on the future", _future_heads, 3),
    Criterion(12, "", "control-original, heads below 2", lambda e: float((e.heads("control-original") < 2).sum()), 3),
    Criterion(12, "", "control, most positions", lambda e: float(e.heads("control").max()), 1, 2),
    Criterion(
        12, "", "control, weight on the future", lambda e: float(e.heads("control", "forbidden_weight").max()), 0, 0
    ),
    Criterion(15, "post-norm fails at 1e-2", "control-lr1e-2, ppl / unigram", _against_unigram("control-lr1e-2"), 0.9),
    Criterion(15, "", "pre_norm-lr1e-2, ppl / unigram", _against_unigram("pre_norm-lr1e-2"), 0, 0.75),
)


def check(evidence: Evidence) -> list[dict[str, Any]]:
    """Compare the evidence with ``CRITERIA``; a line a demand, as of :func:`compare`.

    Raises:
        LookupError: a run is missing in a table.
    """
    return compare(CRITERIA, evidence)
