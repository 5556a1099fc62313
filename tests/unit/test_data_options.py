"""What the command lines of preprocessing share: shares of splits, and the end of a script."""

import argparse
import os
import signal

import pytest

from fairseq_transnorm.data import options
from fairseq_transnorm.data.folder import whole_folder


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--split", default="980,10,10")
    return parser


@pytest.mark.parametrize("text", ["1,0,0", "1,nan,1", "1,1,inf", "1,-1,1", "1,1", "1,1,1,1"])
def test_impossible_shares_are_told_when_the_command_line_is_read(text, parser):
    with pytest.raises(ValueError, match=f"--split {text}: give three shares above 0, such as 980,10,10"):
        options.shares(parser, text)


def test_shares(parser, capsys):
    assert options.shares(parser, "949,50,1") == [949, 50, 1]
    assert options.shares(parser, "80,10,10", total=100) == [80, 10, 10]
    with pytest.raises(ValueError, match="--split 8,1,1: give three shares above 0, that sum to 100"):
        options.shares(parser, "8,1,1", total=100)
    with pytest.raises(SystemExit):
        options.shares(parser, "8,one,1")
    assert "--split 8,one,1: three numbers such as 980,10,10" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_nothing_half_made(number, status, tmp_path, capsys):
    def main():
        with whole_folder(tmp_path / "out") as folder:
            (folder / "dict.txt").touch()
            os.kill(os.getpid(), number)
            pytest.fail("it went on")

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert options.run(main) == status
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "interrupted; nothing half-made was left" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
