"""Conversion through real commands: convert, evaluate, fine-tune, resume, and convert back."""

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from fairseq import tasks
from fairseq.data import Dictionary
from fairseq.tasks.language_modeling import LanguageModelingConfig

from fairseq_transnorm.models.transnormer.convert import convert
from fairseq_transnorm.models.transnormer.upstream import same_bits
from tests import upstream
from tests.helpers import run_cli

SCRIPT = "scripts/convert_upstream.py"
USER_DIR = "fairseq_transnorm"
TOKENS = 80  # of a sample: more than a block, not a multiple of it
ALIAS = {"t1": "norm_glu_lm_base_pure_rms_urpe_1d3", "t2": "norm_glu_lm_base_pure_rms_urpe_1d3_softmax_1+elu"}
SIZES = [
    "--decoder-embed-dim",
    32,
    "--decoder-layers",
    4,
    "--decoder-attention-heads",
    4,
    "--tokens-per-sample",
    TOKENS,
]
TRAIN = ["--task", "language_modeling", "--user-dir", USER_DIR, "--sample-break-mode", "none", "--batch-size", 4]
TRAIN += ["--optimizer", "adam", "--lr", 1e-3, "--max-update", 2, "--log-format", "json", "--num-workers", 0, *SIZES]


class Converted(NamedTuple):
    """The original's tensors, our checkpoint made from them, and what the script printed."""

    state: dict[str, torch.Tensor]
    ours: Path
    output: str


@pytest.fixture(scope="module")
def converted(tiny_lm_data, tmp_path_factory):
    """``{variant: Converted}`` for t1 with silu and t2 with identity."""
    folder, found = tmp_path_factory.mktemp("converted"), {}
    symbols = len(Dictionary.load(str(tiny_lm_data / "dict.txt")))
    for seed, (variant, glu_act) in enumerate({"t1": "silu", "t2": "identity"}.items()):
        options = {"arch": ALIAS[variant], "dropout": 0.0, "tokens_per_sample": TOKENS, "data": "/gone"}
        state = upstream.make_state(symbols, seed=seed)
        theirs = upstream.save_checkpoint(folder / f"theirs_{variant}.pt", state, **options)
        ours = folder / f"ours_{variant}.pt"
        output = run_cli(SCRIPT, theirs, ours, "--glu-act", glu_act, "--data", tiny_lm_data).stdout
        found[variant] = Converted(state, ours, output)
    return found


def model_of(path):
    return torch.load(path, weights_only=True)["model"]


def expected_loss(state, data, variant, glu_act):
    """Mean loss in bits over the validation set, by the formulas."""
    config = LanguageModelingConfig(data=str(data), tokens_per_sample=TOKENS, batch_size=1)
    config.dataset_impl, config.seed, config.use_plasma_view = None, 1, False
    task = tasks.get_task("language_modeling").setup_task(config)
    task.load_dataset("valid")
    nats, count = 0.0, 0
    for sample in task.dataset("valid"):
        scores = upstream.logits(state, sample["source"], variant, glu_act)
        nats += torch.nn.functional.cross_entropy(scores, sample["target"], reduction="sum").item()
        count += len(sample["target"])
    return nats / count / math.log(2), count


@pytest.mark.parametrize(("variant", "glu_act"), [("t1", "silu"), ("t2", "identity")])
def test_eval_lm_reports_the_loss_of_the_formulas(variant, glu_act, converted, tiny_lm_data):
    state, ours, output = converted[variant]
    assert f"theirs_{variant}.pt: transnormer_{variant}, 4 layers, width 32, 4 heads, glu feed-forward of 85" in output
    assert f"gate: {glu_act}" in output
    assert "decoder.version, optimizer state" in output
    want, count = expected_loss(state, tiny_lm_data, variant, glu_act)
    assert count > 3 * TOKENS
    evaluation = ["--user-dir", USER_DIR, "--gen-subset", "valid", "--tokens-per-sample", TOKENS, "--batch-size", 3]
    shown = run_cli("fairseq-eval-lm", tiny_lm_data, "--path", ours, *evaluation).stdout
    assert f"Evaluated {count:,} tokens" in shown
    assert float(re.search(r"Loss \(base 2\): ([\d.]+)", shown)[1]) == pytest.approx(want, abs=2e-4)


def test_finetune_then_convert_back_and_again(converted, tiny_lm_data, tmp_path):
    _, ours, _ = converted["t2"]
    run_cli("fairseq-train", tiny_lm_data, *TRAIN, "--arch", "transnormer_t2", "--glu-act", "identity",
            "--finetune-from-model", ours, "--save-dir", tmp_path / "run")  # fmt: skip
    tuned = tmp_path / "run" / "checkpoint_last.pt"
    before, after = model_of(ours), model_of(tuned)
    assert sorted(before) == sorted(after)
    # reflections are never trained; everything else moved by about two steps of the learning rate
    assert all(same_bits(before[name], after[name]) for name in before if name.endswith("lrpe.v"))
    moved = {name: (before[name] - after[name]).abs().max().item() for name in before if not name.endswith("lrpe.v")}
    assert all(0 < x < 5e-3 for x in moved.values()), moved

    assert "optimizer state" in run_cli(SCRIPT, tuned, tmp_path / "theirs.pt", "--reverse").stdout
    convert(tmp_path / "theirs.pt", tmp_path / "again.pt")
    again = model_of(tmp_path / "again.pt")
    assert sorted(again) == sorted(after)
    assert all(same_bits(again[name], after[name]) for name in after)


def test_training_goes_on_from_the_weights(converted, tiny_lm_data, tmp_path):
    _, ours, _ = converted["t1"]
    flags = ["--arch", "transnormer_t1", "--lr", 0, "--restore-file", ours, "--save-dir", tmp_path]
    output = run_cli("fairseq-train", tiny_lm_data, *TRAIN, *flags, "--disable-validation").stdout
    assert any(
        json.loads(line[line.index("{") :])["train_wall"] for line in output.splitlines() if '"train_wall"' in line
    )
    before, after = model_of(ours), model_of(tmp_path / "checkpoint_last.pt")
    assert all(same_bits(before[name], after[name]) for name in before)


def test_an_error_is_one_line_and_an_exit_status(converted, tmp_path):
    torch.save(converted["t1"].state | {"decoder.layers.0.extra": torch.ones(1)}, tmp_path / "bare.pt")
    result = run_cli(SCRIPT, tmp_path / "bare.pt", tmp_path / "x.pt", "--arch", ALIAS["t1"], check=False)
    assert result.returncode == 1
    assert result.stdout.strip().splitlines()[-1] == (
        f"convert_upstream: error: {tmp_path}/bare.pt does not fit transnormer_t1: "
        "unknown tensors: decoder.layers.0.extra"
    )
    assert not (tmp_path / "x.pt").exists()


def test_help_says_what_the_gate_was_and_what_pickle_risks():
    words = " ".join(run_cli(SCRIPT, "--help").stdout.split())
    assert "identity (the default) since 2022-10-28, as in the released code, silu before" in words
    assert "RISK: such a file can run any code" in words
