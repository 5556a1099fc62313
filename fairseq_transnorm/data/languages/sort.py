"""The task ``sort``: the symbols in the order of their code points."""

from collections.abc import Sequence

from torch import Tensor

from .definition import language
from .patterns import earlier, equal, less, placed


def attention(codes: Tensor, real: Tensor) -> Sequence[Tensor]:
    """Return the two patterns: the symbols that belong before mine, and the symbol whose place is mine."""
    smaller = less(codes) | equal(codes) & earlier(codes)
    return smaller, placed(smaller.sum(-1))


@language(heads={(0, 0): True, (1, 0): False}, attention=attention)
def sort(text: str) -> list[str]:
    """Return the symbols by code point: capitals come before small letters, digits before both.

    >>> "".join(sort("dbBda"))
    'Babdd'
    """
    return sorted(text)
