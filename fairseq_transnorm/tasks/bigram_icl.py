"""fairseq task ``bigram_icl``: next tokens of bigram sequences in which triggers have outputs of their own."""

import copy
import logging
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Type

from fairseq.data import Dictionary
from fairseq.dataclass import ChoiceEnum
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY, FairseqEncoderModel
from fairseq.tasks import FairseqTask, register_task

from ..data.bigram_statistics import BigramStatistics, count_file, read_statistics
from ..data.symbol_dictionary import SymbolDictionary
from ..data.trigger_dataset import SPLITS, TriggerDataset
from ..data.trigger_sequences import ReferenceSampler, Sampler, VectorisedSampler
from ..data.trigger_settings import DISTRIBUTIONS, PARTS, TriggerSettings, check_settings, fixed_triggers
from ..models.options import flag
from .growth_log import GrowthLogConfig, GrowthLogMixin
from .kept_dictionary import KeptDictionary
from .probe_log import ProbeLogMixin

NAME = "bigram_icl"  # in messages
SAMPLERS: Dict[str, Type[Sampler]] = {"vectorised": VectorisedSampler, "reference": ReferenceSampler}
SAMPLER = ChoiceEnum(list(SAMPLERS))
OUTPUT_DIST = ChoiceEnum(list(DISTRIBUTIONS))
OUTPUT_SPLIT = ChoiceEnum(list(PARTS))
VALID_OUTPUT_DIST = ChoiceEnum(["same", *DISTRIBUTIONS])
VALID_OUTPUT_SPLIT = ChoiceEnum(["same", *PARTS])
STATISTICS = "bigram_statistics_sha256"  # in the state of a task
MODELS = "ihead_basic, ihead_full, transnormer_lm, normgrowth_lm"
_PADDING = "a padding symbol, which the vocabulary of a corpus does not have"
logger = logging.getLogger(__name__)


@dataclass
class BigramICLConfig(GrowthLogConfig):
    """Options of the task."""

    corpus: Optional[str] = field(default=None, metadata={"help": "text whose characters are the symbols, UTF-8"})
    bigram_stats: Optional[str] = field(
        default=None, metadata={"help": "instead: its statistics, JSON of preprocessing/bigram_statistics.py"}
    )
    num_triggers: int = field(default=5, metadata={"help": "triggers K of a sequence"})
    tokens_per_sample: int = field(default=256, metadata={"help": "tokens T of an input"})
    max_target_positions: Optional[int] = field(
        default=None, metadata={"help": "positions of a language model; default: --tokens-per-sample"}
    )
    show_latents: bool = field(default=False, metadata={"help": "begin each sequence with its triggers"})
    fixed_triggers: bool = field(
        default=False, metadata={"help": "the most frequent symbols are the triggers of all sequences"}
    )
    trigger_rank_offset: int = field(
        default=0, metadata={"help": "most frequent symbols that are passed over for --fixed-triggers"}
    )
    no_output_counter: bool = field(
        default=False, metadata={"help": "count every occurrence of a trigger as its first"}
    )
    no_repeat_output: bool = field(default=False, metadata={"help": "no trigger is its own output"})
    output_dist: OUTPUT_DIST = field(  # type: ignore[valid-type]
        default="uniform",
        metadata={"help": "how outputs are drawn: uniform, or bigram: as what follows the trigger in the text"},
    )
    output_split: OUTPUT_SPLIT = field(  # type: ignore[valid-type]
        default="all",
        metadata={"help": "symbols that can be outputs: all, train (the first three quarters) or test (the others)"},
    )
    epoch_sequences: int = field(default=51200, metadata={"help": "sequences of an epoch"})
    valid_sequences: int = field(default=512, metadata={"help": "sequences of valid, and as many of test"})
    valid_output_dist: VALID_OUTPUT_DIST = field(  # type: ignore[valid-type]
        default="same", metadata={"help": "--output-dist of valid and test; same: as in training"}
    )
    valid_output_split: VALID_OUTPUT_SPLIT = field(  # type: ignore[valid-type]
        default="same", metadata={"help": "--output-split of valid and test; same: as in training"}
    )
    data_seed: int = field(default=42, metadata={"help": "seed of the sequences"})
    sampler: SAMPLER = field(  # type: ignore[valid-type]
        default="vectorised",
        metadata={"help": "how sequences are made; both make the same: vectorised is fast, reference slow and plain"},
    )


@register_task("bigram_icl", dataclass=BigramICLConfig)
class BigramICLTask(ProbeLogMixin, KeptDictionary, GrowthLogMixin, FairseqTask):
    """Next tokens of sequences of :mod:`fairseq_transnorm.data.trigger_sequences`, which shows one.

    Attributes:
        statistics: of the corpus.
        fixed_triggers: their numbers in their order; None where each sequence has its own.
    """

    data_remedy = "give the text or the statistics of its training (--corpus or --bigram-stats; for a measure --data)"
    _other_statistics: Optional[str] = None  # checkpoint of a training on other ones

    def __init__(self, cfg: BigramICLConfig, statistics: BigramStatistics):
        super().__init__(cfg)
        self.statistics = statistics
        check(cfg)
        check_settings(statistics, self.settings("train"))
        check_settings(statistics, self.settings("valid"), "--valid-")
        self.dictionary = SymbolDictionary(statistics.vocab, statistics.unigram_counts.tolist())
        self.fixed_triggers: Optional[List[int]] = (
            fixed_triggers(statistics, self.settings("train")) if cfg.fixed_triggers else None
        )

    @classmethod
    def setup_task(cls, cfg: BigramICLConfig, **kwargs: Any) -> "BigramICLTask":
        """Make the task with the statistics of the corpus.

        Raises:
            FileNotFoundError: the corpus, or the file of its statistics, is not there.
            ValueError: it cannot be used, none or both are given, or an option does not fit it.
        """
        if (cfg.corpus is None) == (cfg.bigram_stats is None):
            found = "neither" if cfg.corpus is None else "both"
            raise ValueError(
                f"{NAME}: {found} of --corpus TEXT and --bigram-stats JSON given; give one of them, which tells what "
                "symbols there are and what follows them"
            )
        read = count_file if cfg.bigram_stats is None else read_statistics
        try:
            statistics = read(cls.data_of(cfg))
        except (FileNotFoundError, ValueError) as error:
            option = "--corpus" if cfg.bigram_stats is None else "--bigram-stats"
            raise type(error)(f"{NAME}: {option} {error}") from None
        return cls(cfg, statistics)

    @staticmethod
    def data_of(cfg: Any) -> str:
        """Return what the task reads."""
        return str(cfg.corpus if cfg.bigram_stats is None else cfg.bigram_stats)

    @staticmethod
    def set_data(cfg: Any, data: str) -> None:
        """Let the task read something else: statistics where it ends in .json, else a text."""
        cfg.corpus, cfg.bigram_stats = (None, data) if data.endswith(".json") else (data, None)

    def state_dict(self) -> Dict[str, Any]:
        """Return the state of the task, with a hash of the statistics."""
        return {**super().state_dict(), STATISTICS: self.statistics.sha256}

    def check_state(self, state_dict: Dict[str, Any], checkpoint: str = "the checkpoint") -> None:
        """Compare the corpus with that of a checkpoint: other symbols are refused, others counts warned of.

        Raises:
            ValueError: it was trained with other symbols.
        """
        super().check_state(state_dict, checkpoint)
        if state_dict.get(STATISTICS, self.statistics.sha256) != self.statistics.sha256:
            self._other_statistics = checkpoint
            logger.warning(
                "%s: %s was trained on another text than %s, with the same symbols: what follows them is different, "
                "and fixed triggers may be others",
                *(NAME, checkpoint, self.data_of(self.cfg)),
            )

    def begin_training(self, trainer: Any) -> None:
        """Look at the trainer before the first update.

        Raises:
            ValueError: a run would go on with another corpus, parameters cannot be frozen as the model wants, or
                ``--best-checkpoint-metric`` is one that no validation can have.
        """
        if (freezing := getattr(trainer.get_model(), "freezing", None)) is not None:
            freezing.check_run(trainer.cfg)
        if trainer.get_num_updates():
            self.check_going_on()
        super().begin_training(trainer)

    def check_going_on(self, checkpoint: Optional[str] = None) -> None:
        """Raise ValueError where the state taken from a checkpoint is of another corpus with the same symbols."""
        if self._other_statistics is not None:
            raise ValueError(
                f"{NAME}: {checkpoint or self._other_statistics} was trained on another text than "
                f"{self.data_of(self.cfg)}, with the same symbols; give that of its training, or begin a new run from "
                "its weights with --finetune-from-model and another --save-dir"
            )

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build a model.

        Raises:
            ValueError: it is none for a vocabulary without special symbols.
        """
        kind = ARCH_MODEL_REGISTRY.get(cfg._name) or MODEL_REGISTRY.get(cfg._name)
        if kind is not None and (issubclass(kind, FairseqEncoderModel) or kind.__module__.startswith("fairseq.")):
            encoder = issubclass(kind, FairseqEncoderModel)
            why = "is no language model from left to right" if encoder else f"needs {_PADDING}"
            raise ValueError(f"{NAME}: --arch {cfg._name} {why}; models for this task are {MODELS}")
        return super().build_model(cfg, from_checkpoint)

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the criterion.

        Raises:
            ValueError: it is not for this task, or its loss would have no position.
        """
        if cfg._name != NAME:
            raise ValueError(f"{NAME}: --criterion {cfg._name} needs {_PADDING}; give --criterion {NAME}")
        if cfg.loss_head_only and (why := self.settings("train").never_again):
            raise ValueError(
                f"{NAME}: with {why} no trigger occurs for the second time, so that --loss-head-only has no token to "
                "learn from; change one of the two"
            )
        return super().build_criterion(cfg, from_checkpoint)

    def settings(self, split: str) -> TriggerSettings:
        """Return how the sequences of a split are made."""
        cfg = self.cfg
        output = [str(cfg.output_dist), str(cfg.output_split)]
        if split != "train":
            valid = str(cfg.valid_output_dist), str(cfg.valid_output_split)
            output = [own if own != "same" else training for own, training in zip(valid, output, strict=True)]
        return TriggerSettings(
            num_triggers=cfg.num_triggers,
            length=cfg.tokens_per_sample,
            show_triggers=cfg.show_latents,
            fixed=cfg.fixed_triggers,
            rank_offset=cfg.trigger_rank_offset,
            no_counter=cfg.no_output_counter,
            no_repeat=cfg.no_repeat_output,
            distribution=output[0],
            part=output[1],
        )

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> None:
        """Make a split.

        Raises:
            ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"{NAME}: no split {split!r}; there are {', '.join(SPLITS)}")
        sampler = SAMPLERS[str(self.cfg.sampler)](self.statistics, self.settings(split))
        count = self.cfg.epoch_sequences if split == "train" else self.cfg.valid_sequences
        self.datasets[split] = TriggerDataset(sampler, split, count, self.cfg.data_seed)

    def get_batch_iterator(self, dataset: TriggerDataset, *args: Any, **kwargs: Any) -> Any:
        """Return fairseq's iterator, over a data set of its own.

        Each iterator sets the epoch of its data set: validation on train must not change the one under way. Batches
        are of any size: ``--required-batch-size-multiple``, by default 8, would leave sequences out.
        """
        kwargs["required_batch_size_multiple"] = 1
        return super().get_batch_iterator(copy.copy(dataset), *args, **kwargs)

    @property
    def source_dictionary(self) -> Dictionary:
        """Symbols of the corpus, without special ones."""
        return self.dictionary

    @property
    def target_dictionary(self) -> Dictionary:
        """The same."""
        return self.dictionary

    def max_positions(self) -> int:
        """Tokens of an input."""
        return self.cfg.tokens_per_sample


def check(cfg: Any) -> None:
    """Raise ValueError for options that make no sense with any text."""
    for name in ("epoch_sequences", "valid_sequences"):
        if getattr(cfg, name) < 1:
            raise ValueError(f"{NAME}: {flag(name)} {getattr(cfg, name)}: at least 1")
    if cfg.data_seed < 0:
        raise ValueError(f"{NAME}: --data-seed {cfg.data_seed}: 0 or more")
