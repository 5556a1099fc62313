"""Rows of a file that cannot be used: counted by reason and shown, never repaired, and too many of them refused."""

from __future__ import annotations

from collections import Counter


class BadRows:
    """Counts them.

    Attributes:
        name: of what is read, for messages.
        bad: reason -> count.
        first: reason -> where the first one stands.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.bad = Counter[str]()
        self.first: dict[str, str] = {}

    def reject(self, reason: str, example: str) -> None:
        """Count a row that cannot be used; ``example`` says where it stands."""
        self.bad[reason] += 1
        self.first.setdefault(reason, example)

    def good(self) -> int:
        """How many rows can be used."""
        raise NotImplementedError

    def check(self, max_bad: float) -> dict[str, int]:
        """Return the counts by reason.

        Raises:
            ValueError: more than the share ``max_bad`` of all rows is bad.
        """
        if (count := self.bad.total()) > max_bad * (count + self.good()):
            raise ValueError(
                f"{self.describe()}; that is more than --max-bad {max_bad:g} of the rows. Fetch the file again, repair "
                "it, or raise --max-bad to leave them out"
            )
        return dict(sorted(self.bad.items()))

    def describe(self) -> str:
        """How many rows are bad, why and where."""
        reasons = "; ".join(f"{n:,} {reason} (first: {self.first[reason]})" for reason, n in self.bad.most_common())
        share = self.bad.total() / max(1, self.bad.total() + self.good())
        return f"{self.name}: {self.bad.total():,} bad rows ({100 * share:.3g} %): {reasons}"


def what_is_wrong_with(text: str) -> str:
    """Say why a text cannot be written as UTF-8 or read again by line; an empty text when it can."""
    if "\0" in text:
        return "NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return ""
