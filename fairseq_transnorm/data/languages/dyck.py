"""The tasks ``dyck1_ptf`` to ``dyck8_ptf``: whether brackets are balanced so far, can become so, or cannot.

There is one neutral symbol, ``a``; from 7 pairs on, of which one is ``ab``, it is ``n``.
"""

from functools import partial

from ..language_samples import DyckSampler
from .definition import language

PAIRS = ("()", "{}", "[]", "<>", "\\/", "`'", "ab", "xy")


def dyck(text: str, count: int) -> list[str]:
    """Return of each prefix whether it is balanced (T), the beginning of a balanced one (P) or of none (F).

    >>> "".join(dyck("a({})", 2)), "".join(dyck("({)}a", 2))
    ('TPPPT', 'PPFFF')
    """
    closer_of = {pair[0]: pair[1] for pair in PAIRS[:count]}
    closers = set(closer_of.values())
    expected: list[str] = []
    labels: list[str] = []
    for symbol in text:
        if symbol in closer_of:
            expected.append(closer_of[symbol])
        elif symbol in closers and (not expected or expected.pop() != symbol):
            return labels + ["F"] * (len(text) - len(labels))
        labels.append("P" if expected else "T")
    return labels


for _count in range(1, len(PAIRS) + 1):
    _pairs = PAIRS[:_count]
    _neutral = "n" if "ab" in _pairs else "a"
    language(
        classes=("P", "T", "F"),
        alphabets={"": "".join(_pairs) + _neutral},
        sampler=partial(DyckSampler, pairs=_pairs, neutrals=_neutral),
        name=f"dyck{_count}_ptf",
    )(partial(dyck, count=_count))
