"""Moments of transformer components by simulation: random inputs and output gradients, forward and by autograd.

The statistical model is that of :mod:`..theory.moments`: equally correlated positions, independent features, a random
gradient in the output. Trials run in batches, and only sums are kept of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Parameters = Mapping[str, Any]
Operator = Callable[[Tensor], Tensor]
# Entries of the largest tensor of a batch: 8 MiB of float32, which stay in the cache of a CPU. Which random numbers a
# trial gets depends on it, so a change of it makes old results incomparable in their last digits.
BATCH_ENTRIES = 2**21


class MomentSums:
    """Mean, variance and mean covariance between positions of samples that come in batches.

    The covariance is the T x T sample covariance, over samples and features and without each position's mean, averaged
    over the T (T - 1) entries beside the diagonal. No T x T matrix is needed: those entries add up to the variance of
    the sum over positions less the sum of the positions' variances.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._total = self._squares = self._sum_squares = 0.0
        self._of_position: Tensor | float = 0.0

    def add(self, z: Float[Tensor, "B T D"]) -> None:
        """Count a batch in; sums over one axis are of its own precision, everything after that is float64."""
        sums = z.sum(1).double()
        self.samples += sums.numel()
        self._total += sums.sum().item()
        self._sum_squares += sums.square().sum().item()
        self._squares += z.square().sum(1).double().sum().item()
        self._of_position = self._of_position + z.sum(-1).double().sum(0)

    @property
    def mean(self) -> float:
        return self._total / (self.samples * self._positions)

    @property
    def variance(self) -> float:
        """Population variance of all entries."""
        return self._squares / (self.samples * self._positions) - self.mean**2

    @property
    def covariance(self) -> float:
        """Mean of the sample covariances of two different positions; nan for a single position or sample."""
        n, T = self.samples, self._positions
        if n < 2 or T < 2:
            return math.nan
        of_sum = self._sum_squares - self._total**2 / n
        own = self._squares - float(torch.as_tensor(self._of_position).square().sum()) / n
        return (of_sum - own) / ((n - 1) * T * (T - 1))

    @property
    def _positions(self) -> int:
        return torch.as_tensor(self._of_position).numel()


def correlated_normal(
    shape: tuple[int, int, int],
    *,
    variance: float,
    correlation: float,
    generator: torch.Generator,
    mean: float = 0.0,
) -> Float[Tensor, "B T D"]:
    """Draw normal entries; two positions have ``correlation`` in the same feature, everything else is independent.

    That is ``mean + sigma (sqrt(1 - r) noise + sqrt(r) common)`` with noise of each entry and a part that the positions
    have in common, for 0 <= r <= 1.
    """
    B, _, D = shape
    x = torch.randn(shape, generator=generator, device=generator.device)
    x *= math.sqrt(variance * (1 - correlation))
    if correlation or mean:
        common = torch.randn((B, 1, D), generator=generator, device=generator.device)
        x += mean + math.sqrt(variance * correlation) * common
    return x


def dropout(x: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Drop entries with probability ``p`` and divide the others by ``1 - p``, the masks from ``generator``."""
    if p == 0:
        return x
    mask = torch.rand(x.shape, generator=generator, device=x.device) >= p
    return x * (mask / (1 - p))


def normal_input(parameters: Parameters, count: int, width: int, generator: torch.Generator) -> Float[Tensor, "B T D"]:
    """Draw the input that most components get, with the parameters length, mean, variance and correlation."""
    return correlated_normal(
        (count, int(parameters["length"]), width),
        mean=parameters.get("mean", 0.0),
        variance=parameters.get("variance", 1.0),
        correlation=parameters.get("correlation", 0.0),
        generator=generator,
    )


class Simulation(NamedTuple):
    """How to simulate one component.

    Attributes:
        operator: makes the component for one combination of parameters; weights that all trials share are drawn here.
        widths: parameters that are the width of input and output; None is one feature.
        source: draws the input of a batch: parameters, samples, width, generator -> B T D.
        square: parameters whose product is the size of a matrix that each sample has of its own.
        most: largest batch, for components that draw weights anew for each batch.
        feature_covariance: also measure the covariance of the features of a position.
    """

    operator: Callable[[Parameters, torch.Generator], Operator]
    widths: tuple[str | None, str | None] = (None, None)
    source: Callable[[Parameters, int, int, torch.Generator], Tensor] = normal_input
    square: tuple[str, ...] = ()
    most: int = BATCH_ENTRIES
    feature_covariance: bool = False


def simulate(
    simulation: Simulation, parameters: Parameters, trials: int, generator: torch.Generator
) -> dict[str, float]:
    """Return the measured moments of one combination of parameters.

    Args:
        simulation: the component.
        parameters: ``length``; ``mean`` (0), ``variance`` (1), ``correlation`` (0), ``gradient_variance`` (1) and
            ``gradient_correlation`` (0) of the signal, in brackets when not given; and those of the component.
        trials: samples of L positions, in batches whose tensors have about ``BATCH_ENTRIES`` entries.
        generator: of all that is drawn; its device is where everything runs.

    Returns:
        ``mean``, ``variance``, ``covariance`` of the output, ``gradient_variance`` and ``gradient_covariance`` of the
        gradient of sum(y g) in the input; ``feature_covariance`` where the component asks for it.
    """
    operator = simulation.operator(parameters, generator)
    wide_in, wide_out = (int(parameters[name]) if name else 1 for name in simulation.widths)
    length = int(parameters["length"])
    own = math.prod(int(parameters[name]) for name in simulation.square)
    batch = max(1, min(simulation.most, BATCH_ENTRIES // max(length * wide_in, length * wide_out, own)))
    out, back, features = MomentSums(), MomentSums(), MomentSums()
    for start in range(0, trials, batch):
        count = min(batch, trials - start)
        x = simulation.source(parameters, count, wide_in, generator).requires_grad_()
        y = operator(x)
        g = correlated_normal(
            (count, length, wide_out),
            variance=parameters.get("gradient_variance", 1.0),
            correlation=parameters.get("gradient_correlation", 0.0),
            generator=generator,
        )
        (gradient,) = torch.autograd.grad(y, x, g)  # of sum(y g)
        y = y.detach()
        out.add(y)
        back.add(gradient)
        if simulation.feature_covariance:
            features.add(y.transpose(1, 2))
    measured = {"mean": out.mean, "variance": out.variance, "covariance": out.covariance}
    measured |= {"gradient_variance": back.variance, "gradient_covariance": back.covariance}
    return measured | ({"feature_covariance": features.covariance} if simulation.feature_covariance else {})


def _function(form: Callable[[Tensor], Tensor]) -> Callable[[Parameters, torch.Generator], Operator]:
    return lambda _parameters, _generator: form


def _weights(generator: torch.Generator, *shape: int, gain: float) -> Tensor:
    """Draw normal weights whose variance is ``gain`` over the size of the last but one axis, the input."""
    w = torch.randn(shape, generator=generator, device=generator.device)
    return w * math.sqrt(gain / shape[-2])


def _linear(parameters: Parameters, generator: torch.Generator) -> Operator:
    d_in, d_out = int(parameters["d_in"]), int(parameters["d_out"])
    return lambda x: x @ _weights(generator, len(x), d_in, d_out, gain=parameters["weight_gain"])


def _dropout(parameters: Parameters, generator: torch.Generator) -> Operator:
    return lambda x: dropout(x, parameters["p"], generator)


def _layer_norm(parameters: Parameters, _generator: torch.Generator) -> Operator:
    return lambda x: F.layer_norm(x, (int(parameters["d"]),))


def attend(
    x: Float[Tensor, "B T D"], w: Float[Tensor, "D three_E"], heads: int, p: float, generator: torch.Generator
) -> Float[Tensor, "B T E"]:
    """Return softmax self-attention without mask and output projection, scores over the root of a head's width.

    Args:
        x: input.
        w: weights of queries, keys and values, one beside the other.
        heads: H, which divides E.
        p: dropout of the attention probabilities.
        generator: of its masks.
    """
    B, T, _ = x.shape
    q, k, v = (x @ w).view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return (dropout(scores.softmax(-1), p, generator) @ v).transpose(1, 2).flatten(2)


def _query_key_value(parameters: Parameters, generator: torch.Generator, d_in: int, d_out: int) -> Tensor:
    gains = [parameters["score_gain"], parameters["score_gain"], parameters["value_gain"]]
    return torch.cat([_weights(generator, d_in, d_out, gain=gain) for gain in gains], dim=1)


def _attention(parameters: Parameters, generator: torch.Generator) -> Operator:
    w = _query_key_value(parameters, generator, int(parameters["d_in"]), int(parameters["d_out"]))
    return lambda x: attend(x, w, 1, parameters["p"], generator)


def _attention_block(parameters: Parameters, generator: torch.Generator) -> Operator:
    d, heads, p, p_a = int(parameters["d"]), int(parameters["heads"]), parameters["p"], parameters["attention_p"]

    def block(x: Tensor) -> Tensor:
        y = attend(x, _query_key_value(parameters, generator, d, d), heads, p_a, generator)
        return dropout(y @ _weights(generator, d, d, gain=parameters["output_gain"]), p, generator)

    return block


def _ffn_block(parameters: Parameters, generator: torch.Generator) -> Operator:
    d, f = int(parameters["d"]), int(parameters["f"])
    activation: Operator = F.gelu if parameters["activation"] == "gelu" else F.relu

    def block(x: Tensor) -> Tensor:
        inner = activation(x @ _weights(generator, d, f, gain=parameters["first_gain"]))
        return dropout(inner @ _weights(generator, f, d, gain=parameters["second_gain"]), parameters["p"], generator)

    return block


def _embedding_sums(
    parameters: Parameters, count: int, width: int, generator: torch.Generator
) -> Float[Tensor, "B T D"]:
    """Draw T[w] + P[i] + S[s]: Zipf tokens, two segments cut at a uniform position or one, tables of their own."""
    V, length, device = int(parameters["vocabulary"]), int(parameters["length"]), generator.device
    shares = 1 / torch.arange(1, V + 1, dtype=torch.float64, device=device)
    tokens = torch.multinomial(shares, count * length, replacement=True, generator=generator)
    # Only rows that somebody looks up are drawn.
    types, rows = tokens.unique(return_inverse=True)
    sizes = (len(types), length, int(parameters["segments"]))
    words, places, segments = (torch.randn(n, width, generator=generator, device=device) for n in sizes)
    places_in_text = torch.arange(length, device=device)
    cuts = torch.randint(0, length + 1, (count, 1), generator=generator, device=device)
    which = (places_in_text >= cuts).long().clamp_(max=len(segments) - 1)
    total = words[rows.view(count, length)] + places + segments[which]
    return total * math.sqrt(parameters["table_variance"])


# Sequences that share one draw of weights or tables where these are drawn anew.
_SHARING = 8

SIMULATIONS: Mapping[str, Simulation] = {
    "linear": Simulation(_linear, ("d_in", "d_out"), square=("d_in", "d_out")),
    "relu": Simulation(_function(F.relu)),
    "gelu": Simulation(_function(F.gelu)),
    "layernorm": Simulation(_layer_norm, ("d", "d"), feature_covariance=True),
    "dropout": Simulation(_dropout, ("d", "d")),
    "softmax": Simulation(_function(lambda x: x.softmax(1))),
    "attention": Simulation(_attention, ("d_in", "d_out"), square=("length", "length")),
    "embeddings": Simulation(_dropout, ("d", "d"), source=_embedding_sums, most=_SHARING),
    "ffn_block": Simulation(_ffn_block, ("d", "d"), most=_SHARING),
    "attention_block": Simulation(_attention_block, ("d", "d"), most=_SHARING),
}
"""Components by name; for softmax the positions are the entries of a row."""
