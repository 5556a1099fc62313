"""The benchmark: a fair peer, real steps, its three outputs. No time is asserted."""

import json
import os
import signal

import pytest
import torch

from fairseq_transnorm.measure import efficiency
from fairseq_transnorm.measure.efficiency import BY_BLAS, PAIRS
from tests.helpers import run_cli

LM, MLM = PAIRS["lm"], PAIRS["mlm"]
ALL = [name for pair in PAIRS.values() for name in (pair.ours, pair.peer)]
SMALL = {"dim": 32, "layers": 2, "heads": 2, "vocabulary": 100}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=list(PAIRS))
@pytest.mark.parametrize("size", [SMALL, {"dim": 512, "layers": 6}, {"dim": 256, "layers": 12, "heads": 4}])
def test_the_peer_has_as_many_parameters(size, pair):
    size = {"heads": 8, "vocabulary": 2000} | size
    counts = [
        sum(p.numel() for p in efficiency.build_model(name, 64, **size).parameters()) for name in (pair.ours, pair.peer)
    ]
    assert counts[0] == pytest.approx(counts[1], rel=0.03)


@pytest.mark.parametrize("name", ALL)
def test_a_step_trains(name):
    torch.manual_seed(0)
    step = efficiency.TrainingStep(efficiency.build_model(name, 32, **SMALL), 32, 128)
    assert step.sample["target"].shape == (4, 32)
    masked = step.sample["target"] == 1
    assert (0.7 < masked.float().mean() < 0.95) if "roberta" in name else not masked.any()
    before = [p.detach().clone() for p in step.model.parameters()]
    step()
    changed = [not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True) if b.requires_grad]
    assert sum(changed) == len(changed)


def test_steps_are_timed_with_and_without_onednn(monkeypatch):
    without = []
    call = efficiency.TrainingStep.__call__
    monkeypatch.setattr(
        efficiency.TrainingStep,
        "__call__",
        lambda step: [without.append(not torch.backends.mkldnn.enabled), call(step)],
    )
    rows = efficiency.training_times(LM._replace(longest=16), [16, 32], 64, 1, **SMALL)
    assert [(row["form"], row["length"]) for row in rows] == [
        (LM.ours, 16),
        (LM.peer, 16),
        (BY_BLAS, 16),
        (LM.ours, 32),
        (BY_BLAS, 32),
    ], "the peer is left out where samples are too long for it"
    assert without == 2 * [False, False, True] + 2 * [False, True]
    assert len({row["parameters"] for row in rows if row["length"] == 16 and row["form"] != LM.peer}) == 1
    assert torch.backends.mkldnn.enabled


def test_decoding_reads_one_token_a_call_from_a_filled_state():
    for name, fill in ((LM.ours, efficiency._prefill), (LM.peer, efficiency._fill_cache)):
        model = efficiency.build_model(name, 64, **SMALL).eval()
        with torch.no_grad():
            state = fill(model, 20)
            out, _ = model.decoder(torch.full((1, 21), 5), incremental_state=state)
        assert out.shape == (1, 1, 100)
    (cache,) = {tuple(value["prev_key"].shape) for value in state.values()}
    assert cache == (1, 2, 21, 16)


def test_the_script_prints_ratios_and_draws(tmp_path):
    stem = tmp_path / "efficiency"
    args = ["--quick", "--repeats", 1, "--skip", "step", "memory", "--out", stem]
    done = run_cli("analysis/transnormer/efficiency.py", *args)
    assert "operator at 8192: sdpa / chunk" in done.stdout
    assert "decoding, transnormer_t2: at 8000 / at 100" in done.stdout
    rows = json.loads(stem.with_suffix(".json").read_text())["rows"]
    assert {row["form"] for row in rows} == {"chunk", "quadratic", "sdpa", LM.ours, LM.peer}
    assert all(row["seconds"] > 0 for row in rows)
    again = tmp_path / "again"
    run_cli("analysis/transnormer/efficiency.py", "--table", stem.with_suffix(".json"), "--out", again)
    assert again.with_suffix(".png").read_bytes() == stem.with_suffix(".png").read_bytes()


def test_the_script_measures_the_masked_model_too(tmp_path):
    args = ["--model", "mlm", "--quick", "--repeats", 1, "--skip", "memory", "--out", tmp_path / "mlm"]
    done = run_cli("analysis/transnormer/efficiency.py", *args)
    assert "operator at 8192: sdpa, both ways / product" in done.stdout
    assert "step at 512: roberta / roberta_transnormer_t2" in done.stdout
    rows = json.loads((tmp_path / "mlm.json").read_text())["rows"]
    assert {row["form"] for row in rows} == {*MLM.operators, MLM.ours, MLM.peer, BY_BLAS}
    assert "decoding" not in done.stdout


def test_peak_memory_is_that_of_the_step():
    rows = efficiency.step_memory(LM, [64, 4096], 4096, **SMALL)
    peak = {(row["form"], row["length"]): row["mebibytes"] for row in rows}
    # the peer holds a mask of 4096 x 4096 numbers, we hold nothing of that size
    assert peak[LM.peer, 4096] - peak[LM.peer, 64] > 4 * 4096**2 / 2**20
    assert peak[LM.ours, 4096] < peak[LM.peer, 4096] - 4 * 4096**2 / 2**20


def test_a_model_without_enough_memory_is_left_out(monkeypatch, caplog):
    monkeypatch.setattr(efficiency, "_peak_of_step", _killed)
    assert efficiency.step_memory(LM._replace(longest=16), [64], 64, **SMALL) == []
    assert "transnormer_t2 at 64 tokens per sample: the process was killed" in caplog.text


def _killed(*args):
    os.kill(os.getpid(), signal.SIGKILL)
