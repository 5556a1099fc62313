"""A dictionary of fairseq's that holds nothing but the symbols given."""

from __future__ import annotations

from collections.abc import Iterable

from fairseq.data import Dictionary


class SymbolDictionary(Dictionary):
    """A dictionary without special symbols: the numbers are the places of the symbols.

    Args:
        symbols: in their order.
        counts: how often each occurs.
        padding: whether the number after the last symbol stands for padding; it is no symbol and has no row in a table.
    """

    def __init__(self, symbols: Iterable[str], counts: Iterable[int] | None = None, padding: bool = False) -> None:
        super().__init__(add_special_symbols=False)
        self.nspecial = 0
        self.bos_index = self.pad_index = self.eos_index = self.unk_index = None
        symbols = list(symbols)
        for symbol, count in zip(symbols, [1] * len(symbols) if counts is None else counts, strict=True):
            self.add_symbol(symbol, count)
        if padding:
            self.pad_index = len(self)
