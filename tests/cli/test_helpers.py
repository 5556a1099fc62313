"""The tests' own tools."""

import pytest

from tests.helpers import run_cli, sentences


def test_tiny_corpus_is_binarised_by_the_real_command(tiny_lm_data):
    names = {path.name for path in tiny_lm_data.iterdir()}
    assert {"dict.txt", "train.bin", "train.idx", "valid.bin", "valid.idx", "test.bin", "test.idx"} <= names
    assert 60 <= len((tiny_lm_data / "dict.txt").read_text().splitlines()) <= 100
    # No word of the held-out splits is unknown.
    words = {line.split()[0] for line in (tiny_lm_data / "dict.txt").read_text().splitlines()}
    assert set((tiny_lm_data.parent / "test.txt").read_text().split()) <= words


def test_sentences_are_deterministic_and_differ_by_seed():
    assert sentences(5, seed=0) == sentences(5, seed=0)
    assert sentences(5, seed=0) != sentences(5, seed=1)
    assert len(set(sentences(300, seed=0))) > 290
    assert all(4 <= len(line.split()) <= 25 for line in sentences(300, seed=0))


def test_run_cli_shows_the_output_of_a_failure():
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    with pytest.raises(AssertionError, match=r"exit status 3(.|\n)*out\nerr"):
        run_cli("python", "-c", code)
    assert run_cli("python", "-c", code, check=False).returncode == 3


def test_run_cli_kills_the_workers_too_when_time_is_up():
    with pytest.raises(AssertionError, match=r"no end after 2 s(.|\n)*started"):
        # The grandchild holds the pipe: without killing it, reading the rest of the output would take a minute.
        run_cli("python", "-c", "import os; print('started'); os.system('sleep 60')", timeout=2)
