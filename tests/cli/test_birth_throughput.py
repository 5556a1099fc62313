"""The command that times training beside a plain loop."""

import json

from tests.helpers import run_cli

COMMAND = "analysis/birth/throughput.py"
TINY = ("--width", 16, "--length", 24, "--batch", 4, "--updates", 2, "--repeats", 1, "--threads", 1)


def test_measure_then_draw_again(tmp_path):
    out = run_cli(COMMAND, "tests/data/lighthouse.txt", *TINY, "--out", tmp_path / "a").stdout
    assert [name in out for name in ("plain loop", "fairseq-train", "least ratio", "most data_share")] == [True] * 4
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [(row["form"], row["width"], row["threads"]) for row in rows] == [
        ("plain loop", 16, 1),
        ("fairseq-train", 16, 1),
    ]
    run_cli(COMMAND, "--table", tmp_path / "a.json", "--out", tmp_path / "b")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
