"""Text into sentences by nltk's Punkt (Kiss and Strunk 2006): its model of English, or one trained on the corpus."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from .parallel import Work, mapper

Model = Any  # "english", or the PunktParameters that were trained
MODELS = ("english", "trained")
_DATA = "punkt_tab"
# Of text to train on. They cost about 20 seconds and a gigabyte of memory.
_TRAIN_CHARACTERS = 10_000_000


def check(name: str) -> None:
    """Check that sentences can be split.

    Args:
        name: one of MODELS.

    Raises:
        ValueError: an unknown model.
        ImportError: nltk is missing.
        FileNotFoundError: its model of English is not installed; the text says how to fetch it.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model of sentences {name!r}; known are {', '.join(MODELS)}")
    if importlib.util.find_spec("nltk") is None:
        raise ImportError("sentences need nltk, not installed; pip install 'fairseq_transnorm[text]'")
    if name == "english":
        _english()


def model(name: str, texts: Iterable[str]) -> Model:
    """The model of that name; "trained" looks at the first ``texts``, and gives the same for the same ones."""
    return name if name == "english" else _train(texts)


def _train(texts: Iterable[str]) -> Model:
    from nltk.tokenize.punkt import PunktTrainer

    parts, size = [], 0
    with tqdm(desc="sentences", total=_TRAIN_CHARACTERS, unit=" characters", disable=None, leave=False) as bar:
        for text in texts:
            parts.append(text)
            size += len(text)
            bar.update(len(text))
            if size >= _TRAIN_CHARACTERS:
                break
    trainer = PunktTrainer()
    if parts:
        trainer.train("\n\n".join(parts))  # an empty line begins a paragraph
    return trainer.get_params()


def split_texts(model: Model, texts: Iterable[str], workers: int = 1, size: int = 0) -> Iterator[list[str]]:
    """The sentences of each text, with single spaces; never an empty one.

    Args:
        model: from :func:`model`.
        texts: any number of them; white space of all kinds only separates words.
        workers: upper bound on processes; the result does not depend on it.
        size: bytes of text to come.
    """
    with mapper(_splitter, (model,), workers, size) as split:
        for chunk in split(texts):
            yield from chunk


def _splitter(model: Model) -> Work[list[list[str]]]:
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    punkt = _english() if isinstance(model, str) else PunktSentenceTokenizer(model)

    def work(chunk: list[str]) -> list[list[str]]:
        cleaned = ([" ".join(sentence.split()) for sentence in punkt.tokenize(text)] for text in chunk)
        return [[sentence for sentence in sentences if sentence] for sentences in cleaned]

    return work


def _english() -> Any:
    from nltk.tokenize.punkt import PunktTokenizer

    try:
        return PunktTokenizer("english")
    except LookupError:
        raise FileNotFoundError(
            f"--sentences english: nltk's {_DATA} is not installed. Fetch it with: python -m nltk.downloader {_DATA} "
            "(into ~/nltk_data; another folder: -d FOLDER, and NLTK_DATA=FOLDER when it is used). Without a network: "
            "--sentences trained, which learns the model from the train split"
        ) from None
