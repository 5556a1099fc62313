"""The task ``sort_by_freq``: the different symbols of a sequence, the most frequent first."""

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from .definition import BOS, language
from .patterns import earlier, equal, first, greater, placed


def attention(codes: Tensor, real: Tensor) -> Sequence[Tensor]:
    """Return the four patterns: my symbol, my symbol before me, what belongs before me, and what belongs here.

    The first occurrences of symbols come before all others, each by the count of their symbol.
    """
    same, before = equal(codes), earlier(codes)
    rank = same.sum(-1) + first(codes) * codes.shape[1]
    above = (greater(rank) | equal(rank) & before) & real[:, None, :]
    return same, same & before, above, placed(above.sum(-1))


@language(
    filler=True,
    heads={(0, 0): True, (0, 1): True, (1, 0): True, (2, 0): True},
    attention=attention,
)
def sort_by_freq(text: str) -> list[str]:
    """Return the different symbols by count, those with equal counts as they first occur, then the filler.

    >>> "".join(sort_by_freq("dbbda"))
    'dba§§'
    """
    symbols = [symbol for symbol, _ in Counter(text).most_common()]  # keeps the order of equal counts
    return symbols + [BOS] * (len(text) - len(symbols))
