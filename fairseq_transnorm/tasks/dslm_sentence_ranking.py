"""Multiple choice as in RACE: one logit for each option, joined with the text as in BERT."""

from dataclasses import dataclass, field
from typing import Any

from fairseq.tasks import register_task

from ..data.labelled_pairs import PairDataset
from .dslm_sentence_prediction import DslmSentenceConfig, DslmSentencePredictionTask


@dataclass
class DslmSentenceRankingConfig(DslmSentenceConfig):
    """Adds what only options have."""

    max_option_length: int = field(default=128, metadata={"help": "most tokens of an option; longer ones are cut"})


@register_task("dslm_sentence_ranking", dataclass=DslmSentenceRankingConfig)
class DslmSentenceRankingTask(DslmSentencePredictionTask):
    """As fairseq's ``sentence_ranking``, but for how options are joined and cut; with a criterion of the same name.

    The folder has the text in ``input0``, the options in ``input1`` and so on, and ``label``; preprocessing/race.py
    makes it. Text "a b", options "c d" and "e", label "B" become the sequences ``<s> c d </s> a b </s>`` and
    ``<s> e </s> a b </s>`` and the target 1. An option is cut to ``--max-option-length`` tokens before it is joined.
    """

    @staticmethod
    def is_regression(cfg: Any) -> bool:
        """Return False: the label is the number of an option."""
        return False

    def load_dataset(self, split: str, combine: bool = False, **kwargs: Any) -> PairDataset:
        """Load a split; errors as of :class:`DslmSentencePredictionTask`, each option being needed."""
        options = [self._inputs(f"input{number + 1}", split) for number in range(self.cfg.num_classes)]
        return self._dataset(split, options, self._inputs("input0", split), self.cfg.max_option_length)

    def has_pairs(self) -> bool:
        """Return True: an option and the text."""
        return True

    def classes_of_head(self) -> int:
        """Return 1: the logit of an option."""
        return 1
