"""The task ``hist2``, the double histogram: how many symbols occur as often as that of each position."""

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from .definition import language
from .hist import COUNTS, MOST
from .patterns import earlier, equal, first


def attention(codes: Tensor, real: Tensor) -> Sequence[Tensor]:
    """Return the three patterns: my symbol, my symbol before me, and the first of each symbol that is as frequent."""
    same = equal(codes)
    return same, same & earlier(codes), equal(same.sum(-1)) & first(codes)[:, None, :]


@language(classes=COUNTS, heads={(0, 0): True, (0, 1): True, (1, 0): True}, attention=attention)
def hist2(text: str) -> list[str]:
    """Return how many different symbols occur as often as that of the position, 10 for more.

    Here ``d`` and ``b`` both occur twice, and ``a`` is the only one that occurs once.

    >>> hist2("dbbda")
    ['2', '2', '2', '2', '1']
    """
    counts = Counter(text)
    symbols = Counter(counts.values())
    return [COUNTS[min(MOST, symbols[counts[symbol]])] for symbol in text]
