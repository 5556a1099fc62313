"""Masked language models from Python: text in, features, predictions and filled masks out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fairseq import hub_utils, utils
from fairseq.data.encoders.gpt2_bpe import GPT2BPE
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE
from fairseq.models.roberta.hub_interface import RobertaHubInterface
from torch import Tensor

from ..data.bert_wordpiece import WordPieceBPE
from ..data.binarize import NOTE, hub_args, read_note
from ..data.lines import split_words

MASK = "<mask>"


class _Words:
    """The tokenisation of text whose symbols are its words, with a space between."""

    def encode(self, text: str) -> str:
        return " ".join(split_words(text))

    def decode(self, symbols: str) -> str:
        return symbols


class MaskedLMHub(RobertaHubInterface):
    """fairseq's interface of RoBERTa, for the package's masked language models.

    ``encode`` and ``decode`` turn text into tokens ``T`` and back, ``extract_features`` gives ``B T D``, ``predict``
    the log-probabilities ``B N`` of a classification head, ``fill_mask`` the likeliest words for one ``<mask>``, and
    ``register_classification_head`` adds a head. Where fairseq's fails or asserts, this one works or says why.
    """

    def __init__(self, cfg: Any, task: Any, model: Any, words: bool = False) -> None:
        super().__init__(cfg, task, model)
        if words:
            self.bpe = _Words()
        if not hasattr(task, "mask_idx"):  # the task of a fine-tuned model
            task.mask_idx = task.source_dictionary.index(MASK)

    def encode(self, sentence: str, *addl_sentences: str, no_separator: bool = False) -> Tensor:
        """Return ``<s> sentence </s>``, or ``<s> a </s> </s> b </s>`` for a pair, as token ids ``T``.

        A model that was trained on pairs with one ``</s>`` between them gets one, as with ``no_separator``.

        Raises:
            ValueError: the model was loaded without a tokenisation.
        """
        self._need_bpe()
        single = no_separator or not self.model.double_separator
        return super().encode(sentence, *addl_sentences, no_separator=single)

    def decode(self, tokens: Tensor | list[int]) -> str | list[str]:
        """Return the text of tokens ``T``; a list of sentences for a pair.

        Raises:
            ValueError: not one row of tokens, or the model was loaded without a tokenisation.
        """
        self._need_bpe()
        tokens = torch.as_tensor(tokens)
        if tokens.dim() != 1 or not tokens.numel():
            raise ValueError(f"decode takes the tokens of one text, not a tensor of shape {tuple(tokens.shape)}")
        tokens = tokens.cpu()
        if self.model.double_separator:
            return super().decode(tokens)
        ends = (tokens == self.task.source_dictionary.eos()).nonzero().flatten().tolist()
        parts = [part for part in tokens.tensor_split([end + 1 for end in ends]) if len(part)]
        texts = [str(super(MaskedLMHub, self).decode(part)) for part in parts]
        return texts[0] if len(texts) == 1 else texts

    @torch.no_grad()
    def fill_mask(self, masked_input: str, topk: int = 5) -> list[tuple[str, float, str]]:
        """Return ``topk`` triples of filled text, probability and piece for the only ``<mask>`` of the text.

        A space before the mask makes no difference: the piece itself says whether it begins a word. Symbols that are
        no text, such as the end of a sentence, are left out; probabilities are of all symbols.

        Raises:
            ValueError: not exactly one ``<mask>``, or a ``topk`` that the dictionary has not.
        """
        self._need_bpe()
        if masked_input.count(MASK) != 1:
            raise ValueError(
                f"fill_mask needs exactly one {MASK}, as in 'To be or not to {MASK}'; got {masked_input!r}"
            )
        dictionary = self.task.source_dictionary
        control = [*range(dictionary.nspecial), self.task.mask_idx]
        control += [i for i, symbol in enumerate(dictionary.symbols) if symbol.startswith("madeupword")]
        if not 1 <= topk <= len(dictionary) - len(control):
            raise ValueError(f"fill_mask: topk {topk} is not between 1 and {len(dictionary) - len(control)}")
        before, after = masked_input.split(MASK)
        pieces = f"<s> {self.bpe.encode(before.rstrip())} {MASK} {self.bpe.encode(after.rstrip())} </s>"
        tokens = dictionary.encode_line(pieces, append_eos=False, add_if_not_exist=False).long().to(self.device)
        with utils.model_eval(self.model):
            logits, _ = self.model(tokens[None], masked_tokens=(tokens == self.task.mask_idx)[None])
        probabilities = logits[0].softmax(0)
        values, indices = probabilities.index_fill(0, torch.tensor(control, device=self.device), -1).topk(topk)
        found = []
        for probability, index in zip(values.tolist(), indices.tolist(), strict=True):
            piece = self.bpe.decode(dictionary[index])
            if isinstance(self.bpe, SentencepieceBPE) and dictionary[index].startswith("\u2581"):
                piece = f" {piece}"  # the mark of a new word, which decoding drops
            # pieces of these carry the space before a word, or say that there is none
            inner = isinstance(self.bpe, WordPieceBPE) and piece.startswith("##")
            start = before.rstrip() if inner or isinstance(self.bpe, (GPT2BPE, SentencepieceBPE)) else before
            found.append((start + (piece[2:] if inner else piece) + after, probability, piece))
        return found

    def predict(self, head: str, tokens: Tensor | list[int], return_logits: bool = False) -> Tensor:
        """Return log-probabilities (logits with ``return_logits``) ``B N`` of a head for tokens ``T`` or ``B T``.

        Raises:
            ValueError: no such head (the message lists those that are there), or tokens that the model refuses.
        """
        # not fairseq's: its heads see features only, and would pool padding too
        tokens = torch.as_tensor(tokens, device=self.device)
        if tokens.dim() not in (1, 2):
            raise ValueError(f"predict takes tokens T or B T, not a tensor of shape {tuple(tokens.shape)}")
        rows = tokens[None] if tokens.dim() == 1 else tokens
        logits, _ = self.model(rows, classification_head_name=head)
        return logits if return_logits else logits.log_softmax(-1)

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

    Raises:
        FileNotFoundError: no such checkpoint or data folder, or a data folder without a dictionary.
    """
    checkpoint, data = Path(model_name_or_path, checkpoint_file), Path(data_name_or_path)
    if data_name_or_path.startswith("."):
        data = Path(model_name_or_path, data)
    if not checkpoint.is_file():
        there = sorted(path.name for path in checkpoint.parent.glob("*.pt"))
        raise FileNotFoundError(f"no checkpoint {checkpoint}; beside it: {', '.join(there) or 'no .pt files'}")
    if not any((data / part / "dict.txt").is_file() for part in ("", "input0")):
        raise FileNotFoundError(
            f"no dict.txt in the data folder {data}; name the folder that the model was trained on (data_name_or_path)"
        )
    note = read_note(data) if (data / NOTE).is_file() else {}
    words = bpe is None and note.get("kind") == "words"
    if bpe is not None:
        kwargs |= {"bpe": bpe}
    elif note and not words:
        kwargs |= hub_args(data)
    loaded = hub_utils.from_pretrained(
        model_name_or_path,
        checkpoint_file,
        data_name_or_path,
        load_checkpoint_heads=True,
        **kwargs,
    )
    return MaskedLMHub(loaded["args"], loaded["task"], loaded["models"][0], words)
