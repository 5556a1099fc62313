"""What several tests need: real commands as subprocesses, and a small deterministic corpus."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Not resolved: in a virtual environment the interpreter is a link that leads out of it.
BIN = Path(sys.executable).parent
TAIL = 4000  # characters of output that a failure shows


def command_line(name: str | os.PathLike[str]) -> list[str]:
    """Say how to start ``name``: ``python``, a ``.py`` or ``.sh`` file of the repository, or a console entry point."""
    text = os.fspath(name)
    if text == "python":
        return [sys.executable]
    if text.endswith((".py", ".sh")):
        path = ROOT / text
        assert path.is_file(), f"run_cli: no file {path}"
        return [sys.executable if text.endswith(".py") else "bash", str(path)]
    path = BIN / text
    assert path.is_file(), f"run_cli: no command {text!r} in {BIN}; is its package installed in this environment?"
    return [str(path)]


def cli_env(extra: Mapping[str, object] | None = None) -> dict[str, str]:
    """Environment of the commands: this interpreter's commands first, one thread, no GPU unless ``extra`` gives one."""
    env = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    env |= {"CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "agg", "PYTHONUNBUFFERED": "1"}
    return env | {key: str(value) for key, value in (extra or {}).items()}


def run_cli(
    name: str | os.PathLike[str],
    *args: object,
    env: Mapping[str, object] | None = None,
    check: bool = True,
    timeout: float = 300,
    cwd: str | os.PathLike[str] = ROOT,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a real command and return it with standard output and error merged in ``stdout``.

    Args:
        name: ``"python"``, a ``.py`` or ``.sh`` file relative to the repository, or a console entry point such as
            ``"fairseq-train"``, which is taken from the environment that runs the tests.
        args: its arguments, turned into text one by one.
        env: variables on top of those of :func:`cli_env`.
        check: fail the test when the exit status is not 0.
        timeout: seconds after which the command and all that it started are killed.
        cwd: folder to run in.
        stdin: text for its standard input, which is empty otherwise.

    Raises:
        AssertionError: with the end of the output, when ``check`` fails or the time is up.
    """
    command = [*command_line(name), *map(str, args)]
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=cli_env(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that a time-out also reaches the workers of the command
    )
    try:
        output, _ = process.communicate(stdin or "", timeout=timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise AssertionError(f"no end after {timeout} s: {' '.join(command)}\n{output[-TAIL:]}") from None
        raise
    assert not check or process.returncode == 0, (
        f"exit status {process.returncode}: {' '.join(command)}\n{output[-TAIL:]}"
    )
    return subprocess.CompletedProcess(command, process.returncode, output, "")


SUBJECTS = [
    "the old king",
    "the young queen",
    "a merchant",
    "my brother",
    "your sister",
    "the captain",
    "a poor farmer",
    "the duke",
]
VERBS = ["loves", "fears", "follows", "serves", "hates", "remembers", "forgives", "watches", "betrays", "honours"]
OBJECTS = [
    "the crown",
    "a silver ring",
    "the sea",
    "his own shadow",
    "the city",
    "a broken sword",
    "the moon",
    "her garden",
    "a letter",
]
PLACES = ["in the forest", "at the gate", "by the river", "on the hill", "under the bridge", "near the tower"]
TIMES = ["at dawn", "every night", "in winter", "before the battle", "after the feast", "today"]


def sentences(count: int, seed: int) -> list[str]:
    """Draw ``count`` English-like sentences of 4 to 25 words; the same seed gives the same ones everywhere."""
    rng = random.Random(seed)

    def clause() -> str:
        words = [rng.choice(SUBJECTS), rng.choice(VERBS), rng.choice(OBJECTS)]
        return " ".join(words + [rng.choice(part) for part in (PLACES, TIMES) if rng.random() < 0.5])

    joined = (" and ".join(clause() for _ in range(rng.choice((1, 1, 2)))) for _ in range(count))
    return [f"{text} {rng.choice('.!?')}" for text in joined]


def build_lm_data(folder: Path, train: int = 300, held_out: int = 40) -> Path:
    """Write ``train.txt``, ``valid.txt``, ``test.txt`` into ``folder``; binarise them with fairseq-preprocess.

    Args:
        folder: made when missing.
        train: number of training sentences.
        held_out: number of sentences of each of the other two.

    Returns:
        The folder with ``dict.txt`` and the binarised splits, ``folder/data-bin``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate({"train": train, "valid": held_out, "test": held_out}.items()):
        (folder / f"{split}.txt").write_text("\n".join(sentences(count, seed)) + "\n")
    splits = [flag for split in ("train", "valid", "test") for flag in (f"--{split}pref", folder / f"{split}.txt")]
    run_cli("fairseq-preprocess", "--only-source", *splits, "--destdir", folder / "data-bin", "--workers", 1)
    return folder / "data-bin"


def build_sentence_data(folder: Path, task: str, lm_data: Path, rows: Mapping[str, int]) -> Path:
    """Write a data folder of one of GLUE's tasks with sentences of the small corpus, as preprocessing/glue.py would.

    The label is whether the first sentence has two clauses; of a regression, its number of words over 40.

    Args:
        folder: made when missing.
        task: name of the task.
        lm_data: folder whose dictionary is taken.
        rows: split -> examples.
    """
    from fairseq.data import Dictionary

    from fairseq_transnorm.data.classification import write_dataset
    from fairseq_transnorm.data.glue import TASKS

    facts = TASKS[task].task
    (folder / "label").mkdir(parents=True, exist_ok=True)
    (folder / "label/dict.txt").write_text("".join(f"{label} 1\n" for label in facts.labels))
    labels = Dictionary.load(str(folder / "label/dict.txt"))
    for number in range(facts.inputs):
        (folder / f"input{number}").mkdir(exist_ok=True)
        (folder / f"input{number}/dict.txt").write_bytes((lm_data / "dict.txt").read_bytes())
        words = Dictionary.load(str(lm_data / "dict.txt"))
        for seed, (split, count) in enumerate(rows.items()):
            texts = sentences(count, 100 + 10 * number + seed)
            write_dataset(folder / f"input{number}" / split, words, texts)
            if number:
                continue
            if facts.labels:
                write_dataset(folder / "label" / split, labels, [facts.labels["and" in text.split()] for text in texts])
            else:
                numbers = "".join(f"{len(text.split()) / 40}\n" for text in texts)
                (folder / f"label/{split}.label").write_text(numbers)
    return folder


def someone_left(group: int) -> bool:
    """Return whether a process of the group is still there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
