"""The task ``hist``: how often the symbol of each position occurs."""

from collections import Counter

from .definition import language

MOST = 10  # larger counts become this one
COUNTS = tuple(map(str, range(MOST + 1)))


@language(classes=COUNTS)
def hist(text: str) -> list[str]:
    """Return how often each symbol occurs in the sequence, 10 for more.

    >>> hist("dbbda")
    ['2', '2', '2', '2', '1']
    """
    counts = {symbol: COUNTS[min(MOST, count)] for symbol, count in Counter(text).items()}
    return [counts[symbol] for symbol in text]
