"""fairseq criterion ``bert_sop``: masked words and the order of sentences, as BERT is pretrained for DeepScaleLM."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from fairseq.modules import cross_entropy
from fairseq.tasks import FairseqTask
from torch import Tensor

NAME = "bert_sop"  # in messages
_MASKED_LM_ONLY = "--masked-lm-only (fairseq-hydra-train: task.masked_lm_only and criterion.masked_lm_only)"
MAX_EXPONENT = 20  # of the perplexity over micro-batches, as the original caps it


@dataclass
class BertSopConfig(FairseqDataclass):
    """Options of the criterion."""

    sop_weight: float = field(default=1.0, metadata={"help": "weight of the loss of the sentence order"})
    # The task's option of the same name, with which it shares its flag; with fairseq-hydra-train both must be given.
    masked_lm_only: bool = field(
        default=False, metadata={"help": "masked language model only: no pairs, no sentence order"}
    )


@register_criterion("bert_sop", dataclass=BertSopConfig)
class BertSopLoss(FairseqCriterion):
    """Mean cross-entropy of the masked tokens of a micro-batch, plus ``sop_weight`` times that of the order.

    The sample size of a micro-batch is 1, so that an update averages over micro-batches, of all processes, however many
    tokens each has masked. Losses are in nats; what is logged is in bits, as everywhere in fairseq:

    * ``loss``: mean over micro-batches of what is minimised;
    * ``lm_loss`` and its ``ppl``: mean over masked tokens;
    * ``sop_loss`` and ``sop_accuracy`` (percent): means over pairs;
    * ``micro_lm_loss``, and ``micro_ppl``, the perplexity that the original reports: mean over micro-batches of their
      mean over masked tokens. It depends on the batch size.
    """

    def __init__(self, cfg: BertSopConfig, task: FairseqTask):
        super().__init__(task)
        if not (math.isfinite(cfg.sop_weight) and cfg.sop_weight >= 0):
            raise ValueError(f"{NAME}: --sop-weight {cfg.sop_weight:g} must be 0 or more")
        self.sop_weight = cfg.sop_weight
        self.masked_lm_only = cfg.masked_lm_only

    def forward(
        self, model: BaseFairseqModel, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the loss of a micro-batch in nats, 1 as its sample size, and sums and counts to log.

        Raises:
            ValueError: the task tells no order, the model does not predict one, or nobody wants the one that is told.
        """
        if not self.masked_lm_only and "sop_target" not in sample:
            raise ValueError(
                f"{NAME}: the task gives no sentence order (sop_target); train with --task bert_sop_lm, or leave it "
                f"out with {_MASKED_LM_ONLY}"
            )
        if self.masked_lm_only and "sop_target" in sample:
            raise ValueError(
                f"{NAME}: the criterion leaves the sentence order out, but the task gives it (sop_target); give both "
                f"the same {_MASKED_LM_ONLY}"
            )
        masked = sample["target"].ne(self.padding_idx)
        order = {} if self.masked_lm_only else {"sentence_order": True}
        logits, extra = model(**sample["net_input"], masked_tokens=masked, **order)
        lm_sum = cross_entropy(logits, sample["target"][masked], ignore_index=self.padding_idx, reduction="sum")
        count = masked.sum()
        lm_loss = lm_sum / count.clamp(min=1)  # 0, and gradients of 0, where no token is masked
        log = {
            "lm_sum": lm_sum.data,
            "lm_tokens": count,
            "micro_sum": lm_loss.data,
            "micro_count": (count > 0).long(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": 1,
        }
        loss = lm_loss
        if not self.masked_lm_only:
            sop_sum, correct = self._order(model, extra, sample["sop_target"])
            loss = loss + self.sop_weight * sop_sum / len(sample["sop_target"])
            log |= {"sop_sum": sop_sum.data, "sop_correct": correct, "sop_count": len(sample["sop_target"])}
        return loss, 1, log | {"loss": loss.data}

    @staticmethod
    def _order(model: BaseFairseqModel, extra: dict[str, Any], target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed loss of the order in nats, and the number of right guesses."""
        logits = extra.get("sentence_order")
        if logits is None:
            raise ValueError(
                f"{NAME}: {type(model).__name__} predicts no sentence order; take --arch dslm_bert or vanilla_bert, or "
                f"leave it out with {_MASKED_LM_ONLY}"
            )
        loss = cross_entropy(logits, target, ignore_index=-100, reduction="sum")
        return loss, (logits.argmax(-1) == target).sum()

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Log the means over all micro-batches of all processes."""

        def total(name: str) -> float:
            return float(sum(log.get(name, 0) for log in logging_outputs))

        def log_mean(name: str, value: str, count: str, unit: float, digits: int) -> None:
            number = total(count)
            metrics.log_scalar(name, total(value) / max(number, 1) / unit, number, round=digits)

        bits = math.log(2)
        log_mean("loss", "loss", "sample_size", bits, 3)
        log_mean("lm_loss", "lm_sum", "lm_tokens", bits, 3)
        log_mean("micro_lm_loss", "micro_sum", "micro_count", bits, 3)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["lm_loss"].avg))
        metrics.log_derived("micro_ppl", lambda meters: _capped_perplexity(meters["micro_lm_loss"].avg))
        if any("sop_count" in log for log in logging_outputs):
            log_mean("sop_loss", "sop_sum", "sop_count", bits, 3)
            log_mean("sop_accuracy", "sop_correct", "sop_count", 0.01, 2)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Yes: all are sums and counts."""
        return True


def _capped_perplexity(bits: float) -> float:
    return round(math.exp(min(bits * math.log(2), MAX_EXPONENT)), 2)
