"""Small runs on formal languages: their flags, and fairseq-train in this process, which saves its start."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging import metrics
from fairseq_cli.train import main

from fairseq_transnorm import USER_DIR

COMMON = ["--user-dir", USER_DIR, "--cpu", "--task", "rasp_lang", "--arch", "rasp_transformer"]
COMMON += ["--criterion", "rasp_loss", "--rasp-layers", 2, "--rasp-heads", 1, "--optimizer", "adam"]
COMMON += ["--lr-scheduler", "rasp_exponential", "--num-workers", 0, "--seed", 4]
COMMON += ["--no-epoch-checkpoints", "--log-format", "json"]
# 5 updates an epoch with 8 sequences each
SMALL = ["--rasp-dim", 8, "--train-size", 40, "--valid-size", 20, "--test-size", 5, "--max-length", 6]
SMALL += ["--language", "sort_10_with_attns", "--lr", 0.003, "--gamma", 0.9]
# a run that gets better is one that gets worse
WORSE = ["--maximize-best-checkpoint-metric", "--reset-patience", 1]


@contextmanager
def fresh() -> Iterator[None]:
    """Forget what fairseq keeps of a run outside of it."""

    def forget() -> None:
        metrics.reset()
        checkpoint_utils.save_checkpoint.__dict__.pop("best", None)

    forget()
    try:
        yield
    finally:
        forget()


def train(folder: Path, *flags: object) -> None:
    """Run fairseq-train in this process."""
    argv = list(map(str, ["", *COMMON, *SMALL, *flags, "--save-dir", folder]))
    args = options.parse_args_and_arch(options.get_training_parser(), argv[1:])
    with fresh():
        main(convert_namespace_to_omegaconf(args))


def last(folder: Path) -> dict[str, torch.Tensor]:
    """The weights at the end."""
    return checkpoint_utils.load_checkpoint_to_cpu(str(folder / "checkpoint_last.pt"))["model"]


def epochs(folder: Path) -> list[dict[str, Any]]:
    """What the task wrote of each epoch, without the time."""
    records = list(map(json.loads, (folder / "epochs.jsonl").read_text().splitlines()))
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def same_epochs(found: Path, wanted: Path, rel: float) -> None:
    """Compare the epochs of two runs; what is counted must be equal."""
    for one, other in zip(epochs(found), epochs(wanted), strict=True):
        for split in ("train", "valid"):
            ours, theirs = one.pop(split), other.pop(split)
            assert ours.keys() == theirs.keys()
            assert {name: ours[name] for name in ("accuracy", "seq_accuracy")} == {
                name: theirs[name] for name in ("accuracy", "seq_accuracy")
            }
            for name in ("loss", "seq_loss", "attn_loss"):
                assert ours[name] == pytest.approx(theirs[name], rel=rel), (split, name)
        assert one == other
