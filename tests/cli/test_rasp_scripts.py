"""scripts/train_rasp.sh, multirun_rasp.sh and repro_rasp.sh: settings, interrupts, lists of runs, what they draw."""

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from fairseq_transnorm.measure.epoch_log import results, write_json
from fairseq_transnorm.measure.language_criteria import CRITERIA, EPOCHS
from tests.cli.conftest import SCRIPT_ENV
from tests.helpers import BIN, ROOT, cli_env, command_line, run_cli, someone_left
from tests.rasp_runs import train
from tests.unit.test_config_yaml import from_command
from tests.unit.test_language_criteria import good

ENV = {key: value for key, value in SCRIPT_ENV.items() if key not in ("SEQUENCES", "BATCH_SIZE")}
TINY = ["--max-length", 6, "--train-size", 40, "--valid-size", 20, "--test-size", 10, "--num-workers", 0, "--cpu"]
EXAMPLE = {"lang": "reverse_100", "heads": 1, "layers": 2, "dim": 50, "epochs": 20}
EXAMPLE |= {"dropout": 0.1, "gamma": 0.99, "lr": 0.0003, "subfolder": "example"}  # the original's


def planned(script, *arguments, check=True, **env):
    return run_cli(f"scripts/{script}", *arguments, env=ENV | {"DRY_RUN": 1} | env, check=check).stdout


def commands(printed):
    """Folder -> command."""
    lines = [line for line in printed.splitlines() if " --save-dir " in line]
    return {shlex.split(line)[shlex.split(line).index("--save-dir") + 1]: line for line in lines}


@pytest.mark.registered
@pytest.mark.filterwarnings("ignore")
def test_the_original_s_example_is_a_command_with_its_settings():
    ((folder, line),) = commands(planned("train_rasp.sh", **EXAMPLE)).items()
    assert line.startswith("python -m fairseq_transnorm.train_rasp ")
    sizes = "L2_H1_D50_FF100_drop0.1_epochs20_pos-sin_lr0.0003_gamma0.99_c100_batch50_adam_seed1"
    assert folder == f"checkpoints/rasp/example/reverse_100/{sizes}"
    cfg = from_command(line)
    wanted = {"task.language": "reverse_100", "task.max_length": 100, "task.train_size": 50_000}
    wanted |= {"task.reset_patience": 10, "task.crop_train": 0, "criterion.attn_loss_weight": 100}
    wanted |= {"model.rasp_layers": 2, "model.rasp_heads": 1, "model.rasp_dim": 50, "model.rasp_ffn_dim": 100}
    wanted |= {"model.dropout": 0.1, "model.positional_encoding": "sin", "model.rasp_attention": "softmax"}
    wanted |= {"dataset.batch_size": 50, "dataset.required_batch_size_multiple": 1, "optimization.update_freq": [1]}
    wanted |= {"optimization.clip_norm": 0, "optimization.max_epoch": 20, "optimizer.lr": [0.0003]}
    wanted |= {"optimizer._name": "adam", "optimizer.adam_betas": "(0.9, 0.999)", "optimizer.adam_eps": 1e-8}
    wanted |= {"optimizer.weight_decay": 0, "lr_scheduler._name": "rasp_exponential", "lr_scheduler.gamma": 0.99}
    wanted |= {"checkpoint.best_checkpoint_metric": "loss", "checkpoint.no_epoch_checkpoints": True}
    assert {name: cfg[name] for name in wanted} == wanted


def test_defaults_and_shortcuts_are_the_original_s_and_the_user_s_flags_win():
    def words(*arguments, **env):
        ((folder, line),) = commands(planned("train_rasp.sh", *arguments, lang="sort_26", **env)).items()
        return folder, f"{line} "

    folder, line = words("--rasp-dim", 8, "--max-length", 20)
    assert "/L1_H1_D8_FF16_drop0.0_epochs50_pos-sin_lr0.0003_gamma0.98_c100_batch50_adam_max-length20_seed1" in folder
    assert " --rasp-dim 128 --rasp-ffn-dim 16 " in line
    assert line.endswith(" --rasp-dim 8 --max-length 20  ")
    _, line = words(small="true", position="embed", attn_c=10, reset_patience=0, batch_size=20, SEED=3)
    small = "--rasp-layers 2 --rasp-heads 4 --rasp-dim 16 --rasp-ffn-dim 20 --positional-encoding embed"
    for part in (small, "--crop-train 100", "--attn-loss-weight 10", "--reset-patience 0", "--seed 3"):
        assert f" {part} " in line
    assert " --batch-size 20 " in line
    _, line = words(overfit="true", tinyset=7, traincrop=9)
    assert " --optimizer sgd " in line
    assert " --adam" not in line
    assert all(f" {part} " in line for part in ("--overfit", "--tiny 7", "--crop-train 9"))
    folder, _ = words("--update-freq", 2, "--clip-norm", 1, "--weight-decay", 0.1, reset_patience=0)
    assert folder.endswith("_adam_update-freq2_clip-norm1_weight-decay0.1_reset-patience0_seed1")
    folder, _ = words("--model-bos", "--independent-layer-init", "--cpu", overfit="true")
    assert folder.endswith("_batch50_sgd_independent-layer-init_model-bos_overfit_seed1")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"lang": ""}, "which language\\? lang=reverse_26 .*preprocessing/languages.py list shows all"),
        ({"position": "foo"}, "position is 'foo'; it can be: sin embed"),
        ({"small": "maybe"}, "small is 'maybe'; it can be: true false"),
        ({"heads": "two"}, "heads is 'two', not a whole number of at least 1"),
        ({"tinyset": "-1"}, "tinyset is '-1', not a whole number of at least 0"),
    ],
)
def test_a_wrong_setting_is_refused(env, message):
    assert re.search(f"error: {message}", planned("train_rasp.sh", check=False, **{"lang": "sort_10"} | env))


def test_an_interrupt_of_all_processes_ends_in_an_evaluation_and_the_next_call_goes_on(tmp_path):
    env = {"lang": "reverse_10", "dim": 8, "epochs": 1000, "SAVE_DIR": tmp_path / "run"}
    command = [*command_line("scripts/train_rasp.sh"), *map(str, TINY)]
    with subprocess.Popen(
        command, env=cli_env(ENV | env), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as script:
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "run/checkpoint_best.pt").exists():
                assert time.monotonic() < deadline, "training did not begin"
                time.sleep(0.05)
            os.killpg(script.pid, signal.SIGINT)
            output, _ = script.communicate(timeout=60)
        finally:
            if someone_left(script.pid):
                os.killpg(script.pid, signal.SIGTERM)
    assert script.returncode == 0, output
    found = json.loads((tmp_path / "run/results.json").read_text())
    assert found["stop_reason"] == "interrupted by user"
    assert found["evaluated"]["test"]["accuracy"] > 0
    done = found["epochs"]
    run_cli("scripts/train_rasp.sh", *TINY, env=ENV | env | {"epochs": done + 2})
    found = json.loads((tmp_path / "run/results.json").read_text())
    assert (found["epochs"], found["stop_reason"]) == (done + 2, "max_epoch")


def test_the_list_of_runs_is_that_of_the_tables():
    program = {"lang": "hist2_26_bos", "heads": 2, "layers": 2}
    printed = commands(run_cli("scripts/multirun_rasp.sh", "--print", "--lr", 1, env=ENV | program).stdout)
    assert len(printed) == 16
    folder = "checkpoints/rasp/example/hist2_26_bos_L2_H2"
    for rate in ("0.0003", "0.0001"):
        for factor in ("0.98", "0.99"):
            for layers, heads, dim in ((2, 2, 256), (2, 1, 256), (1, 2, 256), (1, 4, 512)):
                line = printed[f"{folder}/L{layers}_H{heads}_D{dim}_lr{rate}_gamma{factor}"]
                sizes = f"--rasp-layers {layers} --rasp-heads {heads} --rasp-dim {dim} --rasp-ffn-dim {2 * dim} "
                assert sizes in line
                assert f" --lr {rate} --lr-scheduler rasp_exponential --gamma {factor} " in line
                assert " --dropout 0.0 " in line
                assert " --max-epoch 100 " in line
                assert line.rstrip().endswith(" --lr 1")
    small = {"lang": "reverse_26", "heads": 1, "layers": 2, "LR": 0.1, "GAMMA": 0.9, "dim": 8}
    assert [name.rpartition("/")[2] for name in commands(planned("multirun_rasp.sh", **small))] == [
        f"{size}_lr0.1_gamma0.9" for size in ("L2_H1_D8", "L1_H1_D8", "L1_H2_D16")
    ]
    for env, message in (({"lang": ""}, "which language"), ({"heads": ""}, "heads, those of the program, is ''")):
        assert message in planned("multirun_rasp.sh", check=False, **small | env)


@pytest.fixture
def stand_in(tmp_path):
    """An environment whose python notes trainings and figures; a training waits while there is a file ``wait``."""
    environment, notes = tmp_path / "env/bin", tmp_path / "notes"
    environment.mkdir(parents=True)
    (environment / "fairseq-train").symlink_to(BIN / "fairseq-train")
    (environment / "python").write_text(f"""#!/usr/bin/env bash
        case "$1 $2" in
            "-m fairseq_transnorm.train_rasp")
                [[ $* =~ --save-dir\\ ([^ ]+) ]]
                echo "${{BASH_REMATCH[1]##*/}}" >>{notes}
                trap 'echo ended >>{notes}; exit 1' TERM
                while [[ -e {tmp_path}/wait ]]; do sleep 0.1; done
                ! [[ -e {tmp_path}/fail && "$*" == *--rasp-heads\\ 4* ]] || exit 5
                ;;
            analysis/*)
                (printf '%q ' "$@" && echo) >>{notes}
                [[ $1 != */summary.py ]] || echo table >"$4.md"
                ;;
            *) exec {BIN}/python "$@" ;;
        esac
    """)
    (environment / "python").chmod(0o755)
    notes.touch()
    return ENV | {"VIRTUAL_ENV": tmp_path / "env", "OUT": tmp_path / "out", "NO_VENV": 1}


def noted(tmp_path):
    """What was noted since the last call."""
    lines = (tmp_path / "notes").read_text().splitlines()
    (tmp_path / "notes").write_text("")
    return lines


def test_the_list_of_runs_is_printed_without_training(stand_in, tmp_path):
    own = {name: value for name, value in stand_in.items() if name != "DRY_RUN"}  # it would be exported as it is
    own |= {"lang": "reverse_10", "heads": 1, "layers": 1, "dim": 8}
    printed = commands(run_cli("scripts/multirun_rasp.sh", "--print", env=own).stdout)
    assert len(printed) == 4
    assert noted(tmp_path) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "env", "message"),
    [
        ([], {"small": "true"}, "small=true gives all models one size"),
        (["--rasp-dim=8"], {}, "--rasp-dim gives all models one size"),
    ],
)
def test_settings_that_make_the_models_of_a_list_equal_are_refused(flags, env, message):
    program = {"lang": "reverse_10", "heads": 1, "layers": 1, "DRY_RUN": 1}
    refused = run_cli("scripts/multirun_rasp.sh", *flags, env=ENV | program | env, check=False)
    assert refused.returncode == 1
    assert f"error: {message}" in refused.stdout


def test_runs_that_are_interrupted_or_fail_are_taken_up_again_and_finished_ones_kept(stand_in, tmp_path):
    env = stand_in | {"lang": "hist2_10", "heads": 2, "layers": 2, "dim": 8, "LR": 1, "GAMMA": 1, "JOBS": 2}
    sizes = [f"{size}_lr1_gamma1" for size in ("L2_H2_D8", "L2_H1_D8", "L1_H2_D8", "L1_H4_D16")]
    (tmp_path / "wait").touch()
    command = command_line("scripts/multirun_rasp.sh")
    with subprocess.Popen(
        command, env=cli_env(env), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as script:
        deadline = time.monotonic() + 60
        while len((tmp_path / "notes").read_text().splitlines()) < 2:
            assert time.monotonic() < deadline, "training did not begin"
            time.sleep(0.05)
        os.killpg(script.pid, signal.SIGINT)
        output, _ = script.communicate(timeout=60)
    assert script.returncode == 130
    assert "interrupted; call again to go on from here" in output
    assert not someone_left(script.pid)
    assert sorted(noted(tmp_path)) == sorted([*sizes[:2], "ended", "ended"])

    (tmp_path / "wait").unlink()
    (tmp_path / "fail").touch()
    failed = run_cli("scripts/multirun_rasp.sh", env=env, check=False)
    assert failed.returncode == 1
    assert f"error: these failed: {sizes[3]}" in failed.stdout
    *trained, summary = noted(tmp_path)
    assert sorted(trained) == sorted(sizes)
    assert shlex.split(summary) == ["analysis/rasp/summary.py", f"{tmp_path}/out", "--out", f"{tmp_path}/out/summary"]

    (tmp_path / "fail").unlink()
    again = run_cli("scripts/multirun_rasp.sh", env=env).stdout
    assert again.count("kept from before") == 3
    assert noted(tmp_path)[:-1] == [sizes[3]]
    others = {"overfit": "true", "tinyset": 100, "traincrop": 100, "BATCH_SIZE": 25}
    for flags, other in ((["--lr", 2], {}), *(([], {name: value}) for name, value in others.items())):
        refused = run_cli("scripts/multirun_rasp.sh", *flags, env=env | other, check=False)
        assert "holds a run with other settings" in refused.stdout


def test_every_language_is_trained_at_its_program_s_size(tmp_path):
    printed = commands(planned("repro/rasp_languages.sh", OUT=tmp_path, SEEDS=2, ATTENTION="softmax linear"))
    assert len(printed) == 20 + 14
    line = printed[f"{tmp_path}/sort_by_freq_26_bos_linear-2"]
    assert " --language sort_by_freq_26_bos " in line
    assert " --rasp-layers 3 --rasp-heads 2 --rasp-dim 64 " in line
    assert " --seed 2 " in line
    assert " --rasp-attention linear " in line
    assert not any("_with_attns" in name and "linear" in name for name in printed)
    wrong = planned("repro/rasp_languages.sh", ATTENTION="cosine", check=False)
    assert "ATTENTION is 'cosine'; it can be: softmax linear linear_denominator" in wrong


@pytest.fixture
def evidence(once, tmp_path):
    """A folder as scripts/repro_rasp.sh leaves it, of tiny models and numbers made by hand."""
    tiny = ["--batch-size", 20, "--max-epoch", 1, "--max-length", 8, "--test-size", 40]
    models = once("rasp_program", lambda made: train(made, *tiny))  # sort_10_with_attns
    folder = tmp_path / "out"
    for name, run in good().items():
        shutil.copytree(models, folder / name)
        lines = [dict(line) for line in run.epochs]
        for line in lines:
            metrics = {"loss": 0.5, "accuracy": line["valid"]["accuracy"]}
            line |= {"updates": line["epoch"], "seconds": 1.0, "train": metrics, "valid": metrics}
            line |= {"best": False, "restored": False, "stop": None}
        (folder / name / "epochs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        arguments = {"language": "reverse_26", "lr": run.lr, "gamma": run.gamma}
        evaluated = {"checkpoint": "checkpoint_best.pt", "test": {"accuracy": run.test_accuracy}}
        write_json(folder / name / "results.json", results(arguments, lines, "max_epoch", evaluated))
    return folder


def test_the_table_of_phenomena_tells_what_is_missed_by_its_status(evidence, capsys):
    main = runpy.run_path(str(ROOT / "analysis/rasp/phenomena.py"))["main"]
    assert main([str(evidence)]) == 3  # these models were hardly trained
    rows = {row["quantity"]: row for row in json.loads((evidence / "phenomena.json").read_text())["rows"]}
    assert len(rows) == len(CRITERIA)
    wrong = {name for name, row in rows.items() if row["ok"] == "NO"}
    assert {"double histogram: least target mass", "reverse: of abcdefgh"} <= wrong
    assert all("mass" in name or "abcdefgh" in name for name in wrong)
    assert 0 < rows["double histogram: least target mass"]["measured"] < 0.8
    assert f"{len(wrong)} of {len(CRITERIA)} criteria are missed" in capsys.readouterr().err
    (evidence / "brackets-1/results.json").unlink()
    assert main([str(evidence)]) == 1
    assert "there is no run brackets-1 with results.json" in capsys.readouterr().err


def test_the_reproduction_trains_what_is_compared_and_draws_maps(stand_in, evidence, tmp_path):
    printed = commands(planned("repro_rasp.sh", OUT=tmp_path / "out", SEEDS="1 2"))
    assert {f"{tmp_path}/out/{name}" for name in good()} <= set(printed)
    assert all(f" --max-epoch {EPOCHS} " in line for line in printed.values())
    shutil.copytree(evidence / "double_histogram-1", evidence / "most_freq-1")
    (evidence / "settings").write_text("of another call")
    refused = run_cli("scripts/repro_rasp.sh", env=stand_in, check=False).stdout
    now = re.search(r"^ +now: (.*)", refused, re.M)[1]
    (evidence / "settings").write_text(f"{now}\n")
    for name in ("most_freq-1", *good()):
        (evidence / name / "done").write_text("now")
    output = run_cli("scripts/repro_rasp.sh", env=stand_in).stdout
    assert "\ntable\n" in output
    maps = [shlex.split(line) for line in noted(tmp_path) if "heat_maps" in line]
    (script, *arguments), *_ = sorted(maps, key=lambda line: "abcdefgh" in line, reverse=True)
    assert runpy.run_path(str(ROOT / script))["main"](arguments) == 0
    assert (evidence / "maps/sort_10_with_attns/abcdefgh/reverse-1/distributions/layer 1.png").exists()
    wanted = {"reverse-1": "abcdefgh", "double_histogram-1": "languages", "most_freq-1": "languages"}
    assert [["--path", f"{evidence}/{name}", "--sequence", text] for name, text in sorted(wanted.items())] == sorted(
        line[1:5] for line in maps
    )
