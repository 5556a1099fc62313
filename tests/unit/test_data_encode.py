"""Encoding in several processes: the order stays, errors arrive, and little text needs no process."""

import concurrent.futures

import pytest

from fairseq_transnorm.data import encode, parallel
from tests.helpers import sentences

LINES = ["", *sentences(50, seed=1), "", "no-one--here!", ""]


def test_one_process_or_two(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("".join(line + "\n" for line in LINES))
    monkeypatch.setattr(parallel, "_CHUNK", 200)
    results = []
    for workers in (1, 2):
        monkeypatch.setattr(parallel, "_BYTES_PER_WORKER", 100)
        with encode.encoder("words", tmp_path, False, workers, size=1000) as encoder:
            counts = encoder.file(tmp_path / "text", tmp_path / f"out{workers}")
            results.append(((tmp_path / f"out{workers}").read_text(), counts, list(counts)))
            assert [line for chunk, _ in encoder.lines(iter(LINES)) for line in chunk] == results[0][0].split("\n")[:-1]
    assert results[0] == results[1]
    text, counts, _ = results[0]
    assert len(text.splitlines()) == len(LINES)
    assert text.splitlines()[-2] == "no-one -- here !"
    assert counts["--"] == 1


def test_little_text_needs_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", None)
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", None)
    with encode.encoder("words", tmp_path, True, workers=64, size=10_000_000) as encoder:
        assert list(encoder.lines([])) == []
        assert list(encoder.lines(["a b", ""])) == [(["a b", ""], {"a": 1, "b": 1})]


def test_a_process_that_cannot_start_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_BYTES_PER_WORKER", 1)
    with (
        encode.encoder("gpt2", tmp_path, False, workers=2, size=100) as encoder,
        pytest.raises(concurrent.futures.BrokenExecutor),
    ):
        list(encoder.lines(["a"]))  # the folder has no encoder.json
