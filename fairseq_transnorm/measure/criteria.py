"""Demands on the numbers of a reproduction: what is measured of its evidence, and where it has to lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

E = TypeVar("E")


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


def _room(value: float, criterion: Criterion[Any]) -> float:
    """How far a value is from the nearer bound; negative beyond it, and least for one that is no number."""
    return -math.inf if math.isnan(value) else min(value - criterion.low, criterion.high - value)
