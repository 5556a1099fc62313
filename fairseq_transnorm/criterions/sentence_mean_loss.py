"""fairseq criterion ``sentence_mean_loss``: every sentence weighs the same, however long it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

NAME = "sentence_mean_loss"  # in messages
TARGET_WEIGHTS = ChoiceEnum(["targets", "input_mask"])


@dataclass
class SentenceMeanLossConfig(FairseqDataclass):
    """Options of the criterion."""

    target_weights: TARGET_WEIGHTS = field(  # type: ignore[valid-type]
        default="targets",
        metadata={
            "help": "targets: all that are no padding; input_mask, of --sentence-layout original: as many as there are "
            "inputs, so that what fills the row after a sentence is a target too"
        },
    )


@register_criterion("sentence_mean_loss", dataclass=SentenceMeanLossConfig)
class SentenceMeanLoss(FairseqCriterion):
    """Cross-entropy, averaged over the targets of each sentence, then over sentences that have any.

    The sample size is the number of sentences, so that an update averages over those of all micro-batches and
    processes. What is minimised is in nats; what is logged is in bits, as everywhere in fairseq:

    * ``loss``: what is minimised, the mean over sentences;
    * ``nll_loss``, and ``ppl`` = 2^nll_loss, the perplexity: mean over targets;
    * ``accuracy``: share of the targets that the model finds likeliest, in percent.

    Source: Merrill et al. 2021, arXiv:2010.09697; the original code logs the mean over sentences of 2^(loss in nats) as
    its perplexity, which is none, and counts one padding as a target of each sentence: ``--target-weights input_mask``.
    """

    def __init__(self, cfg: SentenceMeanLossConfig, task: Any) -> None:
        super().__init__(task)
        self.by_inputs = str(cfg.target_weights) == "input_mask"

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the sum of the sentences' means in nats, the number of sentences, and sums for the log.

        Raises:
            ValueError: weights of inputs are asked for, and the task has no rows that are filled.
        """
        output = model(**sample["net_input"])
        target = model.get_targets(sample, output)
        counted = self._counted(sample, target)
        logs = model.get_normalized_probs(output, log_probs=True)
        nats = F.nll_loss(logs.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        nats = nats.masked_fill(~counted, 0.0)
        targets = counted.sum(1)
        loss = (nats.sum(1) / targets.clamp(min=1)).sum()
        sentences = int((targets > 0).sum())
        sums = {
            "loss": loss.data,
            "nll_sum": nats.data.sum(),
            "correct": (logs.argmax(-1) == target)[counted].sum(),
            "targets": targets.sum(),
            "ntokens": sample["ntokens"],
            "nsentences": len(target),
            "sample_size": sentences,
        }
        return loss, sentences, sums

    def _counted(self, sample: dict[str, Any], target: Tensor) -> Tensor:
        """Return which targets count, ``B T`` Bool."""
        if not self.by_inputs:
            lengths = sample.get("target_lengths")
            return target != self.padding_idx if lengths is None else _first(lengths, target)
        if "target_lengths" not in sample:
            raise ValueError(
                f"{NAME}: --target-weights input_mask differs from targets where the task fills the rows behind its "
                "sentences; train with --task normgrowth_lm --sentence-layout original, or leave it out"
            )
        return _first(sample["net_input"]["src_lengths"], target)

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Log the means over all sentences, and all targets, of all processes."""
        loss, sentences, nats, correct, targets = (
            float(sum(log.get(name, 0) for log in logging_outputs))
            for name in ("loss", "sample_size", "nll_sum", "correct", "targets")
        )
        bits = math.log(2)
        metrics.log_scalar("loss", loss / max(sentences, 1) / bits, sentences, round=3)
        metrics.log_scalar("nll_loss", nats / max(targets, 1) / bits, targets, round=3)
        metrics.log_scalar("accuracy", 100 * correct / max(targets, 1), targets, round=2)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Yes: all are sums and counts."""
        return True


def _first(lengths: Tensor, target: Tensor) -> Tensor:
    return torch.arange(target.shape[1], device=target.device) < lengths.to(target.device)[:, None]
