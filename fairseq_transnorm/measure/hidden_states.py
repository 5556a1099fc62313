"""The hidden states of any model of fairseq's interface, batch first, as one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn


class States(NamedTuple):
    """What a network computes before its classifier.

    Attributes:
        hidden: the output of the embedding, then of each layer, ``B T D``.
        encodings: what the classifier reads: the last of them, after a final norm where there is one.
    """

    hidden: list[Float[Tensor, "B T D"]]
    encodings: Float[Tensor, "B T D"]


class HiddenStates(nn.Module):
    """A language model or masked language model as a map from tokens to its hidden states.

    Args:
        model: of this package or of fairseq: a decoder alone, or an encoder or a model without either with
            ``return_all_hiddens``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Int[Tensor, "B T"]) -> States:
        """Return the states of token ids ``B T``, padded on the right.

        Raises:
            ValueError: the model is neither a decoder alone nor an encoder alone.
        """
        decoder, encoder = getattr(self.model, "decoder", None), getattr(self.model, "encoder", None)
        if decoder is not None and encoder is None:
            encodings, extra = decoder(tokens, features_only=True, return_all_hiddens=True)
        elif decoder is None and (encoder is not None or _returns_hiddens(self.model)):
            encodings, extra = self.model(tokens, features_only=True, return_all_hiddens=True)
        else:
            raise ValueError(
                f"{type(self.model).__name__} is neither a language model (a decoder alone) nor a masked language "
                "model (an encoder alone); its hidden states cannot be read here"
            )
        # fairseq's inner states are T B D
        return States([state.transpose(0, 1) for state in _inner_states(extra)], encodings)


def _returns_hiddens(model: nn.Module) -> bool:
    return "return_all_hiddens" in signature(model.forward).parameters


def _inner_states(extra: Any) -> list[Tensor]:
    states = extra.get("inner_states") if isinstance(extra, dict) else None
    if not states:
        raise ValueError("the model returns no inner states; it has to put them into its extras as 'inner_states'")
    return [state for state in states if state is not None]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while; each of its modules then returns to the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
