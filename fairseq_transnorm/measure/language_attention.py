"""Where models of formal languages look: weights and scores of a sequence, and how they compare with a program's.

A program's target is the matrix of the keys (across) that each query (down) attends to. Source: Weiss, Goldberg and
Yahav 2021, arXiv:2106.06981.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .checkpoints import Run, load_run
from .language_runs import TASK, evaluated, read_results
from .own_attention import own_attention_modules, own_weights

Row = dict[str, Any]
LINEAR = "linear"  # weights of linear attention without a denominator are no distribution


class Look(NamedTuple):
    """What a model does with one sequence.

    Attributes:
        inputs: the symbols that it got, of n positions.
        outputs: its answers, as many.
        targets: the right answers.
        axis: names of the positions of the attention: the inputs, after the model's own beginning if it has one.
        attention: ``softmax``, ``linear`` or ``linear_denominator``.
        weights: of each layer, ``H n n`` or with the model's own beginning ``H n+1 n+1``.
        scores: what the softmax is of, likewise; None for linear attention.
        program: layer and head -> the program's matrix, of the positions of the inputs.
    """

    inputs: list[str]
    outputs: list[str]
    targets: list[str]
    axis: list[str]
    attention: str
    weights: list[Float[Tensor, "H T T"]]
    scores: list[Float[Tensor, "H T T"]] | None
    program: dict[tuple[int, int], Bool[Tensor, "n n"]]


def target_masses(run: Run, count: int = 60, min_length: int = 6) -> list[float]:
    """Return for each head of the language's program the weight on the keys that the program attends to.

    That is the mean over the queries of a sequence, then over sequences, between 0 and 1.

    Args:
        run: a model of a language with a program.
        count: sequences, the first ones of the test set.
        min_length: the least length of these, in symbols.
    """
    raise NotImplementedError


def heat_map_diagonal(run: Run, sequence: str = "abcdefgh", layer: int = 1, head: int = 0) -> int:
    """Return for how many queries the key with the largest weight mirrors the query's place in the sequence."""
    raise NotImplementedError
