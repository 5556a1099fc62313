"""``python -m fairseq_transnorm.train_rasp``: what is left of a run at its end and after an interrupt that is sent."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fairseq_transnorm import train_rasp
from fairseq_transnorm.interrupts import interrupts
from fairseq_transnorm.tasks.rasp_lang import RaspLangTask
from tests.helpers import ROOT, cli_env, run_cli, someone_left
from tests.rasp_runs import COMMON, SMALL, epochs, fresh, train

# hydra lays fairseq's use of it at the door of whoever calls fairseq
pytestmark = pytest.mark.filterwarnings("ignore")
STOPPED = "stopped training - interrupted by user"
COMMAND = "fairseq_transnorm.train_rasp"
MANY = ["--max-epoch", 1000, "--batch-size", 8]
ONE = [*MANY, "--max-epoch", 1]
SPLITS = ("train", "valid", "test")


def argv(folder: Path, *flags: object) -> list[str]:
    """The command's arguments without ``--user-dir``."""
    return list(map(str, [*COMMON[2:], *SMALL, *flags, "--save-dir", folder]))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Return ``run(folder, *flags)``: the command in this process, which gives its exit status."""

    def start(folder: Path, *flags: object) -> int:
        interrupts.count, interrupts.raising = 0, False
        with fresh():
            return train_rasp.main(argv(folder, *flags))

    monkeypatch.setattr(sys, "argv", ["pytest"])
    before = signal.getsignal(signal.SIGINT)
    try:
        yield start
    finally:
        signal.signal(signal.SIGINT, before)
        interrupts.count, interrupts.raising = 0, False


def interrupt(calls: int, function: Callable[..., object], after: bool = False) -> Callable[..., object]:
    """Return the function, with an interrupt at its call of that number."""
    count = 0

    def wrapped(*args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        if count == calls and not after:
            signal.raise_signal(signal.SIGINT)
        made = function(*args, **kwargs)
        if count == calls and after:
            signal.raise_signal(signal.SIGINT)
        return made

    return wrapped


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def check_files(folder: Path, stop: str) -> dict:
    """Check that the files of a run that was evaluated agree, and that nothing else is there; return the results."""
    found, prints = results(folder), (folder / "training_prints.txt").read_text()
    assert found["stop_reason"] == stop
    assert f"\nstopped training - {stop}\n" in prints
    for split in SPLITS:
        assert f"\n  {split:5} loss {found['evaluated'][split]['loss']:.6g}, " in prints
    best = [record for record in epochs(folder) if record["best"]][-1]
    assert found["evaluated"]["checkpoint"] == "checkpoint_best.pt"
    assert (found["best_epoch"], found["evaluated"]["updates"]) == (best["epoch"], best["updates"])
    assert found["evaluated"]["valid"] == pytest.approx(best["valid"], rel=1e-5)
    names = ["checkpoint_best.pt", "checkpoint_last.pt", "dataset_prints.txt", "epochs.jsonl", "results.json"]
    assert sorted(file.name for file in folder.iterdir()) == [*names, "training_prints.txt"]
    return found


def start_group(folder: Path) -> "subprocess.Popen[str]":
    """Start the command as the leader of a group of processes, with one more that loads data."""
    flags = [*argv(folder, *MANY), "--num-workers", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", COMMAND, *flags],
        cwd=ROOT,
        env=cli_env(),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Send an interrupt to the whole group, as a terminal does, and wait."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert not someone_left(process.pid)
    return process.returncode, output


@pytest.fixture(scope="module")
def interrupted(once: Callable[..., Path]) -> Path:
    """Folder of a run that was interrupted after its second epoch, and its output. Read it only."""

    def build(folder: Path) -> None:
        process = start_group(folder)
        give_up = time.monotonic() + 120
        while not (folder / "epochs.jsonl").is_file() or len(epochs(folder)) < 2:
            assert process.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.02)
        status, output = end(process)
        (folder.parent / "rasp_interrupted.txt").write_text(f"{status}\n{output}")

    return once("rasp_interrupted", build)


def test_an_interrupt_after_an_epoch_evaluates_the_best_model(interrupted):
    status, output = (interrupted.parent / "rasp_interrupted.txt").read_text().split("\n", 1)
    assert status == "0", output
    assert "Traceback" not in output
    assert "Error" not in output
    assert f"train_rasp: {STOPPED}\n" in output
    found = check_files(interrupted, "interrupted by user")
    assert 1 <= found["best_epoch"] <= found["epochs"] == len(epochs(interrupted))
    assert found["language"] == found["arguments"]["language"] == "sort_10_with_attns"


def test_a_run_that_was_interrupted_goes_on_and_is_that_which_was_not(interrupted, run, tmp_path):
    shutil.copytree(interrupted, tmp_path / "parts")
    done = len(epochs(interrupted))
    assert run(tmp_path / "parts", *MANY, "--max-epoch", done + 2) == 0
    train(tmp_path / "whole", *MANY, "--max-epoch", done + 2)
    assert epochs(tmp_path / "parts") == epochs(tmp_path / "whole")
    assert check_files(tmp_path / "parts", "max_epoch")["epochs"] == done + 2
    before = (tmp_path / "parts/epochs.jsonl").read_bytes()
    evaluated = results(tmp_path / "parts")["evaluated"]
    assert run(tmp_path / "parts", *MANY, "--max-epoch", done + 2) == 0, "a run that is finished"
    assert (tmp_path / "parts/epochs.jsonl").read_bytes() == before
    assert check_files(tmp_path / "parts", "max_epoch")["evaluated"] == evaluated
    assert run(tmp_path / "parts", "--batch-size", 8, "--max-update", 5 * (done + 2)) == 0
    assert check_files(tmp_path / "parts", "max_update")["epochs"] == done + 2


def test_an_interrupt_while_everything_is_imported(tmp_path):
    process = start_group(tmp_path)
    time.sleep(0.5)  # more than python takes, less than torch and fairseq
    status, output = end(process)
    assert status == 130, output
    assert "Traceback" not in output
    assert f"{STOPPED}: there is no checkpoint yet" in output
    assert f"{STOPPED}: there is no checkpoint yet" in (tmp_path / "training_prints.txt").read_text()
    assert results(tmp_path)["evaluated"] is None
    assert results(tmp_path)["stop_reason"] == "interrupted by user: there is no checkpoint yet"


@pytest.mark.parametrize("method", ["build_model", "load_dataset", "begin_epoch", "train_step", "valid_step"])
def test_an_interrupt_before_the_first_checkpoint(method, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(RaspLangTask, method, interrupt(1, getattr(RaspLangTask, method)))
    assert run(tmp_path, *MANY) == 130
    assert f"{STOPPED}: there is no checkpoint yet" in capsys.readouterr().out
    assert results(tmp_path)["evaluated"] is None
    assert not list(tmp_path.glob("*.pt*"))


@pytest.mark.parametrize(("module", "name"), [(torch, "save"), (shutil, "copyfile")])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_while_checkpoints_are_written(module, name, after, run, tmp_path, monkeypatch):
    """The first epoch is always the best so far."""
    monkeypatch.setattr(module, name, interrupt(1, getattr(module, name), after))
    assert run(tmp_path, *MANY) == 0
    assert check_files(tmp_path, "interrupted by user")["best_epoch"] == 1
    last, best = (torch.load(tmp_path / f"checkpoint_{each}.pt", weights_only=False) for each in ("last", "best"))
    assert last["optimizer_history"] == best["optimizer_history"]


def test_an_epoch_whose_model_was_not_saved_is_not_the_best(run, tmp_path, monkeypatch):
    monkeypatch.setattr(RaspLangTask, "post_validate", interrupt(2, RaspLangTask.post_validate, after=True))
    assert run(tmp_path, *MANY) == 0
    found = results(tmp_path)
    assert [record["best"] for record in epochs(tmp_path)] == [True, False]
    assert (found["epochs"], found["best_epoch"], found["evaluated"]["updates"]) == (2, 1, 5)
    assert (tmp_path / "training_prints.txt").read_text().count("saved as best model") == 1


@pytest.mark.parametrize("first", ["train_step", None])
def test_an_interrupt_of_the_evaluation_ends_it(first, run, tmp_path, monkeypatch, capsys):
    if first:  # in the second epoch
        monkeypatch.setattr(RaspLangTask, first, interrupt(6, getattr(RaspLangTask, first)))
    monkeypatch.setattr(train_rasp, "evaluate", interrupt(1, train_rasp.evaluate))
    assert run(tmp_path, *MANY, "--max-epoch", 2 if first else 1) == 130
    said = "interrupted again" if first else "interrupted"
    assert f"train_rasp: {said}; the same command evaluates, or goes on\n" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()
    prints = (tmp_path / "training_prints.txt").read_text()
    assert prints.endswith("epochs\nno model was evaluated\n")
    assert not list(tmp_path.glob(".*"))


def test_the_last_model_is_evaluated_where_the_best_cannot_be_read(run, tmp_path, caplog):
    train(tmp_path, *MANY, "--max-epoch", 1)
    best = tmp_path / "checkpoint_best.pt"
    best.write_bytes(best.read_bytes()[:1000])
    (tmp_path / "checkpoint_last.pt.tmp").write_bytes(b"of a process that was killed")
    assert run(tmp_path, *MANY, "--max-epoch", 1) == 0
    assert f"{best} (1,000 bytes) is truncated" in caplog.text
    assert results(tmp_path)["evaluated"]["checkpoint"] == "checkpoint_last.pt"
    assert not list(tmp_path.glob("*.tmp"))
    (tmp_path / "checkpoint_last.pt").write_bytes(best.read_bytes())
    (tmp_path / "results.json").unlink()
    assert run(tmp_path, *MANY, "--max-epoch", 1) == 1
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--language", "revers_10"], "rasp_lang: unknown language 'revers_10'; did you mean 'reverse_10'?"),
        (["--rasp-layers", 1], "sort_10_with_attns"),
        (["--lr-scheduler", "rasp_exponential", "--gamma", 2], "rasp_exponential: --gamma 2"),
    ],
)
def test_errors_are_one_line_and_no_results(flags, message, run, tmp_path, capsys):
    assert run(tmp_path, *MANY, *flags) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train_rasp: error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "results.json").exists()


@pytest.fixture
def finished(once: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a run of one epoch, as fairseq-train leaves it."""
    return shutil.copytree(once("rasp_finished", lambda made: train(made, *ONE)), tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--language", "sort_10"], "trained with --language sort_10_with_attns, not sort_10"),
        (["--language", "reverse_10"], "trained with --language sort_10_with_attns, not reverse_10"),
        (["--train-size", 7], "trained with --train-size 40, not 7"),
    ],
)
def test_a_finished_run_on_other_samples_is_not_evaluated_as_this_one(flags, message, finished, run, capsys):
    assert run(finished, *ONE, "--max-update", 5, *flags) == 1
    assert f"train_rasp: error: rasp_lang: {finished}/checkpoint_best.pt was {message}; " in capsys.readouterr().err
    assert not (finished / "results.json").exists()


@pytest.mark.parametrize("end", [["--max-epoch", 1], ["--max-update", 5], ["--max-epoch", 2]])
def test_a_run_with_another_model_is_refused_in_a_line(end, finished, run, capsys):
    before = (finished / "checkpoint_last.pt").read_bytes()
    assert run(finished, *ONE, *end, "--rasp-dim", 16, "--rasp-attention", "linear") == 1
    errors = capsys.readouterr().err
    assert (
        f"train_rasp: error: {finished}/checkpoint_last.pt has a model of --rasp-dim 8, not 16, --rasp-ffn-dim 16, "
        "not 32, --rasp-attention softmax, not linear; give the same, or another --save-dir\n"
    ) in errors
    assert "Traceback" not in errors
    assert (finished / "checkpoint_last.pt").read_bytes() == before


@pytest.mark.parametrize("end", [["--max-epoch", 1], ["--max-update", 5]])
def test_results_of_a_finished_run_have_the_settings_it_was_trained_with(end, finished, run):
    assert run(finished, *ONE, *end, "--lr", 0.5, "--dropout", 0.2, "--batch-size", 20, "--seed", 9) == 0
    found = check_files(finished, "max_epoch")["arguments"]
    names = ("lr", "dropout", "batch_size", "seed", "rasp_dim")
    assert [found[name] for name in names] == [0.003, 0, 8, 4, 8]
    assert re.search(r"\n  lr +0.003\n", (finished / "training_prints.txt").read_text())


def test_an_interrupt_before_training_keeps_why_a_finished_run_ended(finished, run, monkeypatch):
    assert run(finished, *ONE) == 0
    monkeypatch.setattr(train_rasp, "read_options", interrupt(1, train_rasp.read_options))
    assert run(finished, *ONE) == 0
    check_files(finished, "max_epoch")


def test_a_model_of_another_task_is_refused_by_its_name(run, tmp_path, capsys, monkeypatch):
    flags = "--task rasp_lang --language sort_10 --arch transformer_lm --criterion rasp_loss"
    monkeypatch.setattr(sys.modules[__name__], "argv", lambda *_: flags.split())  # without those of our model
    assert run(tmp_path) == 1
    expected = "train_rasp: error: --arch transformer_lm is not for --task rasp_lang; give --arch rasp_transformer\n"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("end", [["--max-epoch", 2], ["--max-update", 7]])
def test_training_without_validation_ends_for_its_reason_too(end, run, tmp_path):
    assert run(tmp_path, *MANY, *end, "--disable-validation") == 0
    assert results(tmp_path)["stop_reason"] == end[0][2:].replace("-", "_")
    assert results(tmp_path)["evaluated"]["checkpoint"] == "checkpoint_last.pt"


def test_without_checkpoints_there_is_nothing_to_evaluate(run, tmp_path):
    assert run(tmp_path, *MANY, "--max-epoch", 1, "--no-save") == 0
    assert (results(tmp_path)["evaluated"], results(tmp_path)["stop_reason"]) == (None, "max_epoch")


def test_any_model_can_be_evaluated_and_its_curves_drawn(interrupted, tmp_path):
    """After plain fairseq-train too, which writes no results."""
    train(tmp_path / "plain", *MANY, "--max-epoch", 2)
    shutil.copytree(interrupted, tmp_path / "interrupted")
    before = results(interrupted)
    folders = ["--path", tmp_path / "interrupted", tmp_path / "plain"]
    output = run_cli("analysis/rasp/evaluate.py", *folders, "--write", "--out", tmp_path / "table").stdout
    assert "sort_10_with_attns" in output
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [(row["model"], row["split"]) for row in rows] == [(n, s) for n in ("interrupted", "plain") for s in SPLITS]
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 7
    assert results(tmp_path / "interrupted") == before
    found = check_files(tmp_path / "plain", "for a reason that nobody noted")
    assert rows[-1]["accuracy"] == found["evaluated"]["test"]["accuracy"]
    stem = tmp_path / "curves"
    run_cli("analysis/rasp/curves.py", f"a={tmp_path / 'plain'}", f"b={interrupted}", "--out", stem)
    points = json.loads(stem.with_suffix(".json").read_text())["rows"]
    wanted = [record["valid"]["loss"] for folder in (tmp_path / "plain", interrupted) for record in epochs(folder)]
    assert [point["valid_loss"] for point in points] == wanted
    for suffix in (".pdf", ".png", ".csv"):
        assert stem.with_suffix(suffix).stat().st_size > 100
