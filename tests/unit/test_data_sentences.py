"""Sentences: nltk's model of English and one trained on the text, and never an empty sentence."""

import importlib.util
import pickle

import pytest

from fairseq_transnorm.data import sentences

# Gen. ends no sentence: it stands before a name and a comma, and nowhere without its full stop.
TEXTS = [
    "The army of Gen. Smith left at dawn. It was cold.\n\nNobody knew\tGen. Jones, who slept. He woke late.",
    "We saw Gen. Brown today. \u3000 Why?\u2028He  said: so be it! \u00a0",
    "He met Gen. Lee, and they spoke. The sea was calm. They left.",
] * 5
EXPECTED = [
    ["The army of Gen. Smith left at dawn.", "It was cold.", "Nobody knew Gen. Jones, who slept.", "He woke late."],
    ["We saw Gen. Brown today.", "Why?", "He said: so be it!"],
    ["He met Gen. Lee, and they spoke.", "The sea was calm.", "They left."],
]


def nltk_data(folder, monkeypatch, abbreviations):
    """A model of English as nltk's downloader leaves it, in a folder that nltk looks into."""
    from nltk import data

    model = folder / "tokenizers" / "punkt_tab" / "english"
    model.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (model / name).write_text("")
    (model / "abbrev_types.txt").write_text("".join(f"{word}\n" for word in abbreviations))
    monkeypatch.setattr(data, "path", [str(folder)])


def test_trained_on_the_text():
    model = sentences.model("trained", TEXTS)
    assert model.abbrev_types == {"gen"}
    assert list(sentences.split_texts(model, TEXTS)) == EXPECTED * 5
    # Without training every full stop before a capital ends a sentence.
    assert next(sentences.split_texts(sentences.model("trained", []), TEXTS))[:2] == [
        "The army of Gen.",
        EXPECTED[0][0][17:],
    ]
    assert list(sentences.split_texts(model, ["", " \n", "no end"])) == [[], [], ["no end"]]


def test_training_stops_after_enough_text(monkeypatch):
    monkeypatch.setattr(sentences, "_TRAIN_CHARACTERS", 10)

    def texts():
        yield TEXTS[0]
        raise AssertionError("one text is enough")

    sentences.model("trained", texts())


def test_english(tmp_path, monkeypatch):
    nltk_data(tmp_path, monkeypatch, ["dr", "gen"])
    sentences.check("english")
    assert list(sentences.split_texts(sentences.model("english", []), TEXTS[:3])) == EXPECTED


def test_english_is_not_installed(tmp_path, monkeypatch):
    from nltk import data

    monkeypatch.setattr(data, "path", [str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"python -m nltk\.downloader punkt_tab .*--sentences trained"):
        sentences.check("english")


def test_other_errors(monkeypatch):
    with pytest.raises(ValueError, match="unknown model of sentences 'german'; known are english, trained"):
        sentences.check("german")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"sentences need nltk, not installed; pip install 'fairseq_transnorm\[text\]'"
    ):
        sentences.check("trained")


def test_other_processes_can_have_the_model():
    model = pickle.loads(pickle.dumps(sentences.model("trained", TEXTS)))
    assert list(sentences.split_texts(model, TEXTS)) == EXPECTED * 5
