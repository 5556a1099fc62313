"""Checkpoints that know their dictionary: the same symbols in another order fit the model and mean something else."""

from __future__ import annotations

import hashlib
from typing import Any

from fairseq.data import Dictionary

DICTIONARY = "dictionary_sha256"  # in the state of a task


def symbols_sha256(dictionary: Dictionary) -> str:
    """Return the SHA-256 of all symbols in their order."""
    return hashlib.sha256("\n".join(dictionary.symbols).encode()).hexdigest()


class KeptDictionary:
    """Mixed into a task of fairseq's, before it: its state, which checkpoints have, tells the dictionary.

    fairseq compares nothing when it goes on from a checkpoint or fine-tunes one; :mod:`fairseq_transnorm.checkpointing`
    calls :meth:`check_state` then.
    """

    source_dictionary: Dictionary
    cfg: Any
    data_remedy = "give the data folder of its training, or one made --like it"  # after a checkpoint's mismatch

    @staticmethod
    def data_of(cfg: Any) -> str:
        """Return what a task with this config reads, for messages."""
        return str(cfg.data)

    @staticmethod
    def set_data(cfg: Any, data: str) -> None:
        """Let a task with this config read something else."""
        cfg.data = data

    def state_dict(self) -> dict[str, Any]:
        """Return fairseq's state of the task and the hash of the dictionary."""
        return {**super().state_dict(), DICTIONARY: symbols_sha256(self.source_dictionary)}  # type: ignore[misc]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint; errors as of :meth:`check_state`."""
        self.check_state(state_dict)
        super().load_state_dict(state_dict)  # type: ignore[misc]

    def check_state(self, state_dict: dict[str, Any], checkpoint: str = "the checkpoint") -> None:
        """Raise ValueError when a checkpoint was trained with another dictionary; older ones do not tell theirs."""
        if state_dict.get(DICTIONARY, own := symbols_sha256(self.source_dictionary)) != own:
            raise ValueError(
                f"dictionary mismatch: {checkpoint} was trained with a dictionary of other symbols, or in another "
                f"order, than that in {self.data_of(self.cfg)}; {self.data_remedy}"
            )
