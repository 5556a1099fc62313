"""Time and memory of attention operators, training steps and decoding steps, each beside a peer in the same run."""

from __future__ import annotations

import logging
import multiprocessing
import os
import statistics
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.data import Dictionary
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_NAME_REGISTRY,
    MODEL_DATACLASS_REGISTRY,
    MODEL_REGISTRY,
    BaseFairseqModel,
)
from fairseq.optim.adam import Adam
from omegaconf import OmegaConf
from torch import Tensor

from ..modules.linear_attention import (
    bidirectional_linear_attention,
    chunkwise_linear_attention,
    quadratic_linear_attention,
)

logger = logging.getLogger(__name__)


class Pair(NamedTuple):
    """Our model and its peer of fairseq, by architecture.

    Attributes:
        side: ``decoder`` (language model) or ``encoder`` (masked language model).
        operators: names in ``OPERATORS``, ours first.
        longest: most tokens per sample of the peer's training step, which keeps all its T x T weights.
    """

    side: str
    ours: str
    peer: str
    operators: tuple[str, ...]
    longest: int


PAIRS = {
    "lm": Pair("decoder", "transnormer_t2", "transformer_lm", ("chunk", "quadratic", "sdpa"), 8192),
    "mlm": Pair("encoder", "roberta_transnormer_t2", "roberta", ("product", "sdpa, both ways"), 4096),
}
MASKED_SHARE = 0.15
BY_BLAS = "t2, default BLAS"  # our matrix products by the library that torch and the peer use
OPERATORS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "chunk": lambda q, k, v: chunkwise_linear_attention(q, k, v)[0],
    "quadratic": quadratic_linear_attention,
    "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "product": bidirectional_linear_attention,
    "sdpa, both ways": F.scaled_dot_product_attention,
}


def median_times(calls: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, float]:
    """Return the median seconds of each call; the calls take turns, so that a drifting machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def operator_times(
    lengths: list[int],
    forms: Sequence[str],
    repeats: int,
    heads: int = 8,
    width: int = 64,
    quadratic_limit: int = 2048,
) -> list[dict[str, Any]]:
    """Time forward and backward of attention operators on one sequence, all lengths in turn.

    Args:
        lengths: positions N of the sequence.
        forms: names in ``OPERATORS``.
        repeats: timed turns.
        heads, width: heads H and their width K = V.
        quadratic_limit: longest sequence for the quadratic form, whose scores are H N^2 numbers.
    """
    calls: dict[str, Callable[[], Any]] = {}
    for length in lengths:
        q, k, v, grad = (torch.randn(1, heads, length, width) for _ in range(4))
        inputs = [x.requires_grad_() for x in (q, k, v)]
        for form in forms:
            if form != "quadratic" or length <= quadratic_limit:
                calls[f"{form}@{length}"] = _forward_backward(OPERATORS[form], inputs, grad)
    rows = []
    for name, seconds in median_times(calls, repeats).items():
        form, at = name.split("@")
        rows.append({"quantity": "operator", "form": form, "length": int(at), "seconds": seconds})
    return rows


def _forward_backward(form: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(form(*inputs), inputs, grad)


def build_model(
    name: str, length: int, dim: int, layers: int, heads: int, vocabulary: int, **more: Any
) -> BaseFairseqModel:
    """Build a model as fairseq would, with random weights and a made-up dictionary.

    Args:
        name: architecture of ours, ``transformer_lm`` or ``roberta``; the feed-forward of fairseq's models has 4 D,
            transformer_lm is pre-norm.
        length: tokens per sample.
        dim, layers, heads: model width D, layers L and heads H.
        vocabulary: entries of the dictionary.
        more: options of the model, by their names in its config; they win.
    """
    dictionary = Dictionary()
    for i in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(f"w{i}")
    model = ARCH_MODEL_NAME_REGISTRY[name]
    config = MODEL_DATACLASS_REGISTRY.get(model)
    # fairseq's roberta has no config: its architecture fills in what is not there
    structured: Any = {} if config is None else OmegaConf.to_container(OmegaConf.structured(config), resolve=False)
    side = "encoder" if config is None or "encoder_embed_dim" in structured else "decoder"
    options: dict[str, Any] = {
        f"{side}_embed_dim": dim,
        f"{side}_layers": layers,
        f"{side}_attention_heads": heads,
        f"{side}_ffn_embed_dim": 4 * dim,
    }
    options |= {"tokens_per_sample": length, "max_target_positions": length} if side == "decoder" else {}
    options |= {"max_positions": length} if side == "encoder" else {}
    if name == "transformer_lm":
        options |= {"share_decoder_input_output_embed": True, "decoder_normalize_before": True, "add_bos_token": False}
        options |= {"decoder_input_dim": dim, "decoder_output_dim": dim, "tpu": False}
    filled = Namespace(**{**options, **more})
    if name != model:  # a preset
        ARCH_CONFIG_REGISTRY[name](filled)
    cfg = OmegaConf.create(structured)
    cfg.merge_with(vars(filled))
    ARCH_CONFIG_REGISTRY[model](cfg)
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, max_positions=lambda: length)
    return MODEL_REGISTRY[model].build_model(cfg, task)


class TrainingStep:
    """One update on random tokens: forward, fairseq's criterion, backward, fairseq's Adam.

    Args:
        model: language model, or masked one, of whose tokens 15 % are masked.
        length: tokens per sample.
        tokens: of the batch.
    """

    def __init__(self, model: BaseFairseqModel, length: int, tokens: int) -> None:
        self.model = model.train()
        masked = hasattr(model, "encoder")
        dictionary = (model.encoder if masked else model.decoder).dictionary
        task = SimpleNamespace(target_dictionary=dictionary)
        if masked:
            self.criterion = MaskedLmLoss(SimpleNamespace(tpu=False), task)
        else:
            self.criterion = CrossEntropyCriterion(task, sentence_avg=False)
        self.optimizer = Adam(model.parameters(), lr=1e-4, weight_decay=0.01)
        batch = torch.randint(dictionary.nspecial, len(dictionary), (max(1, tokens // length), length + 1))
        given, target = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()
        if masked:
            given, target = target, target.masked_fill(torch.rand(target.shape) >= MASKED_SHARE, dictionary.pad())
        self.sample = {
            "net_input": {"src_tokens": given},
            "target": target,
            "ntokens": given.numel(),
            "nsentences": len(given),
        }

    def __call__(self) -> None:
        loss, size, _ = self.criterion(self.model, self.sample)
        (loss / size).backward()
        self.update()
        self.optimizer.zero_grad(set_to_none=True)

    def update(self) -> None:
        """Let the optimiser make its step."""
        self.optimizer.step()


def training_times(pair: Pair, lengths: list[int], tokens: int, repeats: int, **size: int) -> list[dict[str, Any]]:
    """Time a training step of both models at every number of tokens per sample; ours also without oneDNN.

    Args:
        pair: the two models; the peer is left out where samples are too long for it.
        lengths: tokens per sample.
        tokens: of a batch, the same at every length.
        repeats: timed turns.
        size: ``dim``, ``layers``, ``heads`` and ``vocabulary``.
    """
    rows = []
    for length in lengths:
        models = {name: build_model(name, length, **size) for name in _possible(pair, length)}
        steps: dict[str, Callable[[], None]] = {n: TrainingStep(model, length, tokens) for n, model in models.items()}
        steps[BY_BLAS] = _without_onednn(steps[pair.ours])
        for name, seconds in median_times(steps, repeats).items():
            parameters = sum(p.numel() for p in models[pair.peer if name == pair.peer else pair.ours].parameters())
            rows.append(
                {"quantity": "step", "form": name, "length": length, "seconds": seconds, "parameters": parameters}
            )
    return rows


def _possible(pair: Pair, length: int) -> list[str]:
    return [pair.ours, pair.peer] if length <= pair.longest else [pair.ours]


def _without_onednn(step: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of flags of other devices, which torch sets along
            with torch.backends.mkldnn.flags(enabled=False):
                step()

    return call


def step_memory(pair: Pair, lengths: list[int], tokens: int, **size: int) -> list[dict[str, Any]]:
    """Return how far a training step raises the peak memory of a fresh process, in MiB; Linux only.

    A model for which there is not enough memory is left out, with a warning. Arguments as in ``training_times``.
    """
    rows = []
    for length in lengths:
        for name in _possible(pair, length):
            peaks = peak_of_step(name, length, tokens, **size)
            if peaks is not None:
                rows.append({"quantity": "memory", "form": name, "length": length, "mebibytes": peaks.step})
    return rows


class Peaks(NamedTuple):
    """Peak memory of a process that makes a training step, in MiB: what the step adds, and all of it."""

    step: float
    process: float


def peak_of_step(name: str, length: int, tokens: int, **options: Any) -> Peaks | None:
    """Return the peak memory of a training step in a fresh process; None, with a warning, where it was killed.

    glibc is told to give freed memory back at once, so that the peak is what the step holds, not what the allocator
    keeps for later. Linux only.

    Args:
        name: architecture.
        length: tokens per sample.
        tokens: of the batch.
        options: as in ``build_model``.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "262144"  # of the process started below; this one has read it already
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh) as pool:
        try:
            return pool.submit(_peak_of_step, name, length, tokens, options).result()
        except BrokenProcessPool:
            logger.warning("%s at %s tokens per sample: the process was killed; too little memory", name, length)
            return None


def _peak_of_step(name: str, length: int, tokens: int, options: dict[str, Any]) -> Peaks:
    torch.set_num_threads(1)
    model = build_model(name, length, **options)
    TrainingStep(model, min(64, length), 64)()  # what the first use of each operation allocates is not of the step
    step = TrainingStep(model, length, tokens)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _memory("VmRSS")
    step()
    peak = _memory("VmHWM")
    return Peaks(peak - before, peak)


def _memory(field: str) -> float:
    """Return ``VmRSS`` (memory now) or ``VmHWM`` (its peak) of this process, in MiB."""
    status = Path("/proc/self/status")
    if not status.is_file():
        raise FileNotFoundError(
            "peak memory is read from /proc/self/status, which this system lacks; use --skip memory"
        )
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


_TOKENS_A_TURN = 8


@torch.no_grad()
def decoding_times(pair: Pair, positions: list[int], repeats: int, **size: int) -> list[dict[str, Any]]:
    """Time the decoding of one token by both models after so many earlier tokens, all positions in turn.

    A turn decodes eight tokens, one after the other as in real use: a model finds in the cache what it left there.

    Args:
        pair: two language models.
        positions: how many tokens were read before.
        repeats: timed turns.
        size: as in ``training_times``.
    """
    calls: dict[str, Callable[[], Any]] = {}
    length = max(positions) + _TOKENS_A_TURN * (repeats + 1)
    for name in (pair.ours, pair.peer):
        model = build_model(name, length, **size).eval()
        for position in positions:
            fill = _prefill if name == pair.ours else _fill_cache
            calls[f"{name} {position}"] = _more_tokens(model, position, fill(model, position))
    rows = []
    for key, seconds in median_times(calls, repeats).items():
        name, at = key.split()
        row = {"quantity": "decoding", "form": name, "length": int(at), "seconds": seconds / _TOKENS_A_TURN}
        rows.append(row)
    return rows


def _more_tokens(model: BaseFairseqModel, position: int, state: dict[str, Any]) -> Callable[[], Any]:
    tokens = torch.full((1, position), 5)

    def call() -> None:
        nonlocal tokens
        for _ in range(_TOKENS_A_TURN):
            tokens = F.pad(tokens, (0, 1), value=5)
            model.decoder(tokens, incremental_state=state)

    return call


def _prefill(model: BaseFairseqModel, position: int) -> dict[str, Any]:
    state: dict[str, Any] = {}
    model.decoder(torch.full((1, position), 5), incremental_state=state, features_only=True)
    return state


def _fill_cache(model: BaseFairseqModel, position: int) -> dict[str, Any]:
    """Put random keys and values of ``position`` tokens into fairseq's cache, which has no other way but one by one."""
    state: dict[str, Any] = {}
    for layer in model.decoder.layers:
        attn = layer.self_attn
        keys, values = (torch.randn(1, attn.num_heads, position, attn.head_dim) for _ in range(2))
        attn._set_input_buffer(state, {"prev_key": keys, "prev_value": values, "prev_key_padding_mask": None})
    return state
