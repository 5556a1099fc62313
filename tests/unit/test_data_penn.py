"""The Penn Treebank: files of the cache folder, local files, and the published counts."""

import hashlib

import pytest

from fairseq_transnorm.data import penn
from fairseq_transnorm.data.binarize import build
from fairseq_transnorm.data.fetch import FetchError
from fairseq_transnorm.data.tokenizers import Tokenization
from tests.data_sources import preprocess_here, serve

TEXTS = {
    "train": b" no it was n't black monday \n but while the <unk> N board \n",
    "valid": b" consumers may want N \n",
    "test": b" no zebra \n",
}
SERVED = {f"ptb.{split}.txt": text for split, text in TEXTS.items()}


def facts(text):
    lines, words = text.count(b"\n"), len(text.split())
    return penn.File(len(text), hashlib.sha256(text).hexdigest(), lines, words + lines)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Small files pass for the official ones."""
    preprocess_here(monkeypatch)
    monkeypatch.setenv("FAIRSEQ_TRANSNORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(penn, "FILES", {split: facts(text) for split, text in TEXTS.items()})
    monkeypatch.setattr(penn, "SYMBOLS", 16)  # ten words, four symbols, made up to a multiple of 8


def test_published_facts():
    assert {split: file.lines for split, file in penn.FILES.items()} == {"train": 42068, "valid": 3370, "test": 3761}
    assert sum(file.size for file in penn.FILES.values()) == 5_951_345
    assert all(len(file.sha256) == 64 for file in penn.FILES.values())


def test_download_build_and_counts(small, tmp_path):
    with serve(SERVED) as server:
        folder = penn.fetch(f"{server.url}/")
    assert sorted(path.name for path in folder.glob("*.txt")) == ["ptb.test.txt", "ptb.train.txt", "ptb.valid.txt"]
    assert penn.fetch("http://127.0.0.1:9/") == folder, "from the cache, without a server"
    warnings = []
    note = build(penn.corpus(folder, warnings.append), tmp_path / "data", Tokenization("words"))
    assert not warnings
    assert note["official"]
    assert {split: s["lines"] for split, s in note["splits"].items()} == {"train": 2, "valid": 1, "test": 1}
    assert [note["splits"][split]["unknown"] for split in TEXTS] == [1, 3, 1], "<unk>, and words not in train"
    assert "<unk>" not in {line.split()[0] for line in (tmp_path / "data" / "dict.txt").read_text().splitlines()}


def test_other_files_are_refused_from_the_network_and_told_from_a_folder(small, tmp_path):
    changed = SERVED | {"ptb.valid.txt": TEXTS["valid"].replace(b"want", b"wank")}
    with serve(changed) as server, pytest.raises(FetchError, match=r"ptb\.valid\.txt: .*its SHA-256 is"):
        penn.fetch(server.url)
    with serve(SERVED | {"ptb.test.txt": b"short"}) as server, pytest.raises(FetchError, match="5 bytes, but 11 are"):
        penn.fetch(server.url)
    for split, text in TEXTS.items():
        (tmp_path / f"{split}.txt").write_bytes(b"\n = Heading = \n" + text if split == "test" else text)
    warnings = []
    note = build(penn.corpus(tmp_path, warnings.append), tmp_path / "plain", Tokenization("words"))
    assert (note["official"], warnings) == (True, []), "of the same sentences; headings and empty lines go"
    (tmp_path / "valid.txt").write_bytes(TEXTS["valid"] * 2)
    build(penn.corpus(tmp_path, warnings.append), tmp_path / "other", Tokenization("words"))
    assert warnings == ["warning: this is not the official Penn Treebank: valid has 2 lines instead of 1"]


def test_missing_parts(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*none; it should hold ptb\.train\.txt"):
        penn.corpus(tmp_path / "none", print)
    (tmp_path / "ptb.train.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"lacks ptb\.valid\.txt, ptb\.test\.txt; it has: ptb\.train\.txt"):
        penn.corpus(tmp_path, print)
