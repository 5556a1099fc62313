"""Looking up an option's value by name, with an error that helps."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

Value = TypeVar("Value")


def look_up(table: Mapping[str, Value], name: str, what: str) -> Value:
    """Return ``table[name]``.

    Args:
        table: known names and their values.
        name: the name that a user gave.
        what: what kind of thing is named, for the message.

    Raises:
        ValueError: ``name`` is not in ``table``; the message names the nearest and all known names.
    """
    if str(name) in table:
        return table[str(name)]
    nearest = get_close_matches(str(name), table, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ValueError(f"unknown {what} {str(name)!r}; {hint}known: {', '.join(table)}")
