"""scripts/_env.sh: what it installs again and when, and what it says when a step fails.

A stand-in for Python and pip records the steps, so the logic is tested in seconds; installing for real is the first
thing that scripts/test.sh does.
"""

import os
import shutil
import subprocess
import time

import pytest

from tests.helpers import ROOT

STEPS = 5  # calls of pip and python after the empty environment was made
STUB = """#!/usr/bin/env bash
# Stand-in for an interpreter: answers what _env.sh asks and notes each step.
case "$*" in
    *python_version*) echo "${STUB_VERSION:-3.11.9}" ;;
    *"-m venv"*) rm -rf "${@: -1}"; mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python"; echo venv >>"$STUB_NOTES" ;;
    *)
        echo "$*" >>"$STUB_NOTES"
        sleep "${STUB_SLEEP:-0}"
        if [[ -n ${STUB_FAIL:-} && "$*" == *"$STUB_FAIL"* ]]; then echo "cannot get $STUB_FAIL"; exit 7; fi ;;
esac
"""


class Clone:
    """A folder with what _env.sh reads, and a PATH that holds only what a bare machine has."""

    def __init__(self, folder, stub="python3.11", compiler=True):
        self.root, self.bin, self.notes = folder / "clone", folder / "bin", folder / "notes"
        (self.root / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("setup.cfg", "constraints.txt", "pyproject.toml", "scripts/_env.sh"):
            shutil.copyfile(ROOT / name, self.root / name)
        tools = ["bash", "env", "git", "cat", "sed", "tail", "rm", "mkdir", "cp", "mv", "sleep", "dirname"]
        tools += (["g++"] if compiler else []) + (["flock"] if shutil.which("flock") else [])
        for tool in tools:
            found = shutil.which(tool)
            assert found, f"this test needs {tool}"
            (self.bin / tool).symlink_to(found)
        if stub:
            (self.bin / stub).write_text(STUB)
            (self.bin / stub).chmod(0o755)

    def start(self, **env):
        return subprocess.Popen(
            ["bash", "-c", "source scripts/_env.sh; ensure_env && command -v python"],
            cwd=self.root,
            env={"PATH": str(self.bin), "STUB_NOTES": str(self.notes), "HOME": os.environ.get("HOME", "/"), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def ensure(self, **env):
        process = self.start(**env)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out

    def steps(self):
        """The steps noted since the last call."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        self.notes.unlink(missing_ok=True)
        return lines


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_it_installs_once_and_then_starts_at_once(clone):
    status, out = clone.ensure()
    assert status == 0, out
    assert out.splitlines()[-1] == str(clone.root / ".venv/bin/python"), "its commands come first in PATH"
    assert "about" in out.splitlines()[0], "the first line says how long it takes"
    steps = clone.steps()
    assert steps[0] == "venv"
    assert len(steps) == 1 + STEPS
    assert sum("-c constraints.txt" in step for step in steps) == STEPS - 1, "all of pip's steps are pinned"
    assert clone.ensure() == (0, f"{clone.root}/.venv/bin/python\n")
    assert clone.steps() == []


@pytest.mark.parametrize("name", ["setup.cfg", "constraints.txt", "pyproject.toml", "scripts/_env.sh"])
def test_a_change_of_what_decides_the_install_updates_in_place(clone, name):
    clone.ensure()
    clone.steps()
    with (clone.root / name).open("a") as file:
        file.write("\n# changed\n")
    status, out = clone.ensure()
    assert status == 0
    assert "Updating" in out
    steps = clone.steps()
    assert "venv" not in steps
    assert len(steps) == STEPS
    assert clone.ensure()[0] == 0
    assert clone.steps() == []


def test_another_interpreter_or_place_makes_it_anew(clone, tmp_path):
    clone.ensure()
    clone.steps()
    assert clone.ensure(PYTHON="python3.11", STUB_VERSION="3.12.1")[0] == 0
    assert clone.steps()[0] == "venv"
    # Commands in a moved environment still name the old place.
    clone.root = clone.root.rename(tmp_path / "moved")
    assert clone.ensure()[0] == 0
    assert clone.steps()[0] == "venv"


def test_a_failed_step_says_which_why_and_where_and_leaves_no_valid_environment(clone):
    status, out = clone.ensure(STUB_FAIL="fastBPE antlr4")
    assert status != 0
    assert "step '4/6 fastBPE and others from source' failed" in out
    assert "cannot get fastBPE" in out
    assert str(clone.root / ".venv.log") in out
    assert "headers" in out
    clone.steps()
    assert clone.ensure()[0] == 0
    assert clone.steps()[0] == "venv", "it starts from an empty environment, not from a half-filled one"


def test_an_interrupted_update_is_not_taken_for_complete(clone):
    clone.ensure()
    with (clone.root / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    clone.steps()
    process = clone.start(STUB_SLEEP="30")
    deadline = time.monotonic() + 20
    while not clone.notes.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, 9)
    process.communicate()
    clone.steps()
    assert clone.ensure()[0] == 0
    assert clone.steps()[0] == "venv"


@pytest.mark.skipif(not shutil.which("flock"), reason="needs flock")
def test_two_calls_at_once_install_once(clone):
    calls = [clone.start(STUB_SLEEP="0.3") for _ in range(2)]
    outs = [call.communicate(timeout=60)[0] for call in calls]
    assert [call.returncode for call in calls] == [0, 0], outs
    assert clone.steps().count("venv") == 1
    assert sum("Waiting for another call" in out for out in outs) == 1


def test_a_missing_compiler_is_named_before_anything_is_installed(tmp_path):
    clone = Clone(tmp_path, compiler=False)
    status, out = clone.ensure()
    assert status != 0
    assert "no C++ compiler" in out
    assert "apt install g++" in out
    assert clone.steps() == []


def test_an_unfit_interpreter_is_refused_with_what_was_found(tmp_path):
    clone = Clone(tmp_path, stub="python3")
    status, out = clone.ensure(STUB_VERSION="3.13.0")
    assert status != 0
    assert "python3.11 (not found)" in out
    assert "python3 (3.13.0)" in out
    status, out = clone.ensure(PYTHON="/no/such/python")
    assert status != 0
    assert "tried: /no/such/python (not found)." in out
    assert clone.ensure(STUB_VERSION="3.12.5")[0] == 0


def test_a_launcher_without_an_interpreter_is_passed_over(tmp_path):
    clone = Clone(tmp_path, stub="python3.12")
    (clone.bin / "python3.11").write_text("#!/usr/bin/env bash\nexit 127\n")
    (clone.bin / "python3.11").chmod(0o755)
    status, out = clone.ensure(STUB_VERSION="3.12.5")
    assert status == 0, out
    assert "Python 3.12.5" in out
