"""Weight matrices as associative memories: what single products of them recall, without running the model.

The memories of a model of two layers or more, with ``w_E``, ``w_U`` and ``p`` the rows of token embedding, output
matrix and positions (column vectors are mapped; what is no matrix is the identity):

* ``output_scores`` of W_O of layer 2, ``g(v, u) = w_U(u) . W_O W_V w_E(v)``, and ``wo1_acc``: share of the tokens v
  whose largest score is that of v itself;
* ``token_key_scores`` of W_K of layer 2, ``g(v, u) = (W_Q w_E(v)) . (W_K W_O' W_V' w_E(u))`` with W_O' and W_V' of
  layer 1, and ``wk1_acc``: share of the triggers whose largest score among triggers is their own;
* ``position_key_scores`` of W_K of layer 1, ``g(t, s) = (W_Q p_t) . (W_K p_s)``, and ``wk0_acc``: share of the
  positions t = 1 .. n-1 whose largest score among s = 0 .. n-2 is that of t - 1. Later positions compete: no mask;
* ``ff1_loss`` of the feed-forward map F of layer 2: mean over tokens v that are no fixed triggers of the
  Kullback-Leibler divergence of softmax(W_U F(w_E(v))) from the bigram distribution after v, in nats.

No norm, no scale and no residual stream take part; heads are taken together. Everything is in float64, and the first
of equal scores is the largest, so that memories of zeros recall nothing but the first candidate.

Source: the original code of Bietti et al. 2023, "Birth of a Transformer: A Memory Viewpoint", arXiv:2306.00802; its
names are kept.

Of the package's language models the same matrices are taken, without biases, as norms are left out; their embeddings
with the factor that the model gives them. A score has a meaning where attention compares by it: not with relative
positions or the feature map of linear attention. Then ``wk1_acc`` or ``wk0_acc`` has no value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from ..modules.activations import identity
from ..modules.attention import LinearAttention, LocalAttention, SelfAttention
from ..modules.layer import TransformerLayer
from ..modules.local_attention import SOFTMAX
from .hidden_states import evaluating

Map = Callable[[Float[Tensor, "... D"]], Float[Tensor, "... D"]]
Matrix = Float[Tensor, "D D"] | None  # None is the identity


class LayerMemories(NamedTuple):
    """The maps of one layer, in float64; the image of h under a matrix W is ``W h``.

    Attributes:
        query, key, value, output: of the attention; biases are left out.
        plain_scores: whether it compares vectors by ``(W_Q h) . (W_K h')``, whatever their positions.
        feed_forward: the map alone, without norm and residual stream; None where the layer has none.
    """

    query: Matrix
    key: Matrix
    value: Matrix
    output: Matrix
    feed_forward: Map | None
    plain_scores: bool = True


class Memories(NamedTuple):
    """What the probes look at, in float64.

    Attributes:
        tokens: token embeddings ``N D``.
        positions: what is added to them, ``T D``; None where positions are not vectors.
        unembedding: the matrix ``N D`` that gives the logits, all factors included.
        layers: of the model, in their order.
    """

    tokens: Float[Tensor, "N D"]
    positions: Float[Tensor, "T D"] | None
    unembedding: Float[Tensor, "N D"]
    layers: Sequence[LayerMemories]


@torch.no_grad()
def memories_of(model: nn.Module) -> Memories | None:
    """Return the memories of a model, copied to float64; None for a model without such matrices.

    They are those of the models of induction heads and of the language models of this package.
    """
    view: Any = getattr(model, "decoder", model)
    if not callable(getattr(view, "output_matrix", None)):
        return None
    positions = view.position_vectors()
    return Memories(
        getattr(view, "embed_scale", 1.0) * view.embed_tokens.weight.double(),
        None if positions is None else positions.double(),
        view.output_matrix().double(),
        [_of_layer(layer) for layer in view.layers],
    )


def _of_layer(layer: Any) -> LayerMemories:
    if isinstance(layer, TransformerLayer):
        query, key, value = layer.attn.qkv.weight.double().chunk(3)
        output, plain = layer.attn.out.weight.double(), compares_plainly(layer.attn)
        return LayerMemories(query, key, value, output, doubled(layer.ffn), plain)
    return LayerMemories(_matrix(layer.wq), _matrix(layer.wk), _matrix(layer.wv), _matrix(layer.wo), doubled(layer.ffn))


def compares_plainly(attention: SelfAttention) -> bool:
    """Return whether the key with the largest ``(W_Q h) . (W_K h')`` gets the largest weight, wherever it stands.

    It does not with relative positions, nor with a feature map of queries and keys, which is not linear, nor where
    weights are squares of scores.
    """
    if attention.lrpe is not None or getattr(attention, "axis", "time") == "batch":
        return False
    if isinstance(attention, LocalAttention):
        return attention.activation == SOFTMAX
    if isinstance(attention, LinearAttention):
        return attention.activation is identity
    return getattr(attention, "weight_map", SOFTMAX) == SOFTMAX


def doubled(module: nn.Module | None) -> Map | None:
    """Return a module as a map in float64 that has its parameters of now; the module stays as it is."""
    if module is None:
        return None
    tensors = {name: tensor.detach().double() for name, tensor in module.state_dict().items()}

    def call(x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        with evaluating(module):  # without dropout
            return functional_call(module, tensors, (x[None],))[0]

    return call


def weight_probes(
    memories: Memories | None,
    triggers: Sequence[int] | None,
    bigram: Float[Tensor, "N N"],
    cutoff: int = 64,
) -> dict[str, float | None]:
    """Return name -> value of every probe; None where it has no meaning, as for a model of one layer.

    Args:
        memories: of the model; None for one that has none.
        triggers: the fixed ones in their order; None where they are drawn for each sequence: all tokens then.
        bigram: probabilities of the second token given the first.
        cutoff: n of ``wk0_<n>_acc``, ``wk0_acc`` of the first n positions.
    """
    found: dict[str, float | None] = dict.fromkeys(probe_names(cutoff))
    if memories is not None and len(memories.layers) >= 2:
        values = (
            wo1_acc(memories),
            wk1_acc(memories, triggers),
            wk0_acc(memories),
            wk0_acc(memories, cutoff),
            ff1_loss(memories, triggers, bigram),
        )
        found = dict(zip(found, values, strict=True))
    return found


def probe_names(cutoff: int) -> tuple[str, ...]:
    """Return the names of the probes."""
    return "wo1_acc", "wk1_acc", "wk0_acc", f"wk0_{cutoff}_acc", "ff1_loss"


@torch.no_grad()
def output_scores(memories: Memories) -> Float[Tensor, "N N"]:
    """Return ``g(v, u)`` of W_O of layer 2: how strongly attending to token v speaks for token u."""
    layer = memories.layers[1]
    return _mapped(layer.output, _mapped(layer.value, memories.tokens)) @ memories.unembedding.T


@torch.no_grad()
def token_key_scores(memories: Memories, tokens: Sequence[int] | None = None) -> Float[Tensor, "n n"]:
    """Return ``g(v, u)`` of W_K of layer 2: how a query of token v fits a key that layer 1 has written token u to.

    Args:
        tokens: the candidates, for v and for u; None for all.

    Raises:
        ValueError: the second layer compares in another way.
    """
    first, second = memories.layers[:2]
    _check_plain(second, "second")
    embedded = memories.tokens if tokens is None else memories.tokens[list(tokens)]
    keys = _mapped(second.key, _mapped(first.output, _mapped(first.value, embedded)))
    return _mapped(second.query, embedded) @ keys.T


@torch.no_grad()
def position_key_scores(memories: Memories, cutoff: int | None = None) -> Float[Tensor, "n n"]:
    """Return ``g(t, s)`` of W_K of layer 1 for queries of position t and keys of position s, without causal mask.

    Args:
        cutoff: number n of positions; None for all.

    Raises:
        ValueError: the model adds no vectors for positions, or its first layer compares in another way.
    """
    if memories.positions is None:
        raise ValueError("the model adds no vectors for positions: they have no scores")
    positions, layer = memories.positions[:cutoff], memories.layers[0]
    _check_plain(layer, "first")
    return _mapped(layer.query, positions) @ _mapped(layer.key, positions).T


def wo1_acc(memories: Memories) -> float:
    """Return the share of the tokens that W_O of layer 2 recalls."""
    return _recalled(output_scores(memories))


def wk1_acc(memories: Memories, triggers: Sequence[int] | None) -> float | None:
    """Return the share of the triggers that W_K of layer 2 recalls among them.

    None where there is none, or where the layer does not compare by queries and keys alone.
    """
    if (triggers is not None and not len(triggers)) or not memories.layers[1].plain_scores:
        return None
    return _recalled(token_key_scores(memories, triggers))


def wk0_acc(memories: Memories, cutoff: int | None = None) -> float | None:
    """Return the share of the positions, but the first, for which W_K of layer 1 recalls the one before.

    Args:
        cutoff: number of positions; None for all. Without two of them, or any, the value is None; also where the layer
            does not compare by queries and keys alone.
    """
    if memories.positions is None or len(memories.positions[:cutoff]) < 2 or not memories.layers[0].plain_scores:
        return None
    return _recalled(position_key_scores(memories, cutoff)[1:, :-1])


@torch.no_grad()
def ff1_loss(memories: Memories, triggers: Sequence[int] | None, bigram: Float[Tensor, "N N"]) -> float | None:
    """Return how far the feed-forward map of layer 2 is from the bigram distribution, in nats.

    None where there is no such map, or every token is a trigger.
    """
    feed_forward = memories.layers[1].feed_forward
    kept = torch.ones(len(memories.tokens), dtype=torch.bool, device=memories.tokens.device)
    kept[list(triggers or [])] = False
    if feed_forward is None or not kept.any():
        return None
    logs = torch.log_softmax(feed_forward(memories.tokens[kept]) @ memories.unembedding.T, dim=-1)
    wanted = bigram.to(logs)[kept]
    return float((torch.xlogy(wanted, wanted) - wanted * logs).sum(-1).mean())


def _recalled(scores: Float[Tensor, "n n"]) -> float:
    best = scores.argmax(-1)
    return int((best == torch.arange(len(scores), device=scores.device)).sum()) / len(scores)


def _check_plain(layer: LayerMemories, which: str) -> None:
    if not layer.plain_scores:
        raise ValueError(f"the attention of the {which} layer does not compare by queries and keys alone: no scores")


def _mapped(matrix: Matrix, rows: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    return rows if matrix is None else rows @ matrix.T


def _matrix(linear: nn.Linear | None) -> Matrix:
    return None if linear is None else linear.weight.double()
