"""Tokenisations of a text corpus, each one that fairseq's own commands can undo.

A tokeniser is trained on the train split (GPT-2's is copied), saved in the data folder, and then loaded through
fairseq's ``--bpe`` or ``--tokenizer`` class, so that what is binarised is what ``fairseq-interactive`` makes of it.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import bert_wordpiece, gpt2
from .folder import read_note
from .lines import read_lines, split_words

KINDS = ("words", "characters", "sentencepiece", "fastbpe", "wordpiece", "gpt2")
DICTIONARIES = ("corpus", "fairseq")
# Names under which fairseq's from_pretrained finds them in a folder by itself.
_SENTENCEPIECE_FILE, _FASTBPE_FILE = "sentencepiece.bpe.model", "bpecodes"
# fairseq's own --bpe characters cannot be used: it has no config class, and every command that is given it stops while
# composing its configuration. A sentencepiece model of single characters makes exactly the same symbols.
MODEL_FILES: dict[str, tuple[str, ...]] = {
    "words": (),
    "characters": (_SENTENCEPIECE_FILE,),
    "sentencepiece": (_SENTENCEPIECE_FILE,),
    "fastbpe": (_FASTBPE_FILE,),
    "wordpiece": (bert_wordpiece.MODEL_FILE,),
    "gpt2": tuple(gpt2.FILES),
}
DEFAULT_VOCAB_SIZE = {"sentencepiece": 8000, "fastbpe": 8000, "wordpiece": 30522}
# Sums of floats depend on how the work is cut, so the number of threads is part of the result.
_SENTENCEPIECE_THREADS = 4


@dataclass(frozen=True)
class Tokenization:
    """How text becomes symbols, and which symbols have a number.

    Attributes:
        kind: one of KINDS.
        vocab_size: words, gpt2: symbols in the dictionary, with fairseq's four; sentencepiece: pieces; fastbpe:
            symbols, single characters included; wordpiece: pieces, BERT's five special symbols included.
        coverage: share of the text's characters that sentencepiece must be able to write.
        dictionary: gpt2: ``corpus`` orders the pieces by their count in the train split, ``fairseq`` takes the
            dictionary of fairseq's RoBERTa.
        gpt2_files: gpt2: folder that has its files; they are fetched when it is None.
        wordpiece_vocab: wordpiece: vocabulary file of BERT; it is learnt when it is None.
        cased: wordpiece: keep capitals and accents.
        like: data folder whose tokeniser and dictionary are used as they are; see :meth:`of`.
    """

    kind: str
    vocab_size: int | None = None
    coverage: float = 1.0
    dictionary: str = "corpus"
    gpt2_files: Path | None = None
    wordpiece_vocab: Path | None = None
    cased: bool = False
    like: Path | None = None

    @classmethod
    def of(cls, data: Path) -> Tokenization:
        """That of an existing data folder.

        Raises:
            FileNotFoundError: it has no note, or lacks a file that its note names.
        """
        note = read_note(data)
        for name in ("dict.txt", *note["files"]):
            if not (data / name).is_file():
                raise FileNotFoundError(f"--like {data}: it has no {name}; a data folder of text is needed")
        return cls(note["kind"], like=data)

    def check(self) -> None:
        """Check what needs no text.

        Raises:
            ValueError: options that do not go together.
            ImportError: a package is missing.
            FileNotFoundError: ``gpt2_files`` lacks one, or there is no ``wordpiece_vocab``.
        """
        if self.kind not in KINDS:
            raise ValueError(f"unknown tokenizer {self.kind!r}; known are {', '.join(KINDS)}")
        if self.dictionary not in DICTIONARIES:
            raise ValueError(f"unknown dictionary {self.dictionary!r}; known are {', '.join(DICTIONARIES)}")
        if self.kind == "characters" and self.vocab_size is not None:
            raise ValueError(
                "--vocab-size does not go with the tokenizer characters, whose vocabulary the text decides"
            )
        if self.vocab_size is not None and self.vocab_size < 5:
            raise ValueError(f"--vocab-size {self.vocab_size}: at least 5, since four symbols are fairseq's own")
        if not 0 < self.coverage <= 1:
            raise ValueError(f"--character-coverage {self.coverage:g}: above 0, at most 1")
        if self.kind != "gpt2" and (self.dictionary != "corpus" or self.gpt2_files is not None):
            raise ValueError(f"--dictionary fairseq and --gpt2-files go with the tokenizer gpt2, not with {self.kind}")
        if self.dictionary == "fairseq" and self.vocab_size is not None:
            raise ValueError("--vocab-size does not go with --dictionary fairseq, which is used as it is")
        if self.kind != "wordpiece" and (self.cased or self.wordpiece_vocab is not None):
            raise ValueError(f"--cased and --wordpiece-vocab go with the tokenizer wordpiece, not with {self.kind}")
        if self.wordpiece_vocab is not None:
            if self.vocab_size is not None:
                raise ValueError("--vocab-size does not go with --wordpiece-vocab, which is used as it is")
            bert_wordpiece.read_vocabulary(self.wordpiece_vocab, self.cased)
        if self.gpt2_files is not None:
            gpt2.fetch_files(self.gpt2_files)
        check_packages(self.kind)

    @property
    def is_made(self) -> bool:
        """Whether the tokeniser is trained on the corpus, not taken from elsewhere."""
        return self.kind not in ("words", "gpt2") and self.like is None and self.wordpiece_vocab is None

    @property
    def dictionary_source(self) -> str:
        """Where the dictionary comes from, for the note."""
        if self.like is not None:
            return "like"
        return self.dictionary if self.wordpiece_vocab is None else "file"


def fairseq_args(kind: str) -> list[str]:
    """Flags that make fairseq's commands encode and decode text as in the data; files are relative to its folder."""
    if kind == "words":
        return ["--tokenizer", "space"]
    if kind == "fastbpe":
        return ["--bpe", "fastbpe", "--bpe-codes", _FASTBPE_FILE]
    if kind == "wordpiece":
        return ["--bpe", "wordpiece", "--wordpiece-model", bert_wordpiece.MODEL_FILE]
    if kind == "gpt2":
        encoder, merges = gpt2.FILES
        return ["--bpe", "gpt2", "--gpt2-encoder-json", encoder, "--gpt2-vocab-bpe", merges]
    return ["--bpe", "sentencepiece", "--sentencepiece-model", _SENTENCEPIECE_FILE]


def check_packages(kind: str) -> None:
    """Raise ImportError, naming the extra, when a package that ``kind`` needs is not installed."""
    others = {"words": [], "fastbpe": ["fastBPE", "subword_nmt"], "wordpiece": ["tokenizers"], "gpt2": ["regex"]}
    needed = others.get(kind, ["sentencepiece"])
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ImportError(
            f"tokenizer {kind} needs {' and '.join(missing)}, not installed; pip install 'fairseq_transnorm[text]'"
        )


def train(tokenization: Tokenization, text: Path, folder: Path) -> None:
    """Put a tokeniser's files into ``folder``: trained on a text file, copied, or none at all for words.

    Args:
        tokenization: which.
        text: the train split, one line a sentence.
        folder: gets the files.

    Raises:
        ValueError: the text is too small for ``vocab_size``, or ``vocab_size`` too small for its characters.
        ImportError: a package is missing.
        OSError: files cannot be fetched.
    """
    kind, names = tokenization.kind, MODEL_FILES[tokenization.kind]
    check_packages(kind)
    vocab_size = tokenization.vocab_size or DEFAULT_VOCAB_SIZE.get(kind)
    if tokenization.like is not None:
        copy_files(tokenization, folder)
    elif kind == "gpt2":
        for path in gpt2.fetch_files(tokenization.gpt2_files):
            shutil.copyfile(path, folder / path.name)
        pieces = len(_gpt2_pieces(folder))
        if vocab_size is not None and vocab_size > pieces + 4:
            raise ValueError(f"--vocab-size {vocab_size}: at most {pieces + 4}, GPT-2's {pieces} and fairseq's four")
    elif kind == "fastbpe":
        assert vocab_size
        (folder / names[0]).write_text(_learn_bpe(text, vocab_size))
    elif kind == "wordpiece":
        assert vocab_size
        if tokenization.wordpiece_vocab is not None:
            vocabulary = bert_wordpiece.read_vocabulary(tokenization.wordpiece_vocab, tokenization.cased)
        else:
            vocabulary = bert_wordpiece.train(text, vocab_size, tokenization.cased)
        (folder / names[0]).write_text(bert_wordpiece.model_text(vocabulary, tokenization.cased), encoding="utf-8")
    elif kind != "words":
        (folder / names[0]).write_bytes(_train_sentencepiece(text, vocab_size, tokenization.coverage))


def copy_files(tokenization: Tokenization, folder: Path) -> None:
    """Copy the tokeniser's files from the data folder ``like``."""
    assert tokenization.like is not None
    for name in MODEL_FILES[tokenization.kind]:
        shutil.copyfile(tokenization.like / name, folder / name)


def ready_dictionary(tokenization: Tokenization, folder: Path) -> Path | None:
    """The ``dict.txt`` that the tokenisation brings with it; None when it is made from the corpus.

    Args:
        tokenization: which.
        folder: has the tokeniser's files.
    """
    if tokenization.like is not None:
        return tokenization.like / "dict.txt"
    if tokenization.dictionary == "fairseq":
        return gpt2.fetch_dictionary(_gpt2_pieces(folder), tokenization.gpt2_files)
    return None


def load(kind: str, folder: Path, pre_split: bool = False) -> Callable[[str], str]:
    """Encoder of a line into symbols with a space between.

    Args:
        kind: one of KINDS.
        folder: has the model file.
        pre_split: the words of the text are separated by spaces already.
    """
    if kind == "words":
        return (lambda line: line) if pre_split else (lambda line: " ".join(split_words(line)))
    bpe = load_bpe(kind, folder)
    return lambda line: bpe.encode(line) if line else line


def load_bpe(kind: str, folder: Path) -> Any:
    """fairseq's own object behind ``--bpe``, with ``encode`` and ``decode``; None for words."""
    from fairseq.data import encoders

    flags = fairseq_args(kind)
    options = {flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2])}  # noqa: B905
    for option, name in options.items():
        if name in MODEL_FILES[kind]:
            path = folder / name
            if not path.is_file():  # fastBPE would end the whole process
                raise FileNotFoundError(f"no file {path}")
            options[option] = str(path)
    with _quiet():
        return encoders.build_bpe(Namespace(**{"bpe": None} | options))


def symbols(kind: str, folder: Path, text: Path) -> list[str] | None:
    """Every symbol that a tokeniser can give for the characters of its train split; None when only the text says.

    Args:
        kind: one of KINDS.
        folder: has the model file.
        text: the train split.
    """
    if kind in ("characters", "sentencepiece"):
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / _SENTENCEPIECE_FILE))
        return [model.id_to_piece(i) for i in range(len(model)) if not (model.is_control(i) or model.is_unknown(i))]
    if kind == "fastbpe":
        codes = [line.split(" ") for line in (folder / _FASTBPE_FILE).read_text().splitlines()]
        merged = (first + second for first, second, _ in codes)
        inner_or_last = [s.removesuffix("</w>") if s.endswith("</w>") else s + "@@" for s in merged]
        return list(dict.fromkeys([*_single_symbols(_words(text)), *inner_or_last]))
    if kind == "wordpiece":
        return bert_wordpiece.symbols(folder / bert_wordpiece.MODEL_FILE)
    if kind == "gpt2":
        return _gpt2_pieces(folder)
    return None


def _gpt2_pieces(folder: Path) -> list[str]:
    """Numbers of GPT-2's pieces: fairseq's symbols for them."""
    encoder, _ = gpt2.FILES
    return [str(number) for number in sorted(json.loads((folder / encoder).read_text(encoding="utf-8")).values())]


def _train_sentencepiece(text: Path, vocab_size: int | None, coverage: float) -> bytes:
    """A model of ``vocab_size`` pieces; of all single characters when it is None."""
    import sentencepiece

    options: dict[str, Any] = {"vocab_size": vocab_size}
    if vocab_size is None:
        size = len(_characters(text)) + 4  # the space, and three symbols of sentencepiece's own
        options = {"vocab_size": size, "model_type": "char", "add_dummy_prefix": False, "hard_vocab_limit": False}
    model = io.BytesIO()  # given file names, the trainer would write them into the model
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=read_lines(text),
            model_writer=model,
            **options,
            character_coverage=coverage,
            normalization_rule_name="identity",  # decoding gives the text back
            num_threads=_SENTENCEPIECE_THREADS,
            max_sentence_length=1 << 20,  # bytes; longer lines would be left out
            minloglevel=2,
        )
    except RuntimeError as error:
        if found := re.search(r"Vocabulary size too high .*<= (\d+)", str(error)):
            raise ValueError(
                f"--vocab-size {vocab_size} is too large for this corpus, which has at most {found[1]} pieces"
            ) from None
        if found := re.search(r"smaller than required_chars\D*\d+ vs (\d+)", str(error)):
            raise ValueError(
                f"--vocab-size {vocab_size} is too small: the corpus needs {found[1]} for its single characters; "
                "raise it, or lower --character-coverage"
            ) from None
        raise ValueError(f"sentencepiece could not be trained: {error}") from None
    return model.getvalue()


def _learn_bpe(text: Path, vocab_size: int) -> str:
    """Byte-pair merges in fastBPE's file format; its Python package can apply merges, but not learn them.

    subword-nmt learns the same merges. fastBPE's file has a third column, the pair's count, which nothing reads; it
    is 0 here, since subword-nmt does not keep it.
    """
    from subword_nmt.learn_bpe import learn_bpe

    words = _words(text)
    singles = len(_single_symbols(words))
    merges = vocab_size - singles
    if merges < 1:
        raise ValueError(f"--vocab-size {vocab_size} is too small: single characters alone make {singles} symbols")
    found = io.StringIO()
    if any(len(word) > 1 for word in words):
        with _quiet():
            learn_bpe((f"{word} {count}" for word, count in sorted(words.items())), found, merges, is_dict=True)
    codes = found.getvalue().splitlines()[1:]  # the first line is a version
    if len(codes) < merges:
        raise ValueError(
            f"--vocab-size {vocab_size} is too large for this corpus: it has {singles + len(codes)} symbols, "
            f"counting only pairs that occur twice"
        )
    return "".join(f"{code} 0\n" for code in codes)


def _characters(text: Path) -> set[str]:
    return set().union(*read_lines(text)) - {" "}


def _words(text: Path) -> Counter[str]:
    return Counter(word for line in read_lines(text) for word in line.split(" "))


def _single_symbols(words: Iterable[str]) -> list[str]:
    """Each character as the last of a word and as another of it, in fastBPE's spelling."""
    characters = sorted(set().union(*words))
    return [*characters, *(character + "@@" for character in characters)]


def _quiet() -> redirect_stderr[Any]:
    """Keep a library's progress display off everything but a terminal."""
    return redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO())
