"""fairseq task ``bert_sop_lm``: masked words and the order of sentences, as BERT is pretrained for DeepScaleLM."""

import copy
import logging
import struct
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Optional

from fairseq import utils
from fairseq.data import Dictionary, data_utils
from fairseq.tasks import FairseqTask, register_task
from omegaconf import II, MISSING

from ..data.folder import NOTE, read_note
from ..data.sentence_pairs import SentencePairs
from ..data.tokenizers import KINDS
from ..data.word_masking import WordMasking, replacements, special_symbols
from ..data.word_pieces import continues_word, word_starts
from ..models.options import flag
from .growth_log import GrowthLogConfig, GrowthLogMixin
from .kept_dictionary import KeptDictionary

NAME = "bert_sop_lm"  # in messages
logger = logging.getLogger(__name__)


@dataclass
class BertSopLMConfig(GrowthLogConfig):
    """Options of the task; the defaults are those of the original."""

    data: str = field(default=MISSING, metadata={"help": "data folder; of several with ':' between, one an epoch"})
    tokens_per_sample: int = field(default=512, metadata={"help": "most tokens of a sample, with <s> and </s>"})
    mask_prob: float = field(default=0.15, metadata={"help": "share of the tokens to mask; a bound, see the docs"})
    leave_unmasked_prob: float = field(default=0.1, metadata={"help": "share of the masked tokens left as they are"})
    random_token_prob: float = field(default=0.1, metadata={"help": "share of the masked tokens replaced by others"})
    max_ngram: int = field(default=3, metadata={"help": "most words masked together; n of them with weight 1/n"})
    short_seq_prob: float = field(default=0.1, metadata={"help": "probability that a sample is made shorter"})
    max_sentence_tokens: int = field(
        default=512, metadata={"help": "documents with a sentence of more tokens are left out"}
    )
    masked_lm_only: bool = field(
        default=False, metadata={"help": "masked language model only: no pairs, no sentence order"}
    )
    word_kind: Optional[str] = field(
        default=None,
        metadata={
            "help": f"kind of tokenizer, which tells what a whole word is (default: that in the folder's {NOTE})"
        },
    )
    seed: int = II("common.seed")


@register_task("bert_sop_lm", dataclass=BertSopLMConfig)
class BertSopLMTask(KeptDictionary, GrowthLogMixin, FairseqTask):
    """Pretraining on documents; :mod:`fairseq_transnorm.data.sentence_pairs` shows a sample.

    The data folder is what fairseq-preprocess makes of a text with one sentence a line and an empty line after each
    document. Splits other than that of training have the same samples and masks at any time: fairseq asks for those of
    epoch 1.
    """

    def __init__(self, cfg: BertSopLMConfig, dictionary: Dictionary):
        super().__init__(cfg)
        check(cfg)
        self.dictionary = dictionary
        self.mask_idx = dictionary.add_symbol("<mask>")

    @classmethod
    def setup_task(cls, cfg: BertSopLMConfig, **kwargs: Any) -> "BertSopLMTask":
        """Make the task with the dictionary of the data folders.

        Raises:
            FileNotFoundError: one of them has none.
            ValueError: theirs are not the same.
        """
        first, *others = (Path(folder, "dict.txt") for folder in utils.split_paths(cfg.data))
        dictionary = load_dictionary(first)
        for path in others:
            if load_dictionary(path).symbols != dictionary.symbols:
                raise ValueError(
                    f"{NAME}: {path} and {first} have different symbols, so that the same number means another one; "
                    f"make the second folder with --like {first.parent}"
                )
        return cls(cfg, dictionary)

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """Load a split.

        Raises:
            FileNotFoundError: it is not there, or nothing tells what a word is.
            ValueError: its files are damaged, it has no documents, or none that gives a sample.
        """
        folders = utils.split_paths(self.cfg.data)
        folder = Path(folders[(epoch - 1) % len(folders)])
        sentences = load_sentences(folder / split, self.dictionary, combine)
        if sentences is None:
            there = ", ".join(sorted(p.stem for p in folder.glob("*.idx"))) or "none"
            raise FileNotFoundError(f"{NAME}: no split {split!r} in {folder}; its splits: {there}")
        if not (sentences.sizes == 1).any():
            raise ValueError(
                f"{NAME}: no documents in split {split!r} of {folder}: none of its {len(sentences):,} lines is empty. "
                "The text must have one sentence a line and an empty line after each document"
            )
        kind = self._word_kind(folder)
        dataset = SentencePairs(
            sentences,
            partial(word_starts, kind, continues_word(kind, self.dictionary, folder)),
            self._masking(),
            bos=self.dictionary.bos(),
            eos=self.dictionary.eos(),
            tokens_per_sample=self.cfg.tokens_per_sample,
            short_seq_prob=self.cfg.short_seq_prob,
            max_sentence_tokens=self.cfg.max_sentence_tokens,
            pairs=not self.cfg.masked_lm_only,
            seed=self.cfg.seed,
        )
        found = (
            f"{len(dataset.documents.starts):,} documents; left out: {dataset.documents.short:,} with fewer than "
            f"{dataset.min_sentences} sentences, {dataset.documents.long:,} with a sentence of more than "
            f"{self.cfg.max_sentence_tokens} tokens (--max-sentence-tokens)"
        )
        if not len(dataset):
            raise ValueError(f"{NAME}: no sample in split {split!r} of {folder}: {found}")
        logger.info(f"{folder}/{split}: {len(dataset):,} samples an epoch, more or less, of {found}")
        self.datasets[split] = dataset

    def _word_kind(self, folder: Path) -> str:
        if self.cfg.word_kind is not None:
            return self.cfg.word_kind
        try:
            return read_note(folder)["kind"]
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{NAME}: no {folder / NOTE}, which tells what a word is; say it: --word-kind with one of "
                f"{', '.join(KINDS)}"
            ) from None

    def _masking(self) -> WordMasking:
        return WordMasking(
            mask=self.mask_idx,
            pad=self.dictionary.pad(),
            special=special_symbols(self.dictionary, self.mask_idx),
            replacements=replacements(self.dictionary, self.mask_idx),
            prob=self.cfg.mask_prob,
            leave_prob=self.cfg.leave_unmasked_prob,
            random_prob=self.cfg.random_token_prob,
            max_ngram=self.cfg.max_ngram,
        )

    def get_batch_iterator(self, dataset: SentencePairs, *args: Any, **kwargs: Any) -> Any:
        """Return fairseq's iterator, over a data set of its own.

        Each iterator sets the epoch of its data set. Validation on the split of training, which is always that of
        epoch 1, would otherwise change the samples of the epoch that is under way.
        """
        return super().get_batch_iterator(copy.copy(dataset), *args, **kwargs)

    @property
    def source_dictionary(self) -> Dictionary:
        """Dictionary of the data folder, with ``<mask>`` at its end."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """The same."""
        return self.dictionary

    def max_positions(self) -> int:
        """Most tokens of a sample."""
        return self.cfg.tokens_per_sample


def load_dictionary(path: Path) -> Dictionary:
    """Load the dictionary of a data folder; raise FileNotFoundError when there is none."""
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else "no such folder"
        raise FileNotFoundError(f"{NAME}: no {path} ({there}); give a folder made by the scripts in preprocessing/")
    return Dictionary.load(str(path))


def load_sentences(path: Path, dictionary: Dictionary, combine: bool) -> Any:
    """Load the indexed dataset ``path.bin`` and ``path.idx``; None when there is none.

    Raises:
        ValueError: a file is cut off, as by a copy that was stopped.
    """
    try:
        sentences = data_utils.load_indexed_dataset(str(path), dictionary, combine=combine)
        for part in getattr(sentences, "datasets", [sentences]):
            if part is not None and len(part):
                part[len(part) - 1]  # fairseq itself would notice only in the midst of training
    except (ValueError, AssertionError, struct.error) as error:
        raise ValueError(
            f"{NAME}: {path}.bin or {path}.idx is cut off or damaged ({error}); copy both again, or make the folder "
            "again"
        ) from None
    return sentences


def check(cfg: BertSopLMConfig) -> None:
    """Raise ValueError for options that make no sense."""
    for name in ("mask_prob", "leave_unmasked_prob", "random_token_prob", "short_seq_prob"):
        if not 0 <= cfg[name] <= 1:
            raise ValueError(f"{NAME}: {flag(name)} {cfg[name]:g} is no probability")
    if cfg.leave_unmasked_prob + cfg.random_token_prob > 1:
        raise ValueError(
            f"{NAME}: --leave-unmasked-prob {cfg.leave_unmasked_prob:g} and --random-token-prob "
            f"{cfg.random_token_prob:g} are shares of the masked tokens; together at most 1"
        )
    for name in ("max_ngram", "max_sentence_tokens"):
        if cfg[name] < 1:
            raise ValueError(f"{NAME}: {flag(name)} {cfg[name]}: at least 1")
    special = 2 if cfg.masked_lm_only else 3
    if cfg.tokens_per_sample < special + 2:
        raise ValueError(f"{NAME}: --tokens-per-sample {cfg.tokens_per_sample}: at least {special + 2}")
    if (cfg.tokens_per_sample - special) * cfg.mask_prob < 1:
        raise ValueError(
            f"{NAME}: --mask-prob {cfg.mask_prob:g} of --tokens-per-sample {cfg.tokens_per_sample}, without {special} "
            "special symbols, is less than one token, so that nothing would ever be masked; raise one of them"
        )
    if cfg.seed < 0:
        raise ValueError(f"{NAME}: --seed {cfg.seed}: at least 0")
