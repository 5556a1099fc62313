"""What a language is, how a task registers its languages, and how they are found by name."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..language_samples import Sampler, UniformSampler

BOS = "§"  # also what fills up outputs that have fewer symbols than the input
SYMBOLS = string.ascii_letters + string.digits + string.punctuation + " \t\n\r\v\f"
ALPHABETS = {f"_{size}": SYMBOLS[:size] for size in (10, 26, 52, 100)}
LISTING = "`python preprocessing/languages.py list` shows all"
_PADDING = 0x110000  # comes after every code point

Function = Callable[[str], Sequence[str]]
Attention = Callable[[Tensor, Tensor], Sequence[Tensor]]
Registered = TypeVar("Registered", bound=Function)
_languages: dict[str, Language] = {}


@dataclass(frozen=True, eq=False)
class Language:
    """A task over one alphabet.

    Attributes:
        name: of the language, such as ``sort_26_bos``.
        task: its beginning, such as ``sort``.
        alphabet: its symbols, in the order of their numbers.
        classes: output symbols, in the order of their numbers.
        bos: whether inputs and targets begin with ``BOS``.
        supervised: whether attention is to be trained.
        function: from a sequence without ``BOS`` to its outputs.
        sampler: draws sequences without ``BOS``.
        heads: (layer, head), from 0, of each target matrix, and what its rows have in the column of ``BOS``.
        attention: makes the target matrices; see :func:`language`.
    """

    name: str
    task: str
    alphabet: tuple[str, ...]
    classes: tuple[str, ...]
    bos: bool
    supervised: bool
    function: Function
    sampler: Sampler
    heads: Mapping[tuple[int, int], bool]
    attention: Attention | None

    @property
    def symbols(self) -> tuple[str, ...]:
        """Input symbols in the order of their numbers: the alphabet, and ``BOS`` whether it is used or not."""
        return (*self.alphabet, BOS)

    @property
    def program_heads(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) of each target matrix, also where they are not trained; none where the task has no targets."""
        return tuple(self.heads)

    @property
    def needs(self) -> tuple[int, int]:
        """Layers and heads that a model must have at least for all target matrices; 0, 0 where there are none."""
        layers, heads = zip(*self.heads, strict=True) if self.heads else ((-1,), (-1,))
        return max(layers) + 1, max(heads) + 1

    def longest(self, max_length: int) -> int:
        """Return the most tokens of an input, ``BOS`` included, where sequences are drawn up to ``max_length``."""
        return self.sampler.longest(max_length) + self.bos

    def with_bos(self, text: str) -> str:
        """Return the sequence as the model sees it: with ``BOS`` in front where the language has one."""
        return BOS + text if self.bos and not text.startswith(BOS) else text

    def without_bos(self, text: str) -> str:
        """Return the sequence as the function sees it."""
        return text.removeprefix(BOS) if self.bos else text

    def outputs(self, text: str) -> list[str]:
        """Return the target of each position of ``with_bos(text)``.

        Raises:
            ValueError: the function of the language returns another number of them.
        """
        bare = self.without_bos(text)
        found = list(self.function(bare))
        if len(found) != len(bare):
            raise ValueError(
                f"{self.task} returned {len(found)} outputs for the {len(bare)} symbols of {bare!r}; a task "
                "returns one for each"
            )
        return [BOS, *found] if self.bos else found

    def encode(self, text: str) -> list[int]:
        """Return the numbers of the symbols of ``with_bos(text)``.

        Raises:
            ValueError: the sequence is empty or has symbols that are not in the alphabet.
        """
        bare = self.without_bos(text)
        if not bare:
            raise ValueError(f"an empty sequence for {self.name}; give at least one symbol of its alphabet")
        if unknown := list(dict.fromkeys(symbol for symbol in bare if symbol not in self.alphabet)):
            shown = ", ".join(map(repr, unknown))
            place = "only once, at the front" if self.bos else "only of languages with _bos"
            hint = f" ({BOS} is the begin-of-sequence symbol, {place})" if BOS in unknown else ""
            raise ValueError(
                f"{shown} in {text!r} is not in the alphabet of {self.name}{hint}; use {''.join(self.alphabet)!r}"
            )
        return [self._numbers[symbol] for symbol in self.with_bos(text)]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {symbol: number for number, symbol in enumerate(self.symbols)}

    @cached_property
    def _codes(self) -> Int[Tensor, " N"]:
        return torch.tensor([*map(ord, self.symbols), _PADDING], dtype=torch.int32)

    def attention_targets(self, tokens: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Bool[Tensor, "B M T T"]:
        """Return which keys each query should look at, in the order of ``program_heads``; False at padding.

        Args:
            tokens: numbers of the input symbols, ``len(symbols)`` at padding, which comes last.
            lengths: tokens of each sample.

        Raises:
            ValueError: the task has no targets, or makes another number of matrices than it has heads.
        """
        if self.attention is None:
            raise ValueError(f"{self.task}, the task of {self.name}, has no attention targets")
        B, T = tokens.shape
        start = int(self.bos)
        real = torch.arange(T, device=tokens.device) < lengths[:, None]
        codes = self._codes.to(tokens.device)[tokens[:, start:]]
        made = self.attention(codes, real[:, start:])
        if len(made) != len(self.heads):
            raise ValueError(f"{self.task} made {len(made)} target matrices for its {len(self.heads)} heads")
        targets = torch.zeros(B, len(self.heads), T, T, dtype=torch.bool, device=tokens.device)
        cells = real[:, start:, None] & real[:, None, start:]
        for number, (matrix, column) in enumerate(zip(made, self.heads.values(), strict=True)):
            torch.logical_and(matrix, cells, out=targets[:, number, start:, start:])
            if self.bos:
                targets[:, number, 0, 0] = True
                targets[:, number, 1:, 0] = real[:, 1:] & column
        return targets


def language(
    *,
    classes: Sequence[str] | None = None,
    filler: bool = False,
    alphabets: Mapping[str, str] = ALPHABETS,
    heads: Mapping[tuple[int, int], bool] | None = None,
    attention: Attention | None = None,
    sampler: Callable[[str], Sampler] = UniformSampler,
    name: str | None = None,
) -> Callable[[Registered], Registered]:
    """Register the languages of a task, whose function is decorated.

    The function gets a sequence as a string, without ``BOS``, and returns one output symbol, a string, a position.

    Args:
        classes: the output symbols; by default those of the alphabet.
        filler: ``BOS`` is one of them too, the last.
        alphabets: what follows the name of the task in that of a language -> its symbols.
        heads: (layer, head), from 0, that a program of attention heads for the task uses -> whether queries should
            look at ``BOS`` too, where there is one.
        attention: from ``codes``, ``B T``, and ``real``, ``B T`` Bool, to a Bool ``B T T`` of queries and keys for each
            of the ``heads``. Codes are those of the characters, without ``BOS``; padding, where ``real`` is False, has
            the largest. What is returned for padding does not matter.
        sampler: makes what draws sequences over an alphabet.
        name: of the task; by default that of the function.

    Raises:
        ValueError: a name is taken, an alphabet is none, or only one of ``heads`` and ``attention`` is given.
    """
    if bool(heads) != (attention is not None):
        raise ValueError("language: heads and attention go together; give both, or none")

    def register(function: Registered) -> Registered:
        task = name or function.__name__
        for suffix, alphabet in alphabets.items():
            if not alphabet or BOS in alphabet or len(set(alphabet)) < len(alphabet):
                raise ValueError(
                    f"language {task}{suffix}: the alphabet {alphabet!r} must have symbols, each once, and not {BOS}"
                )
            outputs = tuple(alphabet if classes is None else classes) + ((BOS,) if filler else ())
            for bos in (False, True):
                for supervised in (False, True) if heads else (False,):
                    full = task + suffix + "_bos" * bos + "_with_attns" * supervised
                    if full in _languages:
                        raise ValueError(f"language {full} is registered already; give the task another name")
                    _languages[full] = Language(
                        name=full,
                        task=task,
                        alphabet=tuple(alphabet),
                        classes=outputs + ((BOS,) if bos and not filler else ()),
                        bos=bos,
                        supervised=supervised,
                        function=function,
                        sampler=sampler(alphabet),
                        heads=dict(heads or {}),
                        attention=attention,
                    )
        return function

    return register


def visible(symbol: str) -> str:
    """Return what can be printed for a symbol; only spaces and control characters change.

    >>> [visible(symbol) for symbol in ("a", " ", chr(9))]
    ['a', "' '", '\\\\t']
    """
    return repr(symbol) if symbol == " " else symbol if symbol.isprintable() else repr(symbol)[1:-1]


def names() -> list[str]:
    """Return the names of all languages."""
    return list(_languages)


def every() -> Iterator[Language]:
    """Go through all languages."""
    yield from _languages.values()


def get(name: str) -> Language:
    """Return a language.

    Raises:
        ValueError: there is none of this name; the message has the nearest one, of the same task where the name begins
            with one, and says how to list them.
    """
    if name in _languages:
        return _languages[name]
    bare = name.removesuffix("_with_attns")
    if bare in _languages:
        task = _languages[bare].task
        others = ", ".join(dict.fromkeys(other.task for other in every() if other.supervised))
        raise ValueError(
            f"unknown language {name!r}: {task} has no attention targets, only {others} have; take {bare!r}"
        )
    alike = [other.name for other in every() if name.startswith(f"{other.task}_")]
    nearest = get_close_matches(name, alike or names(), n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ValueError(f"unknown language {name!r}; {hint}{LISTING}")
