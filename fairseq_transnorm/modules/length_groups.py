"""Sequences of a batch in groups of about one length, so that little is computed for padding.

Where lengths are uniform, half of the tokens of a batch are padding, and two thirds of the pairs of tokens have some.
Sorted by length and cut into a few groups, each padded to its own longest, the rows of all groups stand below each
other in one matrix: what maps tokens one by one sees that, attention sees the groups, ``b m D`` each. A few rows more,
which mean nothing, round their number up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

GROUPS = 6  # more have less padding, but each of their products is smaller
# on a CPU the library behind ``linear`` prepares itself for each new number of rows, for longer than a product takes
ROWS = 256


@dataclass(frozen=True)
class LengthGroups:
    """How a batch ``B n`` is grouped.

    Attributes:
        order: sequences from the longest to the shortest, ``B``.
        places: where the rows stand in the flat batch, ``R``.
        shapes: sequences and positions ``(b, m)`` of each group.
        paddings: where padding is in each group, ``b m``; None where it has none.
        batch: ``(B, n)``.
        used: rows of the groups, the sum of ``b m``; the others, up to R, are behind them.
    """

    order: Int[Tensor, " B"]
    places: Int[Tensor, " R"]
    shapes: Sequence[tuple[int, int]]
    paddings: Sequence[Bool[Tensor, "_ _"] | None]
    batch: tuple[int, int]
    used: int

    @classmethod
    def of(cls, padding: Bool[Tensor, "B n"], most: int = GROUPS) -> LengthGroups:
        """Make at most ``most`` groups of as many sequences, from where padding is: behind each sequence."""
        size, width = padding.shape
        lengths = width - padding.sum(1)
        order = lengths.argsort(descending=True)
        longest = lengths[order].tolist()
        starts = [0]
        for start in (size * i // most for i in range(1, most)):
            if longest[start] < longest[starts[-1]]:
                starts.append(start)
        shapes, places, paddings = [], [], []
        columns = torch.arange(width, device=padding.device)
        for start, end in pairwise([*starts, size]):
            inside, long = order[start:end], longest[start]
            shapes.append((end - start, long))
            places.append((inside[:, None] * width + columns[:long]).flatten())
            paddings.append(padding[inside, :long] if longest[end - 1] < long else None)
        used = sum(map(len, places))
        places.append(order.new_zeros(-used % ROWS))
        return cls(order, torch.cat(places), shapes, paddings, (size, width), used)

    def rows(self, x: Tensor) -> Tensor:
        """Return the rows ``R ..`` of ``B n ..``."""
        return x.flatten(0, 1)[self.places]

    def parts(self, rows: Float[Tensor, "R D"]) -> Sequence[Float[Tensor, "_ _ D"]]:
        """Return the groups."""
        pieces = rows[: self.used].split([size * long for size, long in self.shapes])
        return [piece.view(*shape, rows.shape[-1]) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def joined(self, parts: Sequence[Float[Tensor, "_ _ D"]]) -> Float[Tensor, "R D"]:
        """Put the groups below each other; rows behind them are 0."""
        rows = [part.flatten(0, 1) for part in parts]
        return torch.cat([*rows, rows[0].new_zeros(len(self.places) - self.used, rows[0].shape[-1])])

    def batched(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "B n D"]:
        """Return the rows in the batch's own order, 0 where no group reaches."""
        size, width = self.batch
        return (
            rows.new_zeros(size * width, rows.shape[-1])
            .index_copy(0, self.places[: self.used], rows[: self.used])
            .view(size, width, -1)
        )

    def batched_maps(self, maps: Sequence[Float[Tensor, "_ H _ _"]], fill: float) -> Float[Tensor, "B H n n"]:
        """Return what each group has for pairs of positions in the batch's own order, ``fill`` where none reaches."""
        width = self.batch[1]
        padded = [F.pad(x, (0, width - x.shape[-1], 0, width - x.shape[-2]), value=fill) for x in maps]
        return torch.cat(padded)[self.order.argsort()]
