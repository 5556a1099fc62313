"""How saturated each hidden state of a network is, and whether its representation is anything but a constant.

Source: Merrill et al. 2021, arXiv:2010.09697, section 4: the cosine between ``f(x; theta)`` and ``f(x; c theta)`` with
c = 1000, of each hidden state, averaged over the positions of all sentences pooled, so that long sentences weigh more.
All in evaluation mode and without padding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from . import hugging_face
from .batches import BATCH_TOKENS, SentenceBatches, sentence_batches
from .checkpoints import Run, check_device, load_run
from .hidden_states import HiddenStates, States
from .saturation import mean_pair_cosine, token_cosines
from .scaling import SATURATED, ScaledNetwork, sinusoidal_positions

logger = logging.getLogger(__name__)

COLLAPSED = 0.95  # mean cosine of two tokens' encodings from which a representation is as good as constant


class FairseqStack(nn.Module):
    """A run's model as a map from a batch to the hidden states of its one stack, ``decoder`` or ``encoder``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.states = HiddenStates(model)
        self.name = "encoder" if getattr(model, "encoder", None) is not None else "decoder"

    def forward(self, tokens: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"]) -> dict[str, States]:
        """Return ``{stack: states}``; padding is known by its symbol."""
        return {self.name: self.states(tokens)}


@dataclass(frozen=True)
class Settings:
    """What is measured of each model, and on which text.

    Attributes:
        text: sentences; None for a split of the data folder of each run.
        data: data folder, when not the one that a run was trained on.
        split: of the data folder.
        limit: most sentences; None for all.
        factors: the c that stand for infinity.
        scale_positions: see ``ScaledNetwork``.
        random_init: the same architectures with fresh weights instead.
        seed: of these.
        device: where the models run.
        batch_tokens: most positions of a batch, padding included.
    """

    text: Sequence[str] | None = None
    data: str | Path | None = None
    split: str = "valid"
    limit: int | None = 100
    factors: Sequence[float] = (SATURATED,)
    scale_positions: bool = False
    random_init: bool = False
    seed: int = 0
    device: str = "cpu"
    batch_tokens: int = BATCH_TOKENS


def measure(name: str, path: str | Path, settings: Settings) -> list[dict[str, Any]]:
    """Return the rows of ``layer_rows`` of one model; warn of what the numbers do not show by themselves.

    Args:
        name: for the column ``model`` and the warnings.
        path: checkpoint of fairseq's, folder of Hugging Face's, or ``minilm``.
        settings: what else is to be known. A row also has ``random_init``, ``sentences``, ``cut``, those that were
            longer than the model's positions, and ``unknown``, the share of the words that is not in its vocabulary.

    Raises:
        FileNotFoundError: the checkpoint, folder or split is missing.
        ValueError: the model cannot be read, a folder of Hugging Face's comes without text, or there are no sentences.
        ImportError: a package is missing; the message names it.
    """
    network, batches = open_network(path, settings)
    warn_of_positions(name, network, settings.scale_positions)
    rows = layer_rows(network, batches, settings.factors, settings.scale_positions)
    warn_of_collapse(name, rows)
    about = {
        "random_init": settings.random_init,
        "sentences": len(batches.rows),
        "cut": batches.cut,
        "unknown": batches.unknown / max(1, batches.words),
    }
    return [{"model": name, **row, **about} for row in rows]


def open_network(path: str | Path, settings: Settings) -> tuple[nn.Module, SentenceBatches]:
    """Return the network of a checkpoint or folder, for ``layer_rows``, with its batches; errors as of ``measure``."""
    s = settings
    check_device(s.device)
    if hugging_face.is_folder(path):
        if s.text is None:
            raise ValueError(f"{path} has no data folder with text of its own; give a file of sentences with --text")
        return hugging_face.load_folder(
            path,
            s.text[: s.limit],
            random_init=s.random_init,
            seed=s.seed,
            device=s.device,
            batch_tokens=s.batch_tokens,
        )
    run = load_run(path, s.data, s.device)
    batches = sentence_batches(run, s.split if s.text is None else s.text, s.limit, s.batch_tokens)
    return FairseqStack(random_model(run, s.seed) if s.random_init else run.model), batches


def random_model(run: Run, seed: int) -> nn.Module:
    """Return a model of the run's architecture with fresh weights, in evaluation mode; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = run.task.build_model(run.cfg.model)
    return model.eval().to(next(run.model.parameters()).device)


@dataclass
class _Sums:
    """What adds up over the batches for each hidden state of a stack, in float64."""

    cosines: dict[tuple[float, int], float] = field(default_factory=dict)  # by c and state
    units: dict[int, Tensor] = field(default_factory=dict)  # sum of the tokens' unit vectors, D
    squares: dict[int, float] = field(default_factory=dict)  # how many of these are not 0
    layers: int = 0
    final_norm: bool = False  # whether something changes the last layer's output
    tokens: int = 0

    def add_plain(self, state: int, values: Float[Tensor, "n D"]) -> None:
        units = F.normalize(values, dim=-1)
        self.units[state] = self.units.get(state, 0) + units.sum(0)
        self.squares[state] = self.squares.get(state, 0.0) + float(units.square().sum())

    def collapse(self, state: int) -> float | None:
        """Return the mean cosine of two different tokens."""
        return mean_pair_cosine(self.units[state], self.squares[state], self.tokens)


def layer_rows(
    network: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    factors: Sequence[float] = (SATURATED,),
    scale_positions: bool = False,
) -> list[dict[str, Any]]:
    """Measure every hidden state of a network over all batches.

    Args:
        network: from the members of a batch, tokens ``B T`` and the mask of those to keep first, to its stacks' states.
        batches: of tokens padded on the right; see ``batches.sentence_batches``.
        factors: the c that stand for infinity, one after another.
        scale_positions: see ``ScaledNetwork``.

    Returns:
        A row a stack, factor and hidden state: ``stack``; ``layer``, 0 for the embeddings; ``state``, ``embeddings``,
        ``layer`` or, where a final norm changes the last layer's output, ``encodings``; ``c``; ``similarity``, the mean
        cosine; ``collapse``, the mean cosine of two different tokens of ``f(x; theta)``, alike for all c; ``tokens``.

    Raises:
        ValueError: a factor is not positive and finite.
    """
    plain = ScaledNetwork(network, 1.0)
    saturated = {float(c): ScaledNetwork(network, c, scale_positions=scale_positions) for c in factors}
    sums: dict[str, _Sums] = {}
    for batch in tqdm(batches, desc="batches", disable=None, leave=False):
        keep = batch[1]
        bases = {stack: _kept(states, keep) for stack, states in plain(*batch).items()}
        for stack, base in bases.items():
            total = sums.setdefault(stack, _Sums())
            total.tokens += int(keep.sum())
            total.layers = len(base) - 2
            total.final_norm |= not torch.equal(base[-2], base[-1])
            for state, values in enumerate(base):
                total.add_plain(state, values)
        for c, scaled in saturated.items():
            for stack, states in scaled(*batch).items():
                cosines = sums[stack].cosines
                for state, (a, b) in enumerate(zip(bases[stack], _kept(states, keep), strict=True)):
                    cosines[c, state] = cosines.get((c, state), 0.0) + float(token_cosines(a, b).sum())
    return [row for stack, total in sums.items() for row in _rows(stack, total)]


def _kept(states: States, keep: Bool[Tensor, "B T"]) -> list[Float[Tensor, "n D"]]:
    """Return the hidden states and the encodings at the positions to keep, in float64."""
    return [state[keep].double() for state in (*states.hidden, states.encodings)]


def _rows(stack: str, total: _Sums) -> list[dict[str, Any]]:
    last = total.layers
    rows = []
    for (c, state), cosine in sorted(total.cosines.items()):
        if state > last and not total.final_norm:
            continue
        similarity = cosine / total.tokens
        if not math.isfinite(similarity):
            logger.warning(f"{stack}, hidden state {state}: not finite at c = {c:g} in float32; take a smaller one")
        rows.append(
            {
                "stack": stack,
                "layer": min(state, last),
                "state": "encodings" if state > last else "layer" if state else "embeddings",
                "c": c,
                "similarity": similarity if math.isfinite(similarity) else None,
                "collapse": total.collapse(state),
                "tokens": total.tokens,
            }
        )
    return rows


def encodings_of(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the last row of each model, stack and factor: what a classifier would read."""
    return list({(row.get("model"), row["stack"], row["c"]): row for row in rows}.values())


def warn_of_positions(name: str, network: nn.Module, scale_positions: bool) -> None:
    """Say which positions are no parameters, so that scaling leaves them behind."""
    found = sinusoidal_positions(network)
    if found and not scale_positions:
        where = next(iter(found)).removeprefix("states.").removeprefix("model.")
        logger.warning(
            f"{name} has sinusoidal positions ({where}), which are no parameters: f(x; c theta) does not scale them, "
            "and they vanish beside the embeddings; --scale-positions scales them too"
        )


def warn_of_collapse(name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Say where a representation is the same for all tokens, which looks like full saturation."""
    for stack, collapse in {row["stack"]: row["collapse"] for row in encodings_of(rows)}.items():
        if collapse is not None and collapse > COLLAPSED:
            logger.warning(
                f"{name}, {stack}: the encodings of all tokens are nearly the same (mean cosine of two tokens "
                f"{collapse:.3f}); similarity near 1 is collapse here, not saturation"
            )
