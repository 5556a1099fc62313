"""Demands on the numbers of a reproduction: what is measured of its evidence, and where it has to lie."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

E = TypeVar("E")
R = TypeVar("R")


class Criterion(NamedTuple, Generic[E]):
    """A number that the evidence gives, one for each seed or one in all, and where it has to lie; ends are allowed."""

    number: int
    phenomenon: str
    quantity: str
    measure: Callable[[E], float | Sequence[float]]
    low: float
    high: float = math.inf


def compare(criteria: Iterable[Criterion[E]], evidence: E) -> list[dict[str, Any]]:
    """Compare evidence with criteria; a line a demand, with ``ok`` yes or no.

    ``measured`` is the value that is nearest to a bound, or furthest beyond it; where there are several, ``seeds``
    tells all of them.
    """
    lines = []
    for criterion in criteria:
        value = criterion.measure(evidence)
        values = [value] if isinstance(value, float) else list(value)
        ok = all(criterion.low <= value <= criterion.high for value in values)
        line = {
            "number": criterion.number,
            "phenomenon": criterion.phenomenon,
            "quantity": criterion.quantity,
            "measured": min(values, key=lambda value, of=criterion: _room(value, of)),  # type: ignore[misc]
            "least": criterion.low,
            "most": criterion.high,
            "ok": "yes" if ok else "NO",
        }
        lines.append(line | ({"seeds": " ".join(f"{value:.3g}" for value in values)} if len(values) > 1 else {}))
    return lines


def of_variant(runs: Mapping[str, R], variant: str, what: str) -> list[R]:
    """Return the runs of a variant, which are named after it and the number of their seed, as ``basic-1``.

    Raises:
        LookupError: there is none; ``what`` says in the message which file of runs was looked for.
    """
    names = [name for name in runs if re.fullmatch(rf"{re.escape(variant)}-\d+", name)]
    if not names:
        raise LookupError(f"there is no run {variant}-1 with {what}, only {', '.join(runs) or 'none'}")
    return [runs[name] for name in sorted(names)]


def _room(value: float, criterion: Criterion[Any]) -> float:
    """How far a value is from the nearer bound; negative beyond it, and least for one that is no number."""
    return -math.inf if math.isnan(value) else min(value - criterion.low, criterion.high - value)
