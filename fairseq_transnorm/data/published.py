"""Published counts of a corpus, and whether what was made has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Counts = Mapping[str, tuple[int, int | None]]  # split -> (lines, tokens with </s>), None where none is published


def differences(counts: Counts, symbols: int | None, note: Mapping[str, Any]) -> list[str]:
    """Where the counts of a data folder differ from the published ones, in words.

    Args:
        counts: what is published.
        symbols: in the dictionary of words, where that is known.
        note: of the folder. What its splits have as ``left_out_lines`` and ``left_out_words`` is counted too, and the
            dictionary is compared only where nothing is left out.
    """
    found, whole = [], True
    for split, (lines, tokens) in counts.items():
        facts = note["splits"][split]
        whole = whole and "left_out_lines" not in facts
        got_lines, got_words = (facts[name] + facts.get(f"left_out_{name}", 0) for name in ("lines", "words"))
        if got_lines != lines:
            found.append(f"{split} has {got_lines:,} lines instead of {lines:,}")
        elif tokens is not None and got_words + lines != tokens:
            found.append(f"{split} has {got_words + lines:,} tokens with </s> instead of {tokens:,}")
    if whole and note["kind"] == "words" and symbols not in (None, note["vocab_size"]) and not found:
        found.append(f"the dictionary has {note['vocab_size']:,} symbols instead of {symbols:,}")
    return found


def mark_official(
    note: dict[str, Any], name: str, counts: Counts, symbols: int | None, warn: Callable[[str], None]
) -> None:
    """Set ``official`` in a note; ``warn`` gets a line of text when the counts are not those published of ``name``."""
    found = differences(counts, symbols, note)
    note["official"] = not found
    if found:
        warn(f"warning: this is not the official {name}: {'; '.join(found)}")
