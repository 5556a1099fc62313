"""Cross-entropy over the options of a question, which are one batch of sequences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Any

import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor


@dataclass
class DslmSentenceRankingCriterionConfig(FairseqDataclass):
    """Options of the criterion."""

    classification_head_name: str = field(
        default="sentence_classification_head", metadata={"help": "name of the classification head to use"}
    )


@register_criterion("dslm_sentence_ranking", dataclass=DslmSentenceRankingCriterionConfig)
class DslmSentenceRankingCriterion(FairseqCriterion):
    """Cross-entropy of a question's C logits, summed over questions; what is logged and divided is fairseq's.

    fairseq's ``sentence_ranking`` runs the model C times a batch, which its parallel training refuses on GPUs, and has
    no dataclass, so that torch >= 2.6 refuses the checkpoints.
    """

    def __init__(self, cfg: DslmSentenceRankingCriterionConfig, task: Any) -> None:
        super().__init__(task)
        self.classification_head_name = cfg.classification_head_name

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the loss in nats, summed over questions, their number, and sums for the log."""
        questions = len(sample["target"])
        logits, _ = model(
            **sample["net_input"], features_only=True, classification_head_name=self.classification_head_name
        )
        logits = logits.view(questions, -1).float()
        target = sample["target"].view(-1)
        loss = F.cross_entropy(logits, target, reduction="sum")
        sums = {"loss": loss.detach(), "ntokens": sample["ntokens"], "nsentences": questions, "sample_size": questions}
        return loss, questions, sums | {"ncorrect": (logits.argmax(dim=1) == target).sum()}

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Log ``loss`` in bits a question and ``accuracy`` in percent of all questions of all processes."""
        loss, questions, correct = (
            float(sum(sums.get(key, 0) for sums in logging_outputs)) for key in ("loss", "nsentences", "ncorrect")
        )
        if questions:
            metrics.log_scalar("loss", loss / questions / log(2), questions, round=3)
            metrics.log_scalar("accuracy", 100 * correct / questions, questions, round=1)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Return True: only sums are logged."""
        return True
