"""Signal propagation of BERTs at initialisation and of checkpoints, beside what the theory says of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fairseq import utils
from fairseq.criterions import FairseqCriterion
from fairseq.data import Dictionary
from fairseq.modules.checkpoint_activations import unwrap_checkpoint
from omegaconf import OmegaConf
from torch import Tensor, nn

from ..criterions.bert_sop import BertSopConfig, BertSopLoss
from ..data.synthetic import made_up_dictionary, zipf_pairs
from ..models.dslm.bert import DeepBert, ffn_dim, residual_weights_of, stds_of
from ..models.dslm.config import DeepBertConfig
from ..tasks.bert_sop_lm import BertSopLMConfig, BertSopLMTask
from ..theory.blocks import ACTIVATIONS
from ..theory.propagation import Encoder, Propagation, exponential, inverse_root, propagate, straight_line
from .checkpoints import Run, check_device
from .signal import signal_rows

SCHEMES: dict[str, dict[str, Any]] = {
    "dslm": {"dslm_init": "dslm", "dslm_residual_scaling": True},
    "xavier": {"dslm_init": "xavier"},
    "initialisation": {"dslm_init": "dslm"},
    "scaling": {"dslm_init": "normal", "dslm_residual_scaling": True},
    "normal": {"dslm_init": "normal"},
}
"""DeepScaleLM, the vanilla model, one half of DeepScaleLM without the other, and BERT's 0.02 everywhere."""

PLACEMENTS = {"preln": True, "postln": False}
THEORY = ("variance", "correlation", "gradient_ratio", "weight_gradient")


def made_up_batch(sequences: int, length: int, seed: int, vocabulary: int) -> tuple[Dictionary, dict[str, Any]]:
    """Return a dictionary and a batch by Zipf's law; see :mod:`fairseq_transnorm.data.synthetic`."""
    dictionary = made_up_dictionary(vocabulary)
    return dictionary, zipf_pairs(dictionary, sequences, length, seed)


def text_batch(
    data: str, split: str, word_kind: str | None, sequences: int, length: int, seed: int
) -> tuple[Dictionary, dict[str, Any]]:
    """Return the dictionary and a batch of a folder of documents, through the task ``bert_sop_lm``.

    Args:
        data, split: the folder, and what to read of it.
        word_kind: kind of tokenizer; None for that in the folder's note.
        sequences: B.
        length: most tokens of each.
        seed: of the choice of samples and of masks.

    Raises:
        FileNotFoundError, ValueError: those of the task; or the split has too few samples.
    """
    cfg = BertSopLMConfig(data=data, tokens_per_sample=length, short_seq_prob=0.0, word_kind=word_kind, seed=seed)
    task = BertSopLMTask.setup_task(OmegaConf.structured(cfg))
    return task.source_dictionary, task_batch(task, split, sequences, seed)


def task_batch(task: Any, split: str, sequences: int, seed: int) -> dict[str, Any]:
    """Return the first batch of ``sequences`` samples of a split, in the order of ``seed``.

    Raises:
        ValueError: there is none of that size.
    """
    task.load_dataset(split)
    batches = task.get_batch_iterator(
        task.dataset(split),
        max_sentences=sequences,
        max_positions=task.max_positions(),
        ignore_invalid_inputs=True,
        seed=seed,
        num_workers=0,
    )
    for sample in batches.next_epoch_itr(shuffle=True):
        if sample and sample["nsentences"] == sequences:
            return sample
    raise ValueError(f"split {split!r} gives no batch of {sequences} samples; take fewer with --sequences")


def scheme_rows(
    scheme: str,
    placement: str,
    dictionary: Dictionary,
    sample: Mapping[str, Any],
    seed: int,
    device: str,
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Build a BERT, send a batch through it and back in training mode; return its layers beside the theory.

    Args:
        scheme, placement: of ``SCHEMES`` and ``PLACEMENTS``.
        dictionary, sample: of the batch.
        seed: of weights and dropout.
        device: where the model runs.
        options: more fields of ``DeepBertConfig``, such as sizes; constants of a method that the scheme does without
            are left out.

    Returns:
        Rows as of :func:`layer_rows`.

    Raises:
        ValueError: a field that no model can be built from, or a device that is not there.
    """
    check_device(device)
    fields = {**options, **SCHEMES[scheme], "encoder_normalize_before": PLACEMENTS[placement]}
    unused = [] if "dslm_residual_scaling" in SCHEMES[scheme] else ["dslm_k", "dslm_beta_sq", "dslm_lambda_sq"]
    unused += [] if fields["dslm_init"] == "dslm" else ["dslm_input_corr"]
    cfg = OmegaConf.structured(DeepBertConfig(**{name: fields[name] for name in fields if name not in unused}))
    length = sample["net_input"]["src_tokens"].shape[1]
    cfg.max_positions = max(length, cfg.max_positions)
    torch.manual_seed(seed)
    task = SimpleNamespace(source_dictionary=dictionary, max_positions=lambda: length)
    model = DeepBert.build_model(cfg, task).to(device).train()
    criterion = BertSopLoss(BertSopConfig(), SimpleNamespace(target_dictionary=dictionary))
    rows = layer_rows(scheme, model, cfg, criterion, dictionary.pad(), _on(device, sample))
    return [row | {"placement": placement, "seed": seed} for row in rows]


def checkpoint_rows(
    label: str, run: Run, split: str, sequences: int, seed: int, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Return the layers of a checkpoint on a batch of its task, by its criterion, in training mode.

    Raises:
        ValueError: its criterion has no loss for such a batch, or what :func:`signal_rows` raises.
    """
    criterion = run.task.build_criterion(run.cfg.criterion)
    torch.manual_seed(seed)
    sample = _on(device, task_batch(run.task, split, sequences, seed))
    model = unwrap_checkpoint(run.model).train()
    try:
        rows = layer_rows(label, model, run.cfg.model, criterion, run.task.source_dictionary.pad(), sample)
    finally:
        model.eval()
    return [row | {"placement": "postln" if row["post_norm"] else "preln", "seed": seed} for row in rows]


def layer_rows(
    scheme: str,
    model: nn.Module,
    cfg: Any,
    criterion: FairseqCriterion,
    padding_idx: int,
    sample: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return the rows of :func:`signal_rows` with the theory and the lines of the paper's code beside them.

    ``theory_...`` of a BERT of the package with ReLU or GeLU, None of all others: that of its initialisation, for the
    batch at hand; the shape of the weight gradient is scaled to the measured geometric mean. ``paper_variance`` and
    ``paper_weight_gradient`` are the lines that the paper's code draws through one measured point, None where it draws
    none. ``loss`` is in nats, of the masked tokens where the criterion tells it.
    """
    seen: dict[str, float] = {}

    def loss(model: nn.Module, sample: Mapping[str, Any]) -> Tensor:
        total, size, log = criterion(model, sample)
        seen["loss"] = float(log.get("micro_sum", total.detach() / size))
        return total / size

    rows = signal_rows(model, sample, loss, padding_idx)
    scaled = bool(getattr(cfg, "dslm_residual_scaling", False))
    theory = None
    if isinstance(model, DeepBert) and str(cfg.activation_fn) in ACTIVATIONS:
        theory = theory_of(model, cfg, sample["net_input"], padding_idx)
    for part in dict.fromkeys(row["part"] for row in rows):
        mine = [row for row in rows if row["part"] == part]
        if theory is not None:
            _put_theory(mine, theory)
        lines = {} if scaled else _paper_lines(mine)
        for i, row in enumerate(mine):
            for name in ("variance", "weight_gradient"):
                row[f"paper_{name}"] = float(lines[name][i]) if name in lines else None
    about = {"scheme": scheme, "scaled": scaled, "loss": seen["loss"]}
    return [about | {f"theory_{name}": None for name in THEORY} | row for row in rows]


def theory_of(model: DeepBert, cfg: Any, inputs: Mapping[str, Tensor], padding_idx: int) -> Propagation:
    """Return what the theory says of a BERT's initialisation, given which tokens and segments of a batch coincide."""
    encoder, tokens = model.encoder, inputs["src_tokens"]
    keep = tokens.ne(padding_idx)
    segments = inputs.get("segment_ids")
    if segments is None:
        segments = encoder.segments(tokens, ~keep)
    weights = residual_weights_of(cfg)
    return propagate(
        Encoder(
            dim=cfg.encoder_embed_dim,
            inner=ffn_dim(cfg),
            length=round(float(keep.sum(-1).float().mean())),
            stds=stds_of(cfg, encoder.embed_tokens.num_embeddings, weights),
            weights=weights,
            post_norm=not cfg.encoder_normalize_before,
            dropout=cfg.dropout if model.training else 0.0,
            attention_dropout=cfg.attention_dropout if model.training else 0.0,
            activation_dropout=cfg.activation_dropout if model.training else 0.0,
            activation=cfg.activation_fn,
            token_match=match(tokens, keep),
            segment_match=match(segments, keep) if encoder.num_segments else None,
        )
    )


def match(ids: Tensor, keep: Tensor) -> float:
    """Return the share of pairs of positions of a sequence that have the same id, over all sequences of a batch.

    Args:
        ids: ``B T``.
        keep: positions that count, ``B T``.
    """
    pairs = keep[:, :, None] & keep[:, None, :] & ~torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
    same = (ids[:, :, None] == ids[:, None, :]) & pairs
    return float(same.sum() / pairs.sum().clamp(min=1))


def _put_theory(rows: list[dict[str, Any]], theory: Propagation) -> None:
    measured = np.asarray([row["weight_gradient"] or np.nan for row in rows])
    scale = float(np.exp(np.log(measured).mean()))
    for i, row in enumerate(rows):
        row |= {f"theory_{name}": float(getattr(theory, name)[i]) for name in THEORY}
        row["theory_weight_gradient"] *= scale


def _paper_lines(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the lines for a plain model: Pre-LN forward and backward, Post-LN backward."""
    count, first = len(rows), rows[0]["weight_gradient"]
    if first is None:
        return {}
    if rows[0]["post_norm"]:
        return {"weight_gradient": exponential(first, count)}
    return {"variance": straight_line(rows[-1]["variance"], count), "weight_gradient": inverse_root(first, count)}


def _on(device: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    return utils.apply_to_sample(lambda tensor: tensor.to(device), dict(sample))
