"""fairseq criterion ``bigram_icl``: next-token loss on sequences with triggers, and what was learned of them."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from ..measure.copying import ATTENTION, LOSSES, PREDICTION, attended_sums, packed, prediction_sums, summed, triggered
from ..measure.growth_log import FILE as GROWTH_FILE
from ..measure.own_attention import attended_positions
from ..measure.probe_log import FILE
from ..models.options import flag
from .ratios import log_ratio

NAME = "bigram_icl"  # in messages


@dataclass
class BigramICLCriterionConfig(FairseqDataclass):
    """Options of the criterion."""

    loss_head_only: bool = field(
        default=False,
        metadata={"help": "the loss is of the outputs of triggers from the second time on, not of all tokens"},
    )
    log_probes: bool = field(
        default=False,
        metadata={"help": "measure attention, weights and the validation sequences in training; write --probe-file"},
    )
    probe_interval: int = field(default=5, metadata={"help": "updates between two lines of --probe-file"})
    probe_start_length: int = field(default=10, metadata={"help": "first positions of a sequence, of acc_start"})
    probe_end_length: int = field(default=500, metadata={"help": "last positions of a sequence, of acc_end"})
    probe_position_cutoff: int = field(default=64, metadata={"help": "first positions, of the probe wk0_<n>_acc"})
    log_norms: bool = field(
        default=False, metadata={"help": "lines of --probe-file have norm and gradient norm of each parameter"}
    )
    probe_file: str = field(
        default=FILE, metadata={"help": "name of the file in the save folder, with .jsonl at its end"}
    )


@register_criterion("bigram_icl", dataclass=BigramICLCriterionConfig)
class BigramICLCriterion(FairseqCriterion):
    """Cross-entropy of the next token, of all positions or (``--loss-head-only``) of those that can be copied.

    The loss of a batch is a sum, and the sample size the number of positions in it, so that an update averages over
    those of all micro-batches and processes; without any the loss is 0 and so is its gradient. What is minimised is in
    nats; fairseq's metrics ``loss``, ``loss_bigram`` and ``loss_head`` are in bits, as everywhere in fairseq, the
    others shares of 1. :mod:`fairseq_transnorm.measure.copying` defines them. Means are exact, however many batches
    and processes there are; a metric of no position is left out, and ``loss`` then is 0.

    Those of the attention are measured with ``--log-probes``, in training at updates of ``--probe-interval`` only.
    """

    def __init__(self, cfg: BigramICLCriterionConfig, task: Any) -> None:
        super().__init__(task)
        self.cfg = cfg
        self.num_updates = 0
        check(cfg)

    def set_num_updates(self, num_updates: int) -> None:
        """Tell the number of updates done before the next training batch."""
        self.num_updates = num_updates

    @property
    def probing(self) -> bool:
        """Whether the attention is looked at, at this update or in validation."""
        return self.cfg.log_probes and not (self.training and self.num_updates % self.cfg.probe_interval)

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, Any, dict[str, Any]]:
        """Return the sum of the losses in nats, the number of positions in it, and sums for the log."""
        batch = triggered(sample)
        looking: AbstractContextManager[Sequence[Tensor]] = (
            attended_positions(model) if self.probing else nullcontext(())
        )
        with looking as attended:
            logits = model(**sample["net_input"])[0]
        nats = F.cross_entropy(logits.float().flatten(0, 1), batch.y.flatten(), reduction="none").view_as(batch.y)
        predicted = logits.detach().argmax(-1)
        counted = batch.c >= 2 if self.cfg.loss_head_only else torch.ones_like(batch.c, dtype=torch.bool)
        sums = prediction_sums(
            batch, nats.detach(), counted, predicted, self.cfg.probe_start_length, self.cfg.probe_end_length
        )
        # of no position the sum is 0, and so is the gradient
        loss = nats[counted].sum() if self.cfg.loss_head_only else nats.sum()
        size = sums["loss"].positions if self.cfg.loss_head_only else nats.numel()
        log = {
            "loss": loss.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["nsentences"],
            "sample_size": size,
            "prediction_sums": packed(sums, PREDICTION),
        }
        if self.probing:
            log["attention_sums"] = packed(attended_sums(batch, predicted, attended), ATTENTION)
        return loss, size, log

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Log the ratios of the sums over batches and processes."""
        for name, (total, count) in summed(logging_outputs).items():
            log_ratio(name, total / math.log(2) if name in LOSSES else total, count)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """Yes: all are sums and counts."""
        return True


def check(cfg: Any) -> None:
    """Raise ValueError for options that make no sense."""
    for name in ("probe_interval", "probe_start_length", "probe_end_length", "probe_position_cutoff"):
        if getattr(cfg, name) < 1:
            raise ValueError(f"{NAME}: {flag(name)} {getattr(cfg, name)}: 1 or more")
    if Path(cfg.probe_file).name != cfg.probe_file or Path(cfg.probe_file).suffix != ".jsonl":
        raise ValueError(
            f"{NAME}: --probe-file {cfg.probe_file!r} is no name of a file in the save folder that ends in .jsonl; "
            f"give one such as {FILE}"
        )
    if cfg.probe_file == GROWTH_FILE:
        raise ValueError(f"{NAME}: --probe-file {GROWTH_FILE} is the file of another log; give one such as {FILE}")
    if cfg.log_norms and not cfg.log_probes:
        raise ValueError(f"{NAME}: --log-norms adds to the lines of --log-probes; give both")
