"""``python -m fairseq_transnorm``."""

import dataclasses
from pathlib import Path

import pytest
from fairseq.models import ARCH_MODEL_REGISTRY

import fairseq_transnorm
from fairseq_transnorm.models.transnormer.config import PRESETS, TransNormerLMConfig
from tests.helpers import run_cli

MAIN = ("python", "-m", "fairseq_transnorm")


def test_it_lists_every_architecture_of_ours_and_none_of_fairseq():
    lines = run_cli(*MAIN).stdout.splitlines()
    assert not [line for line in lines if "tensorboardX" in line], "a note of fairseq's, on import"
    listed = {line.split()[0] for line in lines if line.startswith("  ") and not line.startswith("   ")}
    ours = {arch for arch, model in ARCH_MODEL_REGISTRY.items() if model.__module__.startswith("fairseq_transnorm.")}
    assert listed == ours >= {"transnormer_lm", "transnormer_lm_tiny", "transnormer_t1", "transnormer_t2"}
    assert any(line.startswith("model transnormer_lm: ") for line in lines)


def test_it_shows_every_option_with_help_and_the_value_of_the_preset():
    out = run_cli(*MAIN, "transnormer_lm_tiny").stdout
    heads = {line.split()[0] for line in out.splitlines() if line.startswith("  --")}
    text = " ".join(out.split())
    for field in dataclasses.fields(TransNormerLMConfig):
        if field.name == "_name" or str(field.default).startswith("${"):
            continue
        assert "--" + field.name.replace("_", "-") in heads
        assert " ".join(str(field.metadata["help"]).split()) in text
    width = PRESETS["transnormer_lm_tiny"]["decoder_embed_dim"]
    assert f"[default {width} by this preset, else {TransNormerLMConfig().decoder_embed_dim}]" in text
    assert f"[default {TransNormerLMConfig().dropout}]" in text
    assert "--decoder-embed-dim INT" in out
    assert "--post-norm norm" in text, "a switch takes no value"


@pytest.mark.parametrize(
    ("arch", "hint"), [("transnormer_lm_tinny", "did you mean 'transnormer_lm_tiny'?"), ("xyz", "transnormer_t1")]
)
def test_an_unknown_architecture_is_refused(arch, hint):
    result = run_cli(*MAIN, arch, check=False)
    assert result.returncode == 2
    assert f"unknown architecture '{arch}'" in result.stdout
    assert hint in result.stdout


def test_it_prints_the_folders():
    assert run_cli(*MAIN, "--user-dir").stdout.splitlines()[-1] == fairseq_transnorm.USER_DIR
    folder = Path(run_cli(*MAIN, "--config-dir").stdout.splitlines()[-1])
    assert (folder / "transnormer").is_dir()
