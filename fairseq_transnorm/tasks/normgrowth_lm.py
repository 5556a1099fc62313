"""fairseq task ``normgrowth_lm``: language modelling, by default one sentence a sample, with a log of norm growth."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict

import torch
from fairseq import utils
from fairseq.data import data_utils
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import (
    SAMPLE_BREAK_MODE_CHOICES,
    LanguageModelingConfig,
    LanguageModelingTask,
)
from torch import Tensor

from ..data.padded_sentences import PaddedSentences
from .growth_log import GrowthLogConfig, GrowthLogMixin
from .kept_dictionary import KeptDictionary

NAME = "normgrowth_lm"  # in messages
PAD_ID = ChoiceEnum(["own", "first_word"])
SENTENCE_LAYOUT = ChoiceEnum(["fairseq", "original"])


@dataclass
class NormGrowthLMTaskConfig(GrowthLogConfig, LanguageModelingConfig):
    """The options of fairseq's ``language_modeling``, of the log, and the original's layout of sentences."""

    sample_break_mode: SAMPLE_BREAK_MODE_CHOICES = field(
        default="eos", metadata={"help": "eos: one sentence a sample; none and complete: blocks of text"}
    )
    sentence_layout: SENTENCE_LAYOUT = field(  # type: ignore[valid-type]
        default="fairseq",
        metadata={"help": "fairseq, with </s> around a sentence; original, without, in rows of --tokens-per-sample"},
    )
    pad_id: PAD_ID = field(  # type: ignore[valid-type]
        default="own",
        metadata={"help": "what fills the original's rows: own, fairseq's <pad>; first_word, the text's first word"},
    )


@register_task("normgrowth_lm", dataclass=NormGrowthLMTaskConfig)
class NormGrowthLMTask(KeptDictionary, GrowthLogMixin, LanguageModelingTask):
    """As fairseq's ``language_modeling``; any language model of this package or of fairseq can be trained with it.

    A sample is a sentence. "a b c" has the input ``</s> a b c`` and the target ``a b c </s>``: every word and the end
    are predicted. Sentences with more than ``--tokens-per-sample`` tokens, ``</s>`` included, are refused, where
    fairseq would leave them out; ``--shorten-method truncate`` cuts them.

    ``--sentence-layout original`` is how the original code sees its sentences, in the order of a new permutation each
    epoch: "a b c" with ``--tokens-per-sample 6`` has the input ``a b c F F`` and the target ``b c F``, where F is
    ``<pad>`` or, with ``--pad-id first_word`` as in the original, the first word of the training text. The first word
    of a sentence is never predicted; the F after it is where ``--criterion sentence_mean_loss`` has ``--target-weights
    input_mask``, and longer sentences are cut to 6 words. With ``--arch normgrowth_control --attn-mask multiplicative``
    these four switches are the original's training, leaks and all.
    """

    def __init__(self, args: Any, *others: Any, **kwargs: Any) -> None:
        super().__init__(args, *others, **kwargs)
        self.cfg = args  # which fairseq's class calls args only
        self.original = str(args.sentence_layout) == "original"
        check(args, self.targets)

    def begin_training(self, trainer: Any) -> None:
        """Look at the trainer before the first update.

        Raises:
            ValueError: its criterion would count what fills a row as a target.
        """
        criterion = trainer.cfg.criterion._name
        if str(self.cfg.pad_id) == "first_word" and criterion != "sentence_mean_loss":
            raise ValueError(
                f"{NAME}: --criterion {criterion} takes the word that --pad-id first_word puts behind a sentence for "
                "one to predict; take --criterion sentence_mean_loss, or leave out --pad-id first_word"
            )
        super().begin_training(trainer)

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """Load a split.

        Raises:
            FileNotFoundError: it is not there, or the split train, whose first word is wanted.
            ValueError: a sentence is too long.
        """
        if self.original:
            self._load_original(split, epoch, combine)
            return
        super().load_dataset(split, epoch, combine, **kwargs)
        sizes, most = self.datasets[split].sizes, self.cfg.tokens_per_sample
        if str(self.cfg.sample_break_mode) == "eos" and (longer := int((sizes > most).sum())):
            raise ValueError(
                f"{NAME}: {longer:,} of the {len(sizes):,} sentences of {split!r} have more than --tokens-per-sample "
                f"{most} tokens, </s> included, the longest {int(sizes.max()):,}; raise it, or cut them with "
                "--shorten-method truncate"
            )

    def _load_original(self, split: str, epoch: int, combine: bool) -> None:
        folders = utils.split_paths(self.cfg.data)
        self.datasets[split] = PaddedSentences(
            self._sentences(folders[(epoch - 1) % len(folders)], split, combine),
            self.cfg.tokens_per_sample,
            filler=self.filler,
            pad=self.dictionary.pad(),
            eos=self.dictionary.eos(),
            seed=self.cfg.seed if split == "train" else None,
        )

    @property
    def filler(self) -> int:
        """What fills the original's rows.

        Raises:
            FileNotFoundError: it is the first word of the split train, which is not there.
        """
        if str(self.cfg.pad_id) == "own":
            return int(self.dictionary.pad())
        sentences = self._sentences(utils.split_paths(self.cfg.data)[0], "train")
        symbols = (int(row[0]) for row in sentences if len(row))
        return next((symbol for symbol in symbols if symbol != self.dictionary.eos()), int(self.dictionary.pad()))

    def _sentences(self, folder: str, split: str, combine: bool = False) -> Any:
        sentences = data_utils.load_indexed_dataset(os.path.join(folder, split), self.dictionary, combine=combine)
        if sentences is None or not len(sentences):
            there = ", ".join(sorted(path.stem for path in Path(folder).glob("*.idx"))) or "none"
            raise FileNotFoundError(f"{NAME}: no sentences of the split {split!r} in {folder}; its splits: {there}")
        return sentences

    def real_tokens(self, sample: Dict[str, Any]) -> Tensor:
        """Return which tokens of a batch are words or ``</s>``, ``B T`` Bool."""
        tokens = sample["net_input"]["src_tokens"]
        return torch.arange(tokens.shape[1], device=tokens.device) < sample["net_input"]["src_lengths"][:, None]


def check(cfg: Any, targets: Any) -> None:
    """Raise ValueError for layouts that do not go together."""
    original = str(cfg.sentence_layout) == "original"
    if str(cfg.pad_id) == "first_word" and not original:
        raise ValueError(f"{NAME}: --pad-id first_word is of --sentence-layout original; give both")
    if original and str(cfg.sample_break_mode) != "eos":
        raise ValueError(
            f"{NAME}: --sentence-layout original has one sentence a sample; leave out --sample-break-mode "
            f"{cfg.sample_break_mode}"
        )
    if original and str(cfg.shorten_method) != "none":
        raise ValueError(
            f"{NAME}: --sentence-layout original cuts each sentence to its first --tokens-per-sample words; leave out "
            f"--shorten-method {cfg.shorten_method}"
        )
    if original and (list(targets) != ["future"] or cfg.add_bos_token):
        raise ValueError(
            f"{NAME}: --sentence-layout original predicts the next word, without <s>; leave out --add-bos-token, "
            "--self-target and --past-target"
        )
