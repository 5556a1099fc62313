"""The task ``reverse``: the sequence from its end to its beginning."""

from .definition import language


@language()
def reverse(text: str) -> list[str]:
    """Return the symbols in reverse order.

    >>> "".join(reverse("dbbda"))
    'adbbd'
    """
    return list(text[::-1])
