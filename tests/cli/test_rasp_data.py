"""The languages from the command line, and one more that a file adds."""

import re
import shutil

import pytest

from fairseq_transnorm.data import languages
from tests.helpers import ROOT, run_cli
from tests.rasp_reference import sample

SCRIPT = "preprocessing/languages.py"
PEEK = """\
train 3, index 3, 5 tokens
  input   § . ( q V
  target  § ( . V q
  layer 0, head 0
    1 0 0 0 0
    1 0 1 0 0
    1 0 0 0 0
    1 1 1 0 1
    1 1 1 0 0
  layer 1, head 0
    1 0 0 0 0
    0 0 1 0 0
    0 1 0 0 0
    0 0 0 0 1
    0 0 0 1 0
"""
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/rasp.md").read_text(encoding="utf-8"), re.DOTALL)
(SHIFT,) = (block for block in BLOCKS if "def shift" in block)  # what the docs tell to add


def test_list_shows_every_language():
    lines = run_cli(SCRIPT, "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["language", *languages.names()]
    (line,) = (line for line in lines if line.startswith("sort_by_freq_26_bos_with_attns "))
    assert " ".join(line.split()[1:]) == "26 27 yes 0,0 0,1 1,0 2,0 3 layers, 2 heads"


def test_peek_shows_samples():
    flags = ["--language", "sort_100_bos_with_attns", "--max-length", 8]
    output = run_cli(SCRIPT, "peek", *flags, 0, 4).stdout
    assert output.endswith(PEEK)
    assert output.count("index") == 4
    assert "  input   § \\r 1 f H $ ! Z\n  target  § \\r ! $ 1 H Z f\n" in output, "white space can be seen"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--language", "revrese_26", 0, 1], "unknown language 'revrese_26'; did you mean 'reverse_26'?"),
        (["--language", "sort_26", "--split", "test", 999, 1001], "test has the samples 0 to 999, not 999 up to 1001"),
    ],
)
def test_what_is_not_there(flags, message):
    done = run_cli(SCRIPT, "peek", *flags, check=False)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)
    assert f"languages.py: error: {message}" in done.stdout


def test_a_file_adds_a_language(tmp_path):
    """As docs/rasp.md shows it; the package is a copy."""
    shutil.copytree(ROOT / "fairseq_transnorm", tmp_path / "fairseq_transnorm")
    (tmp_path / "fairseq_transnorm/data/languages/shift.py").write_text(SHIFT)
    flags = ["--language", "shift_10_with_attns", "--min-length", 3, "--max-length", 3, 0, 1]
    output = run_cli(SCRIPT, "peek", *flags, env={"PYTHONPATH": tmp_path}).stdout
    symbols = sample("sort_10", 0, 3, 3)
    assert f"  input   {' '.join(symbols)}\n  target  § {' '.join(symbols[:2])}\n" in output
    assert output.endswith("  layer 0, head 0\n    0 0 0\n    1 0 0\n    0 1 0\n")
