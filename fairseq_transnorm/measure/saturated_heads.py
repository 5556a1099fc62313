"""How many positions each head of the saturated network attends to.

The network with all parameters times c stands for the saturated one; beside it runs the same network with the exact
hardmax in place of every softmax. Source: Merrill et al. 2021, arXiv:2010.09697, section 4.3.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from fairseq.models import FairseqLanguageModel
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm import tqdm

from ..modules.growth_attention import MASKS, GrowthAttention
from .attention import Competition, Weigh, attention_modules, hardmax_of, replaced_weights, softmax_attentions
from .batches import Batch, SentenceBatches, without_ends
from .checkpoints import Run
from .hidden_states import HiddenStates
from .layer_saturation import warn_of_positions
from .parameters import layer_of
from .scaling import SATURATED, ScaledNetwork

logger = logging.getLogger(__name__)

THRESHOLD = 1e-5  # a position with more weight than this counts as attended
HARDMAX = "hardmax"
FUTURE, PREFIX = "uniform over the future", "uniform over the prefix"  # heads that the original's figure is read with
_NUMBERS = 2**22  # weights of one layer that are held at once


class HeadSums(NamedTuple):
    """Sums over queries, one number a head, for statistics over any number of batches.

    Attributes:
        queries: how many queries.
        attended: sum of n, the positions with a weight above the threshold.
        squared: sum of n^2.
        several: queries with n > 1.
        forbidden: weight on positions that the query must not see: later ones where the model is causal, padding where
            it is not.
        choices: queries that may see at least two positions.
        means: those of them that attend to all that they may see, and to nothing else.
    """

    queries: int
    attended: Tensor
    squared: Tensor
    several: Tensor
    forbidden: Tensor
    choices: int
    means: Tensor

    def __add__(self, other: HeadSums) -> HeadSums:  # type: ignore[override]
        return HeadSums(
            self.queries + other.queries,
            self.attended + other.attended,
            self.squared + other.squared,
            self.several + other.several,
            self.forbidden + other.forbidden,
            self.choices + other.choices,
            self.means + other.means,
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the statistics of each head; the standard deviation is the unbiased one."""
        for attended, squared, several, forbidden, means in zip(
            *(column.tolist() for column in (self.attended, self.squared, self.several, self.forbidden, self.means)),
            strict=True,
        ):
            # whole numbers: nothing is lost in the difference
            spread = (squared * self.queries - attended**2) / (self.queries * max(1, self.queries - 1))
            yield {
                "positions_attended": attended / self.queries,
                "split_probability": several / self.queries,
                "std_attended": math.sqrt(spread),
                "forbidden_weight": forbidden / self.queries,
                "mean_share": means / self.choices if self.choices else None,
                "queries": self.queries,
            }


def head_sums(
    weights: Float[Tensor, "B H T S"],
    allowed: Tensor | None,
    keep: Bool[Tensor, "B T"],
    threshold: float = THRESHOLD,
) -> HeadSums:
    """Count what the queries to ``keep`` attend to.

    Args:
        weights: of one layer; rows sum to 1.
        allowed: which positions a query may see, broadcasts against the weights; None for all.
        keep: True at the queries that count.
        threshold: least weight of an attended position.

    Raises:
        ValueError: a query attends to nothing: its weights are no numbers, or spread over more than 1/threshold keys.
    """
    attends = weights > threshold
    n = attends.sum(-1).transpose(1, 2)[keep]  # Q H
    if n.numel() and not n.amin():
        raise ValueError("a query has no weight above the threshold; are its scores finite?")
    if allowed is None:
        allowed = torch.ones((), dtype=torch.bool, device=weights.device)
    visible = torch.broadcast_to(allowed, (len(weights), 1, *weights.shape[2:]))
    choice = (visible.sum(-1)[:, 0] > 1)[keep]  # Q
    whole = (attends == visible).all(-1).transpose(1, 2)[keep]
    lost = weights.masked_fill(visible, 0.0).sum(-1, dtype=torch.float64).transpose(1, 2)[keep]
    return HeadSums(
        queries=len(n),
        attended=n.sum(0).cpu(),
        squared=n.square().sum(0).cpu(),
        several=(n > 1).sum(0).cpu(),
        forbidden=lost.sum(0).cpu(),
        choices=int(choice.sum()),
        means=whole[choice].sum(0).cpu(),
    )


class SaturatedHeads:
    """Statistics of the heads of ``f(x; c theta)`` and of the network with hardmax attention, batch after batch.

    Args:
        model: what ``HiddenStates`` can read, with at least one softmax.
        c: factor that stands for infinity.
        threshold: least weight of an attended position.
        tolerance: of ties in the hardmax, in scores of the scaled network.
        scale_positions: see ``ScaledNetwork``.

    Raises:
        ValueError: as of ``softmax_attentions``.
    """

    def __init__(
        self,
        model: nn.Module,
        c: float = SATURATED,
        threshold: float = THRESHOLD,
        tolerance: float = 0.0,
        scale_positions: bool = False,
    ) -> None:
        self.model = model
        self.modules = softmax_attentions(model)
        self.threshold = threshold
        self.scaled = ScaledNetwork(HiddenStates(model), c, scale_positions=scale_positions)
        self.maps: dict[str, Weigh] = {
            f"c = {c:g}": lambda _name, competition: competition.weights(),
            HARDMAX: hardmax_of(model, tolerance),
        }

    def __call__(self, tokens: Tensor, keep: Tensor) -> dict[tuple[str, str], HeadSums]:
        """Return the sums of one batch by network (``c = ...`` or ``hardmax``) and name of the attention.

        Args:
            tokens: ``B T``, padded on the right.
            keep: True at the queries that count.

        Raises:
            ValueError: a layer's scores are not finite.
        """
        found: dict[tuple[str, str], HeadSums] = {}
        parts = max(1, _NUMBERS // (self._heads() * tokens.shape[1] ** 2))
        for some, kept in zip(tokens.split(parts), keep.split(parts), strict=True):
            for network, weigh in self.maps.items():
                with replaced_weights(self.model, self._counting(network, weigh, kept, found)):
                    self.scaled(some)
        return found

    def _counting(self, network: str, weigh: Weigh, keep: Tensor, found: dict[tuple[str, str], HeadSums]) -> Weigh:
        def count(name: str, competition: Competition) -> Tensor:
            weights = weigh(name, competition)
            try:
                sums = head_sums(weights, competition.allowed, keep, self.threshold)
            except ValueError as error:
                raise ValueError(f"{name}, {network}: {error} Try float64 (--float64)") from error
            key = (network, name)
            found[key] = found[key] + sums if key in found else sums
            return weights

        return count

    def _heads(self) -> int:
        return max(int(module.num_heads) for _, module in self.modules.values())  # type: ignore[arg-type]


def set_mask(model: nn.Module, mask: str) -> None:
    """Give the attentions of a norm-growth model another mask than it was trained with.

    Raises:
        ValueError: an unknown mask, or a model without such attentions.
    """
    found = [module for module in model.modules() if isinstance(module, GrowthAttention)]
    if mask not in MASKS or not found:
        raise ValueError(f"cannot give {type(model).__name__} the mask {mask!r}; norm-growth models have {MASKS}")
    for module in found:
        module.mask = mask


def mask_of(model: nn.Module) -> str:
    """Return ``causal``, ``multiplicative``, or ``none`` for a model that sees the whole sequence."""
    masks = {module.mask for module in model.modules() if isinstance(module, GrowthAttention)}
    return masks.pop() if len(masks) == 1 else "causal" if isinstance(model, FairseqLanguageModel) else "none"


def fill_up(batch: Batch, length: int, filler: int) -> Batch:
    """Return a batch cut to ``length`` positions, or filled up to them with the symbol ``filler``."""
    more = length - batch.tokens.shape[1]  # a negative number cuts
    keep = F.pad(batch.keep, (0, more), value=False)
    return Batch(F.pad(batch.tokens, (0, more)).masked_fill(~keep, filler), keep)


def uniform_sums(keep: Tensor) -> dict[str, HeadSums]:
    """Return what a head would give that attends uniformly to the future of each query, or to its prefix.

    Under the multiplicative mask the score of every later key is 0, which wins where all others are negative; the last
    query has no later key and sees one position.

    Args:
        keep: ``B T``, True at the queries that count.
    """
    length = keep.shape[1]
    earlier = torch.ones(length, length, device=keep.device).tril()
    later = 1 - earlier
    later[-1, 0] = 1.0
    heads = {FUTURE: later, PREFIX: earlier}
    return {
        name: head_sums((w / w.sum(-1, keepdim=True)).expand(len(keep), 1, -1, -1), earlier > 0, keep)
        for name, w in heads.items()
    }


def head_rows(
    run: Run,
    label: str,
    batches: SentenceBatches,
    length: int | None = None,
    all_positions: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Return one row a network, layer and head, and for causal models those of the uniform heads.

    Args:
        run: a language model or masked language model.
        label: its name in the table.
        batches: what it reads.
        length: cut or pad every sentence to so many positions. By default batches are padded to their longest, or to
            the longest of all where padding changes the numbers: under the multiplicative mask, and with
            ``all_positions``.
        all_positions: as the original code does, fill sentences up with the first word of the dictionary instead of
            padding, and count the queries there too.
        options: of ``SaturatedHeads``.

    Raises:
        ValueError: a length that the model does not have, or what ``SaturatedHeads`` raises.
    """
    limit, mask = run.model.max_positions(), mask_of(run.model)
    if length is not None and not 2 <= length <= limit:
        raise ValueError(f"--length {length} must lie between 2 and the {limit} positions of {run.path}")
    if length is None and (all_positions or mask == "multiplicative"):
        length = max(map(len, batches.rows))
    heads = SaturatedHeads(run.model, **options)
    warn_of_positions(label, run.model, options.get("scale_positions", False))
    _warn_of_linear(label, run.model, len(heads.modules))
    filler = batches.pad
    if all_positions:  # a word
        filler = run.task.filler if without_ends(run) else run.task.source_dictionary.nspecial
    sums: dict[tuple[str, str], HeadSums] = {}
    for batch in tqdm(list(batches), desc=label, disable=None, leave=False):
        tokens, keep = batch if length is None else fill_up(batch, length, filler)
        keep = torch.ones_like(keep) if all_positions else keep
        found = heads(tokens, keep)
        if mask != "none":
            found |= {(name, ""): value for name, value in uniform_sums(keep).items() if length or name == PREFIX}
        for key, value in found.items():
            sums[key] = sums[key] + value if key in sums else value
    facts = {"model": label, "updates": run.updates, "mask": mask, "length": length, "all_positions": all_positions}
    return [facts | row for row in _rows(heads, sums)]


def _warn_of_linear(label: str, model: nn.Module, used: int) -> None:
    if others := len(attention_modules(model)) - used:
        logger.warning(f"{others} of the {others + used} attentions of {label} have no softmax and are left out")


def _rows(heads: SaturatedHeads, sums: dict[tuple[str, str], HeadSums]) -> Iterator[dict[str, Any]]:
    for (network, module), values in sums.items():
        place = layer_of(f"{module}.")
        kind = heads.modules[module][0] if module else "uniform"
        for head, row in enumerate(values.rows(), start=1):
            where = {"network": network, "layer": place.number if place else None, "head": head if module else None}
            yield {**where, "module": module, "kind": kind, **row}
