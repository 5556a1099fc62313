"""Trained models that several command-line tests share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.documents import build_document_data
from tests.helpers import BIN, run_cli

# What the scripts read, so that nothing of the caller's environment decides a test.
SCRIPT_ENV = {"VIRTUAL_ENV": BIN.parent, "GPUS": 0, "NPROC": 1, "DRY_RUN": 0, "SEQUENCES": 8, "BATCH_SIZE": 8}
LENGTH = 64  # tokens per sample: four blocks of the tiny model
BLM_FLAGS = ["--tokens-per-sample", LENGTH, "--lr", 5e-3, "--warmup-updates", 20, "--total-num-update", 150]
BLM_FLAGS += ["--log-interval", 10, "--no-progress-bar"]


def checkpoints_every(updates: int) -> list[object]:
    """Flags that keep a checkpoint every so many updates, but not at the end of an epoch, each with a validation."""
    return ["--save-interval-updates", updates, "--keep-interval-updates", -1]


def blm_env(folder: Path) -> dict[str, object]:
    """Environment of scripts/train_blm.sh for the run of ``trained_blm``."""
    return SCRIPT_ENV | {"ARCH": "transnormer_mlm_tiny", "SAVE_DIR": folder}


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Return ``once(name, build)``: the folder that ``build(folder)`` filled, made by one worker of all."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if hasattr(request.config, "workerinput") else base

    def make(name: str, build: Callable[[Path], object]) -> Path:
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not (shared / f"{name}.done").exists():
                folder.mkdir(exist_ok=True)
                build(folder)
                (shared / f"{name}.done").touch()
        return folder

    return make


@pytest.fixture(scope="session")
def documents(once: Callable[..., Path]) -> Path:
    """A data folder of documents without a note, for the task bert_sop_lm. Read it only."""
    return once("documents", lambda folder: build_document_data(folder, {"train": 130, "valid": 30}))


@pytest.fixture(scope="session")
def trained(once: Callable[..., Path], tiny_lm_data: Path) -> Path:
    """Checkpoint of a tiny t2 after 150 updates of scripts/train_alm.sh; its folder has the logs. Read it only."""

    def build(folder: Path) -> None:
        env = SCRIPT_ENV | {"ARCH": "transnormer_lm_tiny", "SAVE_DIR": folder}
        flags = ["--tokens-per-sample", LENGTH, "--max-update", 150, "--lr", 5e-3, "--warmup-updates", 20]
        flags += ["--log-interval", 10, "--no-progress-bar", *checkpoints_every(35)]
        run_cli("scripts/train_alm.sh", tiny_lm_data, *flags, env=env)

    return once("trained", build) / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def trained_blm(once: Callable[..., Path], tiny_lm_data: Path) -> Path:
    """Checkpoint of a tiny masked t2 after 150 updates, 9 an epoch, of scripts/train_blm.sh. Read it only."""

    def build(folder: Path) -> None:
        flags = [*BLM_FLAGS, "--max-update", 150, *checkpoints_every(35)]
        run_cli("scripts/train_blm.sh", tiny_lm_data, *flags, env=blm_env(folder))

    return once("trained_blm", build) / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def fairseq_lm(once: Callable[..., Path], tiny_lm_data: Path) -> Path:
    """Checkpoint of fairseq's own transformer_lm after 20 updates; base.log of the simple format beside it."""

    def build(folder: Path) -> None:
        flags = ["--decoder-embed-dim", 48, "--decoder-input-dim", 48, "--decoder-output-dim", 48]
        flags += ["--decoder-ffn-embed-dim", 192, "--decoder-attention-heads", 2, "--decoder-layers", 2]
        flags += ["--decoder-normalize-before", "--share-decoder-input-output-embed", "--tokens-per-sample", LENGTH]
        flags += ["--batch-size", 8, "--optimizer", "adam", "--max-update", 20, "--cpu", "--save-dir", folder]
        flags += ["--log-format", "simple", "--log-interval", 1, "--log-file", folder / "base.log"]
        flags += checkpoints_every(5)
        run_cli("fairseq-train", tiny_lm_data, "--task", "language_modeling", "--arch", "transformer_lm", *flags)

    return once("fairseq_lm", build) / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def trained_growth(once: Callable[..., Path], tiny_lm_data: Path) -> Path:
    """Checkpoint of a tiny post-norm model after 2 epochs of scripts/train_normgrowth.sh, its norms every 2 updates."""

    def build(folder: Path) -> None:
        flags = ["--decoder-embed-dim", 32, "--decoder-ffn-embed-dim", 32, "--decoder-attention-heads", 2]
        flags += ["--decoder-layers", 2, "--tokens-per-sample", 2 * LENGTH, "--norm-log-interval", 2, "--lr", 5e-3]
        flags += ["--max-epoch", 2, "--sat-max-sentences", 20, "--no-progress-bar", *checkpoints_every(10)]
        env = SCRIPT_ENV | {"SAVE_DIR": folder}
        run_cli("scripts/train_normgrowth.sh", "control", tiny_lm_data, *flags, env=env)

    return once("trained_growth", build) / "checkpoint_last.pt"


@pytest.fixture(scope="session")
def trained_runs(trained: Path, trained_blm: Path, fairseq_lm: Path, trained_growth: Path) -> dict[str, Path]:
    """Architecture -> folder of the checkpoints of a run, four or more of them. Read them only."""
    return {
        "transformer_lm": fairseq_lm.parent,
        "transnormer_lm_tiny": trained.parent,
        "transnormer_mlm_tiny": trained_blm.parent,
        "normgrowth_control": trained_growth.parent,
    }
