"""The benchmark: a fair peer, real steps, its three outputs. No time is asserted."""

import json

import pytest
import torch

from fairseq_transnorm.measure import efficiency
from fairseq_transnorm.measure.efficiency import OURS, OURS_BY_BLAS, PEER
from tests.helpers import run_cli

SMALL = {"dim": 32, "layers": 2, "heads": 2, "vocabulary": 100}


@pytest.mark.parametrize("size", [SMALL, {"dim": 512, "layers": 6, "heads": 8, "vocabulary": 2000}])
def test_the_peer_has_as_many_parameters(size):
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in efficiency.build_model(name, 64, **size).parameters()) for name in (OURS, PEER)
        }
    assert counts[OURS] == pytest.approx(counts[PEER], rel=0.03)


@pytest.mark.parametrize("name", [OURS, PEER])
def test_a_step_trains(name):
    torch.manual_seed(0)
    step = efficiency.TrainingStep(efficiency.build_model(name, 32, **SMALL), 32, 128)
    assert step.sample["target"].shape == (4, 32)
    before = [p.detach().clone() for p in step.model.parameters()]
    step()
    changed = [not torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True) if b.requires_grad]
    assert all(changed)


def test_steps_are_timed_with_and_without_onednn(monkeypatch):
    without = []
    call = efficiency.TrainingStep.__call__
    monkeypatch.setattr(
        efficiency.TrainingStep,
        "__call__",
        lambda step: [without.append(not torch.backends.mkldnn.enabled), call(step)],
    )
    rows = efficiency.training_times([16, 32], 64, 1, **SMALL)
    assert [(row["form"], row["length"]) for row in rows] == [
        (form, length) for length in (16, 32) for form in (OURS, PEER, OURS_BY_BLAS)
    ]
    assert without == 4 * [False, False, True]
    assert len({row["parameters"] for row in rows if row["length"] == 16 and row["form"] != PEER}) == 1
    assert torch.backends.mkldnn.enabled


def test_decoding_reads_one_token_a_call_from_a_filled_state():
    for name, fill in ((OURS, efficiency._prefill), (PEER, efficiency._fill_cache)):
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
    assert {row["form"] for row in rows} == {"chunk", "quadratic", "sdpa", OURS, PEER}
    assert all(row["seconds"] > 0 for row in rows)
    again = tmp_path / "again"
    run_cli("analysis/transnormer/efficiency.py", "--table", stem.with_suffix(".json"), "--out", again)
    assert again.with_suffix(".png").read_bytes() == stem.with_suffix(".png").read_bytes()


def test_peak_memory_is_that_of_the_step():
    rows = efficiency.step_memory([64, 4096], 4096, **SMALL)
    peak = {(row["form"], row["length"]): row["mebibytes"] for row in rows}
    # the peer holds a mask of 4096 x 4096 numbers, we hold nothing of that size
    assert peak[PEER, 4096] - peak[PEER, 64] > 4 * 4096**2 / 2**20
    assert peak[OURS, 4096] < peak[PEER, 4096] - 4 * 4096**2 / 2**20
