"""Formal languages: functions from a sequence of symbols to one output symbol at each of its positions.

Each module of this folder registers one task with :func:`language`; it needs no other mention anywhere. A task has a
language for each of its alphabets, one with a begin-of-sequence symbol (``_bos``), and, where the task says what
attention heads should look at, one that trains them to do so (``_with_attns``).
"""

from importlib import import_module
from pkgutil import iter_modules

from .definition import BOS, LISTING, Language, every, get, language, names, visible

__all__ = ["BOS", "LISTING", "Language", "every", "get", "language", "names", "visible"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
