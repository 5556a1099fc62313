"""Classes of sentences and of pairs of them, joined and cut as in BERT, with segment ids."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fairseq.data import data_utils
from fairseq.tasks import FairseqTask, register_task
from fairseq.tasks.sentence_prediction import SentencePredictionTask
from omegaconf import II, MISSING, OmegaConf, open_dict
from torch import Tensor

from ..data.labelled_pairs import PairDataset
from .growth_log import GrowthLogConfig, GrowthLogMixin
from .kept_dictionary import KeptDictionary


@dataclass
class DslmSentenceConfig(GrowthLogConfig):
    """What both tasks of sentences are told; the names are those of fairseq's own."""

    data: str = field(default=MISSING, metadata={"help": "data folder of preprocessing/glue.py --dslm or race.py"})
    num_classes: int = field(default=-1, metadata={"help": "classes, options of a question, or regression targets"})
    max_positions: int = field(default=512, metadata={"help": "most tokens of a sequence; longer ones are cut"})
    no_shuffle: bool = field(default=False, metadata={"help": "fill the batches of train by length, not at random"})
    classification_head_name: str = II("criterion.classification_head_name")
    seed: int = II("common.seed")


@dataclass
class DslmSentencePredictionConfig(DslmSentenceConfig):
    """Adds what only classes or numbers of sentences have."""

    regression_target: bool = II("criterion.regression_target")


@register_task("dslm_sentence_prediction", dataclass=DslmSentencePredictionConfig)
class DslmSentencePredictionTask(KeptDictionary, GrowthLogMixin, SentencePredictionTask):
    """As fairseq's ``sentence_prediction``, with its criterion, but for how examples are joined and cut.

    The folder has ``input0``, for pairs ``input1``, and ``label``; preprocessing/glue.py --dslm makes it. Premise
    "a b", hypothesis "c", label "entailment" of ("contradiction", "entailment", "neutral") become the tokens
    ``<s> a b </s> c </s>`` with the segments ``0 0 0 0 1 1`` and the target 1.
    """

    @classmethod
    def setup_task(cls, cfg: Any, **kwargs: Any) -> "DslmSentencePredictionTask":
        """Read the dictionaries.

        Raises:
            FileNotFoundError: a dictionary is missing.
            ValueError: no number of classes, or the inputs have different dictionaries.
        """
        if cfg.num_classes < 1:
            raise ValueError(f"{cfg._name}: --num-classes {cfg.num_classes}; at least 1")
        files = [Path(cfg.data) / "input0/dict.txt", *sorted(Path(cfg.data).glob("input[1-9]*/dict.txt"))]
        words = cls.load_dictionary(str(files[0]))
        for file in files[1:]:
            if file.read_bytes() != files[0].read_bytes():
                raise ValueError(f"{cfg._name}: {file} and {files[0]} differ; encode all inputs with one dictionary")
        labels = None if cls.is_regression(cfg) else cls.load_dictionary(str(Path(cfg.data) / "label/dict.txt"))
        return cls(cfg, words, labels or words)

    @staticmethod
    def is_regression(cfg: Any) -> bool:
        """Return whether labels are numbers."""
        return bool(cfg.regression_target)

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> PairDataset:
        """Load a split.

        Raises:
            FileNotFoundError: its ``input0`` is missing.
            ValueError: inputs or labels do not fit together, or a label is none of the classes.
        """
        second = self._inputs("input1", split) if self.has_pairs() else None
        return self._dataset(split, [self._inputs("input0", split)], second)

    def has_pairs(self) -> bool:
        """Return whether sequences have a second segment."""
        return (Path(self.cfg.data) / "input1").is_dir()

    def _dataset(self, split: str, firsts: list[Any], second: Any, max_first: int | None = None) -> PairDataset:
        try:
            self.datasets[split] = PairDataset(
                firsts,
                second,
                self._targets(split),
                self.source_dictionary,
                self.cfg.max_positions,
                max_first,
                shuffle=split == "train" and not self.cfg.no_shuffle,
                seed=self.cfg.seed,
            )
        except ValueError as error:
            raise ValueError(f"{self.cfg._name}: {split} of {self.cfg.data}: {error}") from None
        return self.datasets[split]

    def _inputs(self, name: str, split: str) -> Any:
        path = Path(self.cfg.data) / name / split
        dataset = data_utils.load_indexed_dataset(str(path), self.source_dictionary)
        if dataset is None:
            there = ", ".join(
                sorted(str(found.relative_to(self.cfg.data)) for found in path.parents[1].glob("*/*.idx"))
            )
            raise FileNotFoundError(f"{self.cfg._name}: no {path}.idx; in {self.cfg.data} there are {there or 'none'}")
        return dataset

    def _targets(self, split: str) -> Tensor | None:
        """Return the classes of a split, or the numbers of a regression; None where there are none."""
        path = Path(self.cfg.data) / "label" / split
        if self.is_regression(self.cfg):
            file = path.with_name(f"{split}.label")
            return torch.tensor([[float(line)] for line in file.read_text().split()]) if file.is_file() else None
        labels = data_utils.load_indexed_dataset(str(path), self.label_dictionary)
        if labels is None:
            return None
        targets = torch.tensor([[int(labels[row][0])] for row in range(len(labels))]) - self.label_dictionary.nspecial
        if len(wrong := ((targets < 0) | (targets >= self.cfg.num_classes)).nonzero()):
            raise ValueError(
                f"the label of row {int(wrong[0, 0])} is none of the first {self.cfg.num_classes} of label/dict.txt "
                f"(--num-classes {self.cfg.num_classes})"
            )
        return targets

    def get_batch_iterator(self, dataset: PairDataset, *args: Any, **kwargs: Any) -> Any:
        """Return fairseq's iterator.

        Raises:
            ValueError: the split has no labels, as that of a test set: there is nothing to learn or to score.
        """
        if dataset.targets is None:
            split = next(name for name, there in self.datasets.items() if there is dataset)
            raise ValueError(
                f"{self.cfg._name}: {split} of {self.cfg.data} has no labels, so that there is nothing to score; take "
                "another --valid-subset"
            )
        return super().get_batch_iterator(dataset, *args, **kwargs)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Build the model with a new classification head.

        Raises:
            ValueError: sequences have two segments and the model has no embeddings of them.
        """
        if OmegaConf.is_config(cfg):
            with open_dict(cfg):
                cfg.max_positions = self.cfg.max_positions
        model = FairseqTask.build_model(self, cfg, from_checkpoint)
        segments = int(getattr(model.encoder, "num_segments", 0))
        if self.has_pairs() and segments < 2:
            raise ValueError(
                f"{self.cfg._name}: {self.cfg.data} has two segments a sequence, but the model {cfg._name} has "
                f"embeddings of {segments}; start from a checkpoint with --num-segments 2, as of dslm_bert"
            )
        model.register_classification_head(self.cfg.classification_head_name, num_classes=self.classes_of_head())
        return model

    def classes_of_head(self) -> int:
        """Return how many logits the model gives a sequence."""
        return int(self.cfg.num_classes)
