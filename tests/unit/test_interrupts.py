"""Interrupts wait while files are written, and none leaves a part of a checkpoint; all of them are really sent."""

import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from fairseq_transnorm.interrupts import COMMAND, Interrupts, held, interrupts, take_early
from fairseq_transnorm.tasks.epoch_log import EpochLogMixin
from tests.helpers import ROOT


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_until_all_that_is_held_is_done():
    done = []

    def work():
        with held():
            with held():
                interrupt()
                done.append("inner")
            interrupt()
            done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_comes_also_after_an_error():
    def work():
        with held():
            interrupt()
            raise ValueError

    with pytest.raises(KeyboardInterrupt):
        work()


def test_what_ignores_interrupts_still_does():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held():
            interrupt()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_interrupt_that_a_finaliser_swallowed_comes_before_the_next_step(monkeypatch):
    class Thing:
        def __del__(self):
            interrupt()
            time.sleep(0.001)  # for the interpreter to look at signals

    monkeypatch.setattr(interrupts, "count", 0)
    monkeypatch.setattr(interrupts, "raising", True)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    steps = []

    class Task:
        def train_step(self, number):
            steps.append(number)
            if number == 2:
                Thing()

    class Logged(EpochLogMixin, Task):
        pass

    def train(task):
        for number in range(5):
            task.train_step(number)

    before = signal.signal(signal.SIGINT, interrupts)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(Logged())
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps == [0, 1, 2]


def test_other_threads_cannot_hold_and_need_not():
    done = []

    def work():
        with held():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]


def test_the_first_interrupt_is_noted_and_later_ones_raise(capfd):
    own = Interrupts()
    signal.signal(signal.SIGINT, own)
    try:
        interrupt()
        assert own.count == 1
        assert "interrupted: ends as soon as everything is loaded" in capfd.readouterr().err
        own.raising = True
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        assert own.count == 2
        own.process = -1  # as in a process that loads data
        interrupt()
        assert own.count == 2
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["python", "-u", "-m", COMMAND, "--seed", "1"], True),
        (["python", "script.py", COMMAND], False),
        (["fairseq-train", "--save-dir", "x"], False),
        ([COMMAND], False),
    ],
)
def test_interrupts_are_taken_early_for_one_command_only(monkeypatch, given, taken):
    monkeypatch.setattr(sys, "orig_argv", given)
    try:
        take_early()
        assert (signal.getsignal(signal.SIGINT) is interrupts) is taken
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(("ending", "status"), [("", -signal.SIGINT), ("interrupts.end()", 7)])
def test_an_interrupt_that_was_caught_does_not_decide_the_exit_status(tmp_path, ending, status):
    code = "import os, signal, sys, interrupts\n"
    code += "try:\n    exec('os.kill(os.getpid(), signal.SIGINT)')\nexcept KeyboardInterrupt:\n    pass\n"
    (tmp_path / "caught.py").write_text(f"{code}{ending}\nsys.exit(7)\n")
    (tmp_path / "interrupts.py").write_text((ROOT / "fairseq_transnorm/interrupts.py").read_text())
    assert subprocess.run([sys.executable, "-m", "caught"], cwd=tmp_path).returncode == status


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_nothing_half_written_is_left_and_the_old_file_stays(tmp_path, monkeypatch, error):
    path = tmp_path / "checkpoint_best.pt"
    checkpoint_utils.torch_persistent_save({"model": torch.ones(2)}, str(path))
    whole = path.read_bytes()

    def write(obj, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", write)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # fairseq tries three times
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind):
        checkpoint_utils.torch_persistent_save({"model": torch.zeros(2)}, str(path))

    def copy(source, target):
        (tmp_path / "checkpoint_best.pt.tmp").write_bytes(b"half")
        raise error

    monkeypatch.setattr(shutil, "copyfile", copy)
    with pytest.raises(kind):
        PathManager.copy(str(path), str(path), overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"checkpoint_best.pt": whole}
