"""BERT's WordPiece (Devlin et al. 2019, arXiv 1810.04805), through the package ``tokenizers``, and as fairseq's --bpe.

Text is cleaned, lower-cased and stripped of accents (unless cased), cut at white space and around each punctuation
mark and Chinese character, and every word then into the longest pieces of the vocabulary; ``##`` marks one that goes
on. BERT's five special symbols are fairseq's own here: ``[UNK]`` comes out as ``<unk>``, and the text ``[MASK]`` is cut
like any other.
"""
# No annotations from __future__: fairseq reads those of the config.

import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass

from .lines import read_lines

MODEL_FILE = "wordpiece.json"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_UNKNOWN = "[UNK]"
_FAIRSEQ = {"<s>", "<pad>", "</s>", "<unk>", "<mask>"}
_PREFIX = "##"
_ALPHABET = 1000  # the most frequent characters; the library's own bound
_LEAST_COUNT = 2  # of a pair of pieces that becomes one


@dataclass
class WordPieceConfig(FairseqDataclass):
    wordpiece_model: str = field(default="", metadata={"help": f"{MODEL_FILE} of a data folder"})


@register_bpe("wordpiece", dataclass=WordPieceConfig)
class WordPieceBPE:
    """``--bpe wordpiece``: text to pieces with a space between, and back."""

    def __init__(self, cfg: WordPieceConfig) -> None:
        from tokenizers import Tokenizer

        path = Path(cfg.wordpiece_model)
        if not path.is_file():
            raise FileNotFoundError(
                f"--wordpiece-model {cfg.wordpiece_model or '(not given)'}: no such file; it is the {MODEL_FILE} of a "
                "data folder made with --tokenizer wordpiece"
            )
        try:
            self._tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # what the package raises has no class of its own
            raise ValueError(f"--wordpiece-model {path} is not a {MODEL_FILE}: {error}") from None

    def encode(self, x: str) -> str:
        """Pieces of a text. A text of which nothing is left, such as a lone accent, is unknown; an empty one empty."""
        pieces = self._tokenizer.encode(x, add_special_tokens=False).tokens
        if not pieces and x.strip():
            pieces = [_UNKNOWN]
        return " ".join("<unk>" if piece == _UNKNOWN else piece for piece in pieces)

    def decode(self, x: str) -> str:
        """Words with a space between, also around punctuation; what encoding dropped (capitals, accents) is gone."""
        return self._tokenizer.decoder.decode(x.split())


def read_vocabulary(path: Path, cased: bool) -> list[str]:
    """Read a vocabulary file as BERT's: a piece a line, whose number is its line's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, repeats a piece, lacks one of BERT's special symbols, has one of fairseq's, or has
            capitals although the text is lower-cased.
    """
    lines = list(read_lines(path, keep_blank=True))
    while lines and not lines[-1]:
        lines.pop()
    where = f"--wordpiece-vocab {path}"
    seen: dict[str, int] = {}
    for number, piece in enumerate(lines, start=1):
        if not piece or " " in piece:
            raise ValueError(f"{where}, line {number}: {piece!r} is not one piece; BERT's vocab.txt has one a line")
        if piece in seen:
            raise ValueError(f"{where}, line {number}: {piece!r} stands in line {seen[piece]} already")
        seen[piece] = number
    if not seen:
        raise ValueError(f"{where} is empty; BERT's vocab.txt has one piece a line")
    if missing := [symbol for symbol in SPECIAL if symbol not in seen]:
        raise ValueError(f"{where} lacks {', '.join(missing)}; a vocabulary of BERT has {', '.join(SPECIAL)}")
    if len(seen) == len(SPECIAL):
        raise ValueError(f"{where} has no piece but {', '.join(SPECIAL)}")
    if clash := sorted(_FAIRSEQ & seen.keys()):
        raise ValueError(f"{where}, line {seen[clash[0]]}: {clash[0]!r} is a symbol of fairseq's own")
    capitals = set(string.ascii_uppercase)
    large = next((piece for piece in seen if capitals & set(piece) and not piece.startswith("[")), None)
    if large and not cased:
        raise ValueError(
            f"{where}, line {seen[large]}: {large!r} has capitals, but the text is lower-cased; for a cased vocabulary "
            "give --cased"
        )
    return list(seen)


def train(text: Path, vocab_size: int, cased: bool) -> list[str]:
    """Learn the vocabulary of a text, the same one in every run.

    Pieces: BERT's special symbols; the characters, as the first of a word and as others; then merged pieces.

    Args:
        text: one sentence a line.
        vocab_size: pieces, special symbols included.
        cased: keep capitals and accents.

    Raises:
        ValueError: ``vocab_size`` does not fit the text.
    """
    from tokenizers import trainers

    tokenizer = _tokenizer([_UNKNOWN], cased)
    alphabet = _alphabet(text, tokenizer)
    inner = [_PREFIX + c for c in alphabet if len(tokenizer.pre_tokenizer.pre_tokenize_str("a" + c)) == 1]
    least = len(SPECIAL) + len(alphabet) + len(inner)
    if vocab_size <= least:
        raise ValueError(
            f"--vocab-size {vocab_size} is too small: BERT's special symbols and single characters alone make {least}"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=_LEAST_COUNT,
        # Left to itself the trainer numbers inner characters in the order of a hash table, another one in each run, and
        # these numbers break ties between pairs. As special symbols they have theirs from the start.
        special_tokens=[*SPECIAL, *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=_PREFIX,
        show_progress=False,
    )
    tokenizer.train([str(text)], trainer)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) < vocab_size:
        raise ValueError(
            f"--vocab-size {vocab_size} is too large for this corpus: it has {len(vocabulary)} pieces, counting only "
            f"pairs that occur twice"
        )
    return sorted(vocabulary, key=vocabulary.__getitem__)


def model_text(vocabulary: list[str], cased: bool) -> str:
    """Content of MODEL_FILE."""
    return _tokenizer(vocabulary, cased).to_str(pretty=True) + "\n"


def symbols(path: Path) -> list[str]:
    """Pieces of a MODEL_FILE in their order, without BERT's special symbols."""
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_str(path.read_text(encoding="utf-8")).get_vocab()
    return [piece for piece in sorted(vocabulary, key=vocabulary.__getitem__) if piece not in SPECIAL]


def _tokenizer(vocabulary: list[str], cased: bool) -> Any:
    """BERT's tokeniser, without special symbols in text: that one writes ``[MASK]`` must not make a mask."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=_UNKNOWN, continuing_subword_prefix=_PREFIX))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # No clean-up: the library's would also turn "do not" into "don't".
    tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX, cleanup=False)
    return tokenizer


def _alphabet(text: Path, tokenizer: Any) -> list[str]:
    """The most frequent characters after normalisation, in the order of their numbers; ties go to the smaller one."""
    counts: dict[str, int] = {}
    for character, count in _count_characters(text):
        for normal in "".join(tokenizer.normalizer.normalize_str(character).split()):
            counts[normal] = counts.get(normal, 0) + count
    return sorted(sorted(counts, key=lambda c: (-counts[c], c))[:_ALPHABET])


def _count_characters(text: Path) -> Iterator[tuple[str, int]]:
    """Each character of a text and its count, at the speed that gigabytes need."""
    counts = np.zeros(0x110000, dtype=np.int64)
    with open(text, encoding="utf-8", newline="\n") as handle:
        while part := handle.read(1 << 20):
            counts += np.bincount(np.frombuffer(part.encode("utf-32-le"), dtype="<u4"), minlength=len(counts))
    for number in np.flatnonzero(counts):
        yield chr(number), int(counts[number])
