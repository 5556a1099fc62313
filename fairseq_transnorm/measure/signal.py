"""How a signal travels through the layers of a model: variances, correlations and gradients of one training step.

Everything is taken on the *stream*, the running sum that the layers add to. In a model with the norm before each
sublayer that is a layer's output; with the norm after it, the sum before a layer's last norm, since the norm's output
has variance 1 whatever happens. Padding is left out of everything but the gradients of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

Loss = Callable[[nn.Module, Mapping[str, Any]], Tensor]


def moments(x: Float[Tensor, "B T D"], keep: Bool[Tensor, "B T"]) -> tuple[float, float]:
    """Return the variance of the numbers at the positions to ``keep``, and the correlation between these positions.

    The variance is over all of them, mean removed (population form). The correlation is the mean, over all pairs of
    positions of a sequence, of the covariance of their channels, divided by the mean variance of a position's channels;
    not a number where no sequence has two positions, or nothing varies.
    """
    x = x.detach().double()
    rows = x[keep]
    centred = (x - x.mean(-1, keepdim=True)).masked_fill(~keep[..., None], 0.0)
    counts = keep.sum(-1)
    pairs = float((counts * (counts - 1)).sum())
    own = float(centred.square().sum())
    # sum over i != j of x_i . x_j = |sum of x_i|^2 - sum of |x_i|^2
    mixed = float(centred.sum(1).square().sum()) - own
    correlation = mixed / pairs / (own / len(rows)) if pairs and own else math.nan
    return float(rows.var(correction=0)), correlation


def layer_stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the layers to look at: the longest list called ``layers`` of each part of the model, such as encoder.

    Raises:
        LookupError: there is none.
    """
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        part, _, last = name.rpartition(".")
        if isinstance(module, nn.ModuleList) and last == "layers" and len(module):
            part = part.partition(".")[0] or "model"
            if part not in found or len(module) > len(found[part]):
                found[part] = module
    if not found:
        parts = [name for name, _ in model.named_children()]
        raise LookupError(f"{type(model).__name__} has no list of layers called 'layers'; at the top are {parts}")
    return found


def signal_rows(model: nn.Module, sample: Mapping[str, Any], loss: Loss, padding_idx: int) -> list[dict[str, Any]]:
    """Run one forward and backward pass; return what each layer did to the signal and to its gradient.

    Only numbers are kept, so the memory is that of a training step. The model stays in its mode, training with dropout
    or not; its gradients are thrown away before and after.

    Args:
        model: any model with lists of layers called ``layers``; batch first, or time first as fairseq's own.
        sample: fairseq's, with ``net_input``. A decoder's positions are those of ``prev_output_tokens`` where these
            are given, everything else's those of ``src_tokens``.
        loss: maps model and sample to a number to go back from.
        padding_idx: token that is left out.

    Returns:
        A row a layer: ``part``, ``layer`` (from 1), ``layers``, ``width`` of the stream, ``post_norm`` (whether the
        stream is the sum before the layer's last norm), ``variance`` and ``correlation`` of the stream,
        ``gradient_variance`` and ``gradient_correlation`` of the gradient with respect to it, ``gradient_ratio``
        (gradient variance over the last layer's), ``weight_gradient`` (2-norm of the gradient of the layer's weight
        matrices together; None where none of them is trained).

    Raises:
        LookupError: no layers.
        ValueError: a layer did not run, or hides its inside; its output is not one of positions by channels; no
            gradient reaches it; or a number is not finite.
    """
    stacks = layer_stacks(model)
    tokens = _tokens(sample)
    watched = [
        _Layer(part, number, layer, tokens.get(part, tokens["encoder"]).ne(padding_idx))
        for part, layers in stacks.items()
        for number, layer in enumerate(layers, start=1)
    ]
    model.zero_grad(set_to_none=True)
    with _watching(watched) as finish:
        value = loss(model, sample)
        finish()
        value.backward()
    rows = []
    for part, layers in stacks.items():
        mine = [layer for layer in watched if layer.part == part]
        for layer in mine:
            layer.check_run()
        last = mine[-1].numbers.get("gradient_variance", 0.0)
        if not last > 0:
            raise ValueError(f"no gradient reaches the last layer of the {part} ({last}); has the batch targets?")
        rows += [layer.row(len(layers), last) for layer in mine]
    model.zero_grad(set_to_none=True)
    return rows


def _tokens(sample: Mapping[str, Any]) -> dict[str, Tensor]:
    inputs = sample.get("net_input")
    if not isinstance(inputs, Mapping) or "src_tokens" not in inputs:
        raise ValueError(f"a sample with net_input and src_tokens in it is needed; this one has {sorted(sample)}")
    source = inputs["src_tokens"]
    return {"encoder": source, "decoder": inputs.get("prev_output_tokens", source)}


@dataclass
class _Layer:
    """One layer, the positions that count in it, and what was seen."""

    part: str
    number: int
    module: nn.Module
    keep: Tensor
    numbers: dict[str, float] = field(default_factory=dict)
    width: int = 0
    post_norm: bool = False
    norm: tuple[Tensor, Tensor] | None = None  # input and output of the norm that ran last

    @property
    def name(self) -> str:
        return f"layer {self.number} of the {self.part}"

    def see_norm(self, given: Tensor, output: Tensor) -> None:
        self.norm = given, output

    def see_output(self, output: Any) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        if not isinstance(stream, Tensor) or stream.dim() != 3:
            raise ValueError(f"{self.name}: its output is no tensor of positions by channels, but {type(stream)}")
        self.post_norm = self.norm is not None and self.norm[1] is stream
        if self.post_norm:
            assert self.norm is not None
            stream = self.norm[0]
        self.norm, self.width = None, stream.shape[-1]  # the norm's tensors are not kept alive
        if not stream.requires_grad:
            raise ValueError(f"{self.name}: its output needs no gradient; is every parameter before it frozen?")
        self.numbers["variance"], self.numbers["correlation"] = self._moments(stream)
        stream.register_hook(self.see_gradient)

    def see_gradient(self, grad: Tensor) -> None:
        self.numbers["gradient_variance"], self.numbers["gradient_correlation"] = self._moments(grad)

    def check_run(self) -> None:
        if "variance" not in self.numbers:
            raise ValueError(f"{self.name} did not run; switch off what leaves layers out, such as --encoder-layerdrop")

    def row(self, layers: int, last: float) -> dict[str, Any]:
        numbers = self.numbers
        if "gradient_variance" not in numbers:
            raise ValueError(f"no gradient reaches {self.name}; does the loss depend on it?")
        squares = [
            float(p.grad.detach().double().square().sum())
            for name, p in self.module.named_parameters()
            if p.dim() == 2 and name.endswith("weight") and p.grad is not None
        ]
        weight = math.sqrt(sum(squares)) if squares else None
        for what, number in {**numbers, "weight_gradient": weight or 0.0}.items():
            if not math.isfinite(number) and "correlation" not in what:
                raise ValueError(f"{self.name}: its {what.replace('_', ' ')} is {number}; the signal is lost")
        return {
            "part": self.part,
            "layer": self.number,
            "layers": layers,
            "width": self.width,
            "post_norm": self.post_norm,
            **numbers,
            "gradient_ratio": numbers["gradient_variance"] / last,
            "weight_gradient": weight,
        }

    def _moments(self, x: Tensor) -> tuple[float, float]:
        shape, keep = tuple(x.shape[:2]), self.keep
        time_first = shape == tuple(keep.shape[::-1])
        if time_first and shape == tuple(keep.shape):
            time_first = type(self.module).__module__.startswith("fairseq.")
        if not time_first and shape != tuple(keep.shape):
            raise ValueError(f"{self.name}: {shape} positions come out of it, {tuple(keep.shape)} tokens go in")
        return moments(x.transpose(0, 1) if time_first else x, keep)


@contextmanager
def _watching(layers: list[_Layer]) -> Iterator[Callable[[], None]]:
    """Hang hooks on ``layers``; yield what ends the forward pass, after which layers that run again are not looked at.

    A norm ends a layer when the layer returns the very tensor that the norm returned.
    """
    running = [True]

    def norm_hook(layer: _Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if running and inputs:
                layer.see_norm(inputs[0], output)

        return hook

    def layer_hook(layer: _Layer) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if running:
                layer.see_output(output)

        return hook

    with ExitStack() as stack:
        for layer in layers:
            if hasattr(layer.module, "precheckpoint_forward"):
                raise ValueError(
                    f"{layer.name}: fairseq's activation checkpointing hides what happens in it; undo it first, with "
                    "fairseq.modules.checkpoint_activations.unwrap_checkpoint(model)"
                )
            for module in layer.module.modules():
                if "norm" in type(module).__name__.lower():
                    stack.callback(module.register_forward_hook(norm_hook(layer)).remove)
            stack.callback(layer.module.register_forward_hook(layer_hook(layer)).remove)
        yield running.clear
