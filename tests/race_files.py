"""Small files of RACE in the official layout."""

import json
from pathlib import Path
from typing import Any

from tests.helpers import sentences

LEVELS = ("middle", "high")
# Split -> level -> questions; two an article, so the last article of an odd number has one.
QUESTIONS = {
    "train": {"middle": 14, "high": 13},
    "dev": {"middle": 9, "high": 4},
    "test": {"middle": 3, "high": 2},
}


def article(texts: list[str], first: int, questions: int) -> dict[str, Any]:
    """One object as a file holds it; every second question has a blank."""
    numbers = range(first, first + questions)
    return {
        "answers": ["ABCD"[number % 4] for number in numbers],
        "options": [[" ".join(texts[(number + k) % len(texts)].split()[:4]) for k in range(4)] for number in numbers],
        "questions": [f"{texts[number % len(texts)]}" + " _ ." * (number % 2) for number in numbers],
        "article": "\n\n".join(texts[:6]),
        "id": "high1.txt",
    }


def write_race(folder: Path) -> Path:
    """Write ``RACE/`` into ``folder`` and return it."""
    for seed, (split, levels) in enumerate(QUESTIONS.items()):
        for level, count in levels.items():
            place = folder / "RACE" / split / level
            place.mkdir(parents=True)
            texts = sentences(40, seed=10 * seed + len(level))
            for number in range(0, count, 2):
                found = article(texts[number:] + texts[:number], number, min(2, count - number))
                (place / f"{number}.txt").write_text(json.dumps(found) + "\n")
    return folder
