"""fairseq criterion ``rasp_loss``: outputs of a formal language, and where some heads should look."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from ..modules.attention_targets import head_weights, squared_differences
from .ratios import log_ratio

NAME = "rasp_loss"  # in messages
# What is summed over batches and processes, in this order; the last one of supervised languages only.
SUMS = ("loss", "seq_loss", "correct", "tokens", "batch_accuracy", "correct_sequences", "attn_loss")


@dataclass
class RaspLossConfig(FairseqDataclass):
    """Options of the criterion."""

    attn_loss_weight: float = field(
        default=100.0,
        metadata={"help": "weight of the loss of the attention; languages without attention targets have none"},
    )


@register_criterion("rasp_loss", dataclass=RaspLossConfig)
class RaspLoss(FairseqCriterion):
    """Cross-entropy, averaged over each sequence, then over sequences; with supervision also a loss of the attention.

    Of B sequences of n symbols, BOS included and padding not, and m supervised heads::

        L_seq  = 1/B     sum over sequences of 1/n   sum over positions of the cross-entropy
        L_attn = 1/(B m) sum over sequences, heads of 1/n^2 sum over cells of (A - t)^2
        L      = L_seq + attn_loss_weight L_attn

    A are the attention weights before dropout, t the normalised targets of
    :mod:`fairseq_transnorm.modules.attention_targets`; a symbol that ``--model-bos`` adds inside the model is in
    neither, nor in n. The criterion returns B L and the sample size B, so that an update minimises L over the
    sequences of all micro-batches and processes.

    Metrics, of training and validation, exact over all batches and processes:

    * ``loss``, ``seq_loss``, ``attn_loss`` (of supervised languages): the three, in nats, not in bits as elsewhere in
      fairseq;
    * ``accuracy``: correct symbols / symbols;
    * ``accuracy_batchmean``: mean of the accuracies of batches, each as a process gets it, as the original code has;
    * ``seq_accuracy``: share of the sequences without a mistake.
    """

    def __init__(self, cfg: RaspLossConfig, task: Any) -> None:
        super().__init__(task)
        if not 0 <= cfg.attn_loss_weight < math.inf:
            raise ValueError(f"{NAME}: --attn-loss-weight {cfg.attn_loss_weight:g}: 0 or more, and finite")
        if not hasattr(task, "language"):
            raise ValueError(f"{NAME}: --task {task.cfg._name} has no formal language; give --task rasp_lang")
        self.attn_loss_weight = cfg.attn_loss_weight
        self.language = task.language
        self.padding = task.target_dictionary.pad()

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """Return the sum of the sequences' losses in nats, their number, and sums for the log."""
        supervised, target = self.language.supervised, sample["target"]
        asked = {"return_attention": True} if supervised else {}
        logits, extra = model(**sample["net_input"], **asked)
        real = target != self.padding
        lengths = real.sum(1)
        nats = F.cross_entropy(
            logits.float().flatten(0, 1), target.flatten(), ignore_index=self.padding, reduction="none"
        )
        loss = seq_loss = (nats.view_as(target).sum(1) / lengths).sum()
        attn_loss = []
        if supervised:
            weights = head_weights(extra["attn"], self.language.program_heads, target.shape[1])
            attn_loss = [squared_differences(weights.float(), sample["attention_targets"], lengths).mean(1).sum()]
            loss = seq_loss + self.attn_loss_weight * attn_loss[0]
        right = logits.detach().argmax(-1) == target  # never at padding, which is no class
        correct, tokens, all_right = right.sum(), lengths.sum(), (right | ~real).all(1).sum()
        sums = [loss, seq_loss, correct, tokens, correct.double() / tokens, all_right, *attn_loss]
        log = {
            "rasp_sums": torch.stack([value.detach().double() for value in sums]),
            "batches": 1,
            "ntokens": sample["ntokens"],
            "nsentences": len(target),
            "sample_size": len(target),
        }
        return loss, len(target), log

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Log the ratios of the sums over batches and processes."""
        totals = sum(log["rasp_sums"] for log in logging_outputs).tolist()
        sums = dict(zip(SUMS, totals, strict=False))
        sequences, batches = (int(sum(log[name] for log in logging_outputs)) for name in ("nsentences", "batches"))
        for name in ("loss", "seq_loss", "attn_loss"):
            if name in sums:
                log_ratio(name, sums[name], sequences)
        log_ratio("accuracy", sums["correct"], sums["tokens"])
        log_ratio("accuracy_batchmean", sums["batch_accuracy"], batches)
        log_ratio("seq_accuracy", sums["correct_sequences"], sequences)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Yes: all are sums and counts."""
        return True
