"""scripts/train_normgrowth.sh and repro_normgrowth.sh: every variant, what a training leaves, all figures once."""

import re

import pytest

from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.growth_log import read_growth
from fairseq_transnorm.models.normgrowth.config import PRESETS
from tests.helpers import ROOT, run_cli


def test_the_script_knows_the_variants_of_the_package():
    text = (ROOT / "scripts/train_normgrowth.sh").read_text()
    known = re.search(r"^variants=\((.*?)\)", text, re.DOTALL | re.MULTILINE)[1].split()
    assert sorted(known) == sorted(name.removeprefix("normgrowth_") for name in PRESETS)
    usage = run_cli("scripts/train_normgrowth.sh", "--help").stdout
    assert all(re.search(rf"\b{name}\b", usage) for name in known)


def test_an_unknown_variant_is_refused_by_name():
    done = run_cli("scripts/train_normgrowth.sh", "contrl", "data", check=False)
    assert done.returncode == 1
    assert "no variant 'contrl'" in done.stdout
    assert "pre_norm" in done.stdout


def test_a_training_leaves_its_norms_and_its_first_model_and_ends_once(trained_growth, tiny_lm_data):
    folder = trained_growth.parent
    records = read_growth(folder)
    assert [record["updates"] for record in records[:3]] == [0, 2, 4]
    assert len(records[1]["layers"]) == 2
    assert load_run(folder / "checkpoint_init.pt").updates == 0
    assert load_run(trained_growth).model.decoder.layers[0].norm_placement == "post"
    env = {"SAVE_DIR": folder, "NPROC": 1}
    again = run_cli("scripts/train_normgrowth.sh", "control", tiny_lm_data, "--cpu", "--max-epoch", 2, env=env).stdout
    assert "Nothing to do" in again


@pytest.mark.slow
def test_the_reproduction_draws_every_figure_and_keeps_what_is_finished(tmp_path):
    env = {"OUT": tmp_path, "NO_VENV": 1, "NO_CHECK": 1, "SENTENCES": 96, "EPOCHS": 1, "GRID": 2}
    first = run_cli("scripts/repro_normgrowth.sh", env=env, timeout=900).stdout
    figures = "trajectory t5 regression growth_plane curves schedules scores heads layers layers_random homogeneity"
    for name in [*figures.split(), "grid_adam", "grid_sgd"]:
        assert {f"{name}.{kind}" for kind in ("png", "pdf", "json")} <= {p.name for p in tmp_path.iterdir()}, first
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    run_cli("scripts/repro_normgrowth.sh", env=env)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
