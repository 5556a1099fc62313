"""Norm growth seen while a model trains: mixed into a task, for every model that the task can train."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor, nn

from ..checkpointing import save_initial
from ..measure.growth_log import FILE
from ..measure.parameters import SCOPES
from ..measure.scaling import SATURATED, sinusoidal_positions
from ..models.options import flag
from ..modules.positions import find_padding
from .step_recorder import StepRecorder
from .valid_saturation import ValidSaturation

SCOPE = ChoiceEnum(list(SCOPES))
logger = logging.getLogger(__name__)


@dataclass
class GrowthLogConfig(FairseqDataclass):
    """Options that every task of this package has; all of it is off by default."""

    norm_log_interval: int = field(
        default=0,
        metadata={"help": f"updates between two records of the parameter norm in SAVE_DIR/{FILE}; 0 for none"},
    )
    norm_scope: SCOPE = field(  # type: ignore[valid-type]
        default="layers",
        metadata={"help": "parameters of the norm: those of the layers, all, linear maps, or matrices in the layers"},
    )
    norm_log_layers: bool = field(default=False, metadata={"help": "records also have the norm and step of each layer"})
    norm_log_tensors: bool = field(default=False, metadata={"help": "records also have those of each parameter"})
    save_initial: bool = field(
        default=False,
        metadata={
            "help": "write checkpoint_init.pt, the model before the first update; with --norm-log-interval anyway"
        },
    )
    sat_max_sentences: int = field(
        default=0, metadata={"help": "most sentences of a validation whose saturation is measured; 0 for none"}
    )
    sat_factor: float = field(
        default=SATURATED, metadata={"help": "factor of all parameters that stands for the saturated network"}
    )


class GrowthLogMixin:
    """Mixed into a task of fairseq's, before it; :mod:`fairseq_transnorm.checkpointing` shows it the trainer.

    What an update does to the parameters of ``--norm-scope``, theta to theta + delta, is measured at every
    ``--norm-log-interval``-th update, and written with full precision to ``norms.jsonl`` in the save folder
    (:mod:`fairseq_transnorm.measure.growth_log` names the fields) and, rounded, to fairseq's own log. Sums are in
    float64. The gradient is that of the update: averaged over all processes and micro-batches, and clipped. The first
    process alone measures; it holds one more copy of the parameters. Training itself is not changed in a bit.

    ``--sat-max-sentences`` adds two numbers to the line of each validation set, both of the last hidden states:
    ``sat``, the mean cosine of a token between the model and the one with all parameters times ``--sat-factor``, and
    ``collapse``, the mean cosine between two tokens, 1 where all are alike.
    """

    cfg: Any
    _recorder: Optional[StepRecorder] = None
    _saturation: Optional[ValidSaturation] = None
    _shown: Dict[str, float] = {}
    _epoch = 1

    def begin_training(self, trainer: Any) -> None:
        """Look at the trainer before the first update.

        Raises:
            ValueError: an option has no meaning, or the parameters cannot be seen in the way that they are trained.
        """
        check(self.cfg)
        self._recorder, self._shown = None, {}
        if self.cfg.sat_max_sentences and (positions := sinusoidal_positions(trainer.get_model())):
            logger.warning(
                "--sat-max-sentences: the model adds sinusoidal positions (%s), which are no parameters: they are not "
                "scaled, and the saturated network hardly sees them; learned positions are",
                next(iter(positions)),
            )
        if not (self.cfg.norm_log_interval or self.cfg.save_initial):
            return
        updated = "--norm-log-interval" if self.cfg.norm_log_interval else None
        check_trainer(self.cfg._name, trainer.cfg, "--norm-log-interval and --save-initial", updated)
        if trainer.get_num_updates() == 0 and not trainer.cfg.checkpoint.no_save:
            save_initial(trainer)
        if self.cfg.norm_log_interval and trainer.is_data_parallel_master:
            self._recorder = StepRecorder(
                trainer.get_model(),
                Path(trainer.cfg.checkpoint.save_dir) / FILE,
                str(self.cfg.norm_scope),
                layers=self.cfg.norm_log_layers,
                tensors=self.cfg.norm_log_tensors,
            )
            self._recorder.start(trainer.get_num_updates(), self._epoch, float(trainer.get_lr()))

    def begin_epoch(self, epoch: int, model: nn.Module) -> None:
        """Remember the epoch."""
        self._epoch = epoch
        super().begin_epoch(epoch, model)  # type: ignore[misc]

    def optimizer_step(self, optimizer: Any, model: nn.Module, update_num: int) -> None:
        """Make the update, and measure it where it is its turn."""
        recorder, updates = self._recorder, update_num + 1
        if recorder is None or updates % self.cfg.norm_log_interval:
            super().optimizer_step(optimizer, model=model, update_num=update_num)  # type: ignore[misc]
        else:
            lr, scale = float(optimizer.get_lr()), loss_scale(optimizer)
            recorder.before()
            super().optimizer_step(optimizer, model=model, update_num=update_num)  # type: ignore[misc]
            if loss_scale(optimizer) >= scale:  # else gradients overflowed: fairseq does not count such an update
                self._shown = recorder.after(updates, self._epoch, lr)
        for name, value in self._shown.items():  # again at other updates: each line of fairseq's log has the last ones
            metrics.log_scalar(name, value, weight=0, priority=450, round=6)

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return fairseq's iterator; a validation set begins with one."""
        if self.cfg.sat_max_sentences:
            processes = int(kwargs.get("num_shards", 1))
            most = -(-self.cfg.sat_max_sentences // processes)
            self._saturation = ValidSaturation(most, self.cfg.sat_factor)
        return super().get_batch_iterator(dataset, *args, **kwargs)  # type: ignore[misc]

    def valid_step(self, sample: Dict[str, Any], model: nn.Module, criterion: Any, **kwargs: Any) -> Any:
        """Validate a batch as the task does, and measure the saturation of some of it."""
        loss, sample_size, log = super().valid_step(sample, model, criterion, **kwargs)  # type: ignore[misc]
        if self._saturation is not None:
            tokens = sample["net_input"]["src_tokens"]
            log = {**log, **self._saturation(model, tokens, self.real_tokens(sample))}
        return loss, sample_size, log

    def real_tokens(self, sample: Dict[str, Any]) -> Tensor:
        """Return which tokens of a batch are no padding, ``B T`` Bool."""
        tokens = sample["net_input"]["src_tokens"]
        padding = find_padding(tokens, self.source_dictionary.pad())  # type: ignore[attr-defined]
        return torch.ones_like(tokens, dtype=torch.bool) if padding is None else ~padding

    def reduce_metrics(self, logging_outputs: Any, criterion: Any) -> None:
        """Log what the criterion does, and the saturation."""
        super().reduce_metrics(logging_outputs, criterion)  # type: ignore[misc]
        if self._saturation is not None:
            self._saturation.log(logging_outputs)


def check(cfg: Any) -> None:
    """Raise ValueError for options that make no sense."""
    for name in ("norm_log_interval", "sat_max_sentences"):
        if getattr(cfg, name) < 0:
            raise ValueError(f"{cfg._name}: {flag(name)} {getattr(cfg, name)}: 0 (none) or more")
    if not 1 < cfg.sat_factor < float("inf"):
        raise ValueError(f"{cfg._name}: --sat-factor {cfg.sat_factor:g}: more than 1, as {SATURATED:g}")


def check_trainer(name: str, cfg: Any, whole: str, updated: Optional[str]) -> None:
    """Raise ValueError where no process has the whole of the parameters as they are trained.

    Args:
        name: of the task, for the message.
        cfg: the config of a run.
        whole: options in use that look at the parameters, for the message.
        updated: an option in use that looks at them, or at their gradients, as they are updated; None for none.
    """
    common, parallel = cfg.common, cfg.distributed_training
    backend = str(parallel.ddp_backend)
    if backend == "fully_sharded":
        raise ValueError(
            f"{name}: {whole}: with --ddp-backend fully_sharded each process has only a part of the parameters; take "
            "another backend"
        )
    if updated is None:
        return
    refused = {
        "--fp16 and --bf16": common.fp16 or common.bf16,
        "--tpu": common.tpu,
        "--ddp-backend slowmo": backend == "slowmo",
        "--zero-sharding": str(parallel.zero_sharding) != "none",
        "--use-bmuf": cfg.optimization.use_bmuf,
        "--pipeline-model-parallel": parallel.pipeline_model_parallel,
        "--model-parallel-size": common.model_parallel_size > 1,
        "--quantization-config-path": common.quantization_config_path is not None,
    }
    if given := [name for name, used in refused.items() if used]:
        advice = "for half precision take --amp" if given[0].startswith("--fp16") else "leave one of the two out"
        raise ValueError(
            f"{name}: {updated} does not go with {given[0]}: the model does not hold the whole parameters "
            f"that are updated; {advice}"
        )


def loss_scale(optimizer: Any) -> float:
    """Return the factor of the loss in automatic mixed precision, which falls when gradients overflow; else 1."""
    scaler = getattr(optimizer, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())
