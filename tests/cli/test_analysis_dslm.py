"""The component simulations and approximations as a user calls them."""

import json
import runpy
import signal
import subprocess
import time

import pytest

from fairseq_transnorm.measure.component_grid import COMPONENTS, Reduction
from fairseq_transnorm.measure.component_runs import simulate_all
from tests.helpers import ROOT, cli_env, command_line, run_cli

SIMULATIONS, APPROXIMATIONS = "analysis/dslm/simulations.py", "analysis/dslm/approximations.py"
COMBINATIONS, TRIALS = 60, 50_000  # some 50 ms each: seconds are left when the interrupt comes
DEADLINE = 60  # seconds for the first result


def lines(path):
    return path.read_bytes().splitlines() if path.exists() else []


def test_interrupted_simulations_go_on(tmp_path):
    out = tmp_path / "out"
    args = [SIMULATIONS, "gelu", "--combinations", COMBINATIONS, "--trials", TRIALS, "--workers", 1, "--out", out]
    command = [*command_line(args[0]), *map(str, args[1:])]
    with subprocess.Popen(command, cwd=ROOT, env=cli_env(), stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + DEADLINE
        while len(lines(out / "gelu.jsonl")) < 5 and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, errors
    assert f"interrupted; the same command goes on from {out}" in errors
    first = lines(out / "gelu.jsonl")
    assert 5 <= len(first) <= COMBINATIONS, "some are finished, not all"
    printed = run_cli(*args, "--check").stdout
    assert lines(out / "gelu.jsonl")[: len(first)] == first, "no finished combination was done again"

    some = COMPONENTS["gelu"].select(0, COMPONENTS["gelu"].reduced, Reduction(COMBINATIONS))[2:6]
    simulate_all("gelu", some, tmp_path / "some.jsonl", trials=TRIALS)
    both, apart = lines(out / "gelu.jsonl"), lines(tmp_path / "some.jsonl")
    assert len(both) == 1 + COMBINATIONS
    assert [both[0], *both[3:7]] == apart, "the same before and after the interrupt as without it"
    check_tables(out, printed)


def check_tables(out, printed):
    rows = json.loads((out / "errors.json").read_text())["rows"]
    assert [row["metric"] for row in rows] == ["x mean", "x var", "g var", "x cov", "g cov"]
    assert all(row["component"] == "GeLU" and row["trials"] == TRIALS for row in rows)
    for row in rows:
        assert f"Error {row['metric']}: [{row['p50']:.1f}, {row['p90']:.1f}, {row['p99']:.1f}]" in printed
    assert f"GeLU: {COMBINATIONS} combinations, {TRIALS} trials each" in printed
    assert "Above the bound: none" in printed
    table = json.loads((out / "gelu.json").read_text())["rows"]
    assert len(table) == COMBINATIONS
    assert {"variance", "correlation", "x var: theory", "x var: measured", "x var: error"} <= table[0].keys()


def test_simulations_say_what_is_wrong(tmp_path):
    """Too few trials for the bounds under --check, then other settings for the same folder."""
    args = [SIMULATIONS, "ReLU", "attention_block", "--combinations", 2, "--trials", 2, "--out", tmp_path]
    missed = run_cli(*args, "--check", check=False)
    assert missed.returncode == 3, missed.stdout
    assert "Above the bound: ReLU, " in missed.stdout
    assert all(f"Error {name}: [" in missed.stdout for name in ("g var", "g var corrected", "g var whole"))
    refused = run_cli(*args, "--seed", 5, check=False)
    assert refused.returncode == 1
    assert "relu.jsonl was made with seed 0 (now 5); give another --out" in refused.stdout
    assert "Traceback" not in refused.stdout


def test_names_of_the_published_table_and_a_single_trial(tmp_path, capsys):
    main = runpy.run_path(str(ROOT / SIMULATIONS))["main"]
    args = ["--combinations", "1", "--max-length", "100", "--max-width", "100", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="2"):
        main(["FFN", *args, "--trials", "1"])
    assert "argument --trials: 1 is not at least 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["FFN", "Linear", *args, "--trials", "2", "--device", "cuda:99"]) == 1
    assert "device 'cuda:99' cannot be used here" in capsys.readouterr().err
    assert main(["FFN", "Linear", *args, "--trials", "2"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"linear.jsonl", "linear.json", "errors.json"}
    with pytest.raises(SystemExit, match="0"):
        main(["sha", "SHA", "--help"])


def test_approximations(tmp_path):
    stem = tmp_path / "figure" / "out"
    printed = run_cli(APPROXIMATIONS, "--points", 201, "--out", stem).stdout
    assert {path.name for path in stem.parent.iterdir()} == {"out.pdf", "out.png", "out.json"}
    rows = json.loads(stem.with_suffix(".json").read_text())["rows"]
    assert len(rows) == 201
    half = {"input": 0.5, "relu": 0.4264225, "relu_approximate": 0.425, "ffn": 0.6089978, "ffn_approximate": 0.6137324}
    assert rows[100] == pytest.approx(half, abs=1e-6)
    assert rows[-1] == pytest.approx(dict.fromkeys(half, 1.0))
    assert "relu" in printed
    assert "ffn" in printed
