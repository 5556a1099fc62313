"""Masked language models from Python: text in, features, predictions and filled masks out."""

from __future__ import annotations

from typing import Any

from fairseq import hub_utils
from fairseq.models.roberta.hub_interface import RobertaHubInterface
from torch import Tensor

from ..data.binarize import NOTE, hub_args

MASK = "<mask>"


class MaskedLMHub(RobertaHubInterface):
    """fairseq's interface of RoBERTa, for the package's masked language models.

    ``encode`` and ``decode`` turn text into tokens ``T`` and back, ``extract_features`` gives ``B T D``, ``predict``
    the log-probabilities ``B N`` of a classification head, ``fill_mask`` the likeliest words for one ``<mask>``, and
    ``register_classification_head`` adds a head. Where fairseq's fails or asserts, this one works or says why.
    """

    def __init__(self, cfg: Any, task: Any, model: Any) -> None:
        super().__init__(cfg, task, model)
        if not hasattr(task, "mask_idx"):  # the task of a fine-tuned model
            task.mask_idx = task.source_dictionary.index(MASK)

    def encode(self, sentence: str, *addl_sentences: str, no_separator: bool = False) -> Tensor:
        """Return ``<s> sentence </s>``, or ``<s> a </s> </s> b </s>`` for a pair, as token ids ``T``.

        Raises:
            ValueError: the model was loaded without a tokenisation.
        """
        self._need_bpe()
        return super().encode(sentence, *addl_sentences, no_separator=no_separator)

    def decode(self, tokens: Tensor) -> str | list[str]:
        """Return the text of tokens ``T``; a list of sentences for a pair.

        Raises:
            ValueError: not one row of tokens, or the model was loaded without a tokenisation.
        """
        self._need_bpe()
        if tokens.dim() != 1 or not tokens.numel():
            raise ValueError(f"decode takes the tokens of one text, not a tensor of shape {tuple(tokens.shape)}")
        return super().decode(tokens.cpu())

    def fill_mask(self, masked_input: str, topk: int = 5) -> list[tuple[str, float, str]]:
        """Return ``topk`` triples of filled text, probability and token for the only ``<mask>`` of the text.

        Raises:
            ValueError: not exactly one ``<mask>``, or a ``topk`` that the dictionary has not.
        """
        self._need_bpe()
        if masked_input.count(MASK) != 1:
            raise ValueError(
                f"fill_mask needs exactly one {MASK}, as in 'To be or not to {MASK}'; got {masked_input!r}"
            )
        symbols = len(self.task.source_dictionary)
        if not 1 <= topk <= symbols:
            raise ValueError(f"fill_mask: topk {topk} is not between 1 and the {symbols} symbols of the dictionary")
        return super().fill_mask(masked_input, topk)

    def predict(self, head: str, tokens: Tensor, return_logits: bool = False) -> Tensor:
        """Return log-probabilities (logits with ``return_logits``) ``B N`` of a head for tokens ``T`` or ``B T``.

        Raises:
            ValueError: no such head; the message lists those that are there.
        """
        self.model.classification_head(head)
        return super().predict(head, tokens, return_logits)

    def _need_bpe(self) -> None:
        if self.bpe is None:
            raise ValueError(
                "the model was loaded without a tokenisation; name its data folder (data_name_or_path), or pass "
                "bpe='gpt2' and the files that it needs"
            )


def load_hub(
    model_name_or_path: str,
    checkpoint_file: str = "checkpoint_best.pt",
    data_name_or_path: str = ".",
    bpe: str | None = None,
    **kwargs: Any,
) -> MaskedLMHub:
    """Load a checkpoint, its heads, its task and its tokenisation.

    Args:
        model_name_or_path: folder of the checkpoint.
        checkpoint_file: its name.
        data_name_or_path: data folder, absolute or relative to here; one that begins with a dot is relative to the
            folder of the checkpoint, as always in fairseq's hubs.
        bpe: tokenisation, fairseq's ``--bpe``; by default what the data folder's note says.
        kwargs: options of the tokenisation and others to replace in the checkpoint's config.
    """
    loaded = hub_utils.from_pretrained(
        model_name_or_path,
        checkpoint_file,
        data_name_or_path,
        load_checkpoint_heads=True,
        **({"bpe": bpe} if bpe else _noted(model_name_or_path, data_name_or_path)),
        **kwargs,
    )
    return MaskedLMHub(loaded["args"], loaded["task"], loaded["models"][0])


def _noted(folder: str, data: str) -> dict[str, str]:
    from pathlib import Path

    path = Path(folder, data) if data.startswith(".") else Path(data)
    return hub_args(path) if (path / NOTE).is_file() else {}
