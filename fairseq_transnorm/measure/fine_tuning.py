"""``python -m fairseq_transnorm.measure.fine_tuning TASK DATA [CHECKPOINT]``: what a fine-tuning must be told.

Prints, one a line: the task's name, the metric by which its best checkpoint is chosen, the splits to validate on (with
commas between), what tells these data from others (JSON: the examples of each split, and hashes of the dictionary and
of the folder's note), then flags of fairseq-train: those of the task, and those that build the checkpoint's model
again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary, data_utils
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf

from ..data.fetch import file_sha256
from ..data.folder import NOTE, read_note
from ..data.glue import TASKS
from ..tasks.kept_dictionary import DICTIONARY, symbols_sha256
from .checkpoints import read_state
from .commands import run_command

PROG = "fine_tuning"


@dataclass(frozen=True)
class FineTuning:
    """A task of a data folder: name, metric of its best checkpoint, splits to validate on, examples a split, flags.

    ``hashes`` are those of the dictionary and, where there is one, of the note.
    """

    task: str
    metric: str
    subsets: list[str]
    rows: dict[str, int]
    flags: list[str]
    hashes: dict[str, str]


def fine_tuning(task: str, data: str | Path) -> FineTuning:
    """Return what the data folder says of itself, or, of one without a note, what GLUE's task of that name is.

    Args:
        task: name, in capital or small letters.
        data: folder of fairseq's ``sentence_prediction`` task, or of one of ours.

    Raises:
        FileNotFoundError: no folder, or a part of it is missing.
        ValueError: the folder is of another task, or has no note and no task of GLUE has this name.
    """
    data = Path(data)
    if not data.is_dir():
        raise FileNotFoundError(f"no data folder {data}; preprocessing/glue.py, race.py and passages.py make them")
    if (data / NOTE).is_file():
        note = read_note(data)
        if "train_args" not in note:
            raise ValueError(f"{data} is text for a language model, not a task; preprocessing/glue.py makes tasks")
        name, metric, flags, inputs = (note[key] for key in ("task", "metric", "train_args", "inputs"))
    else:
        found = [glue.task for known, glue in TASKS.items() if known.lower() == task.lower()]
        if not found:
            raise ValueError(
                f"{task!r} is no task of GLUE ({', '.join(TASKS)}), and {data} has no {NOTE} to explain it"
            )
        name, metric, flags, inputs = found[0].name, found[0].metric, found[0].train_args(), found[0].inputs
    if name.lower() != task.lower():
        raise ValueError(f"{data} holds the task {name}, not {task}")
    subsets = sorted(path.stem for path in (data / "input0").glob("valid*.idx")) or ["valid"]
    splits = ["train", *subsets]
    _check_parts(data, inputs, "--regression-target" in flags, splits)
    rows = {split: len(data_utils.load_indexed_dataset(str(data / "input0" / split))) for split in splits}
    return FineTuning(name, metric, subsets, rows, flags, _hashes(data))


def _hashes(data: Path) -> dict[str, str]:
    hashes = {"dictionary_sha256": file_sha256(data / "input0/dict.txt")}
    if (data / NOTE).is_file():
        facts = {key: value for key, value in read_note(data).items() if key != "made_by"}
        hashes["data_sha256"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return hashes


def _check_parts(data: Path, inputs: int, regression: bool, splits: Sequence[str]) -> None:
    # without input1 fairseq would train on the first sentences alone
    parts = ["input0/dict.txt", *(f"input{number}/{split}.idx" for number in range(inputs) for split in splits)]
    parts += ["label/dict.txt"] * (not regression)
    parts += [f"label/{split}.{'label' if regression else 'idx'}" for split in splits]
    if missing := [part for part in parts if not (data / part).is_file()]:
        there = ", ".join(sorted(path.name for path in data.iterdir())) or "nothing"
        raise FileNotFoundError(f"data folder {data} lacks {', '.join(missing)}; it has: {there}")


def check_dictionary(path: Path, state: Mapping[str, Any], data: Path) -> None:
    """Raise ValueError when a checkpoint belongs to another dictionary than the task's.

    Their sizes are compared, then the hashes of their symbols; of a checkpoint without a hash the symbols, where the
    data folder of the pretraining is still there.
    """
    weights, theirs = state["model"], Path(str(state["cfg"].task.data).split(os.pathsep)[0]) / "dict.txt"
    noted = (state.get("task_state") or {}).get(DICTIONARY)
    dictionary = Dictionary.load(str(data / "input0" / "dict.txt"))
    if noted is None and theirs.is_file() and Dictionary.load(str(theirs)).symbols != dictionary.symbols:
        raise ValueError(
            f"dictionary mismatch: {path} was trained with {theirs}, {data}/input0/dict.txt has other symbols or "
            "another order; prepare the task with --like the data folder of the pretraining"
        )
    dictionary.add_symbol("<mask>")
    trained = [len(weight) for name, weight in weights.items() if name.endswith("embed_tokens.weight")]
    if trained and len(dictionary) not in trained:
        raise ValueError(
            f"dictionary mismatch: {path} was trained with {trained[0]} symbols, {data}/input0/dict.txt (with <mask>) "
            f"has {len(dictionary)}; prepare the task with --like the data folder of the pretraining"
        )
    if noted not in (None, symbols_sha256(dictionary)):
        raise ValueError(
            f"dictionary mismatch: {path} was trained with other symbols, or in another order, than those of "
            f"{data}/input0/dict.txt; prepare the task with --like the data folder of the pretraining"
        )


def check_segments(path: Path, state: Mapping[str, Any], data: Path, found: FineTuning) -> None:
    """Raise ValueError when a task needs segment embeddings, as those of DeepScaleLM do, and a checkpoint has none."""
    needed = found.flags[found.flags.index("--task") + 1].startswith("dslm_") and (data / "input1").is_dir()
    if needed and not any(name.endswith("embed_segments.weight") for name in state["model"]):
        raise ValueError(
            f"{path} ({state['cfg'].model._name}) has no segment embeddings, which {found.task}, pairs of texts in "
            f"{data}, needs; pretrain with --num-segments 2, the default of dslm_bert and vanilla_bert"
        )


def check_lengths(
    found: FineTuning,
    path: Path | None = None,
    state: Mapping[str, Any] | None = None,
    max_positions: int | None = None,
    max_option_length: int | None = None,
) -> None:
    """Raise ValueError when a checkpoint has other positions than asked for, or options leave no room for the text.

    Args:
        found: the task.
        path: of the checkpoint, for messages; None for random weights.
        state: of the checkpoint.
        max_positions: what the user asks for.
        max_option_length: likewise.
    """
    most, origin = max_positions or 512, "--max-positions"
    if state is not None:
        there = int(state["cfg"].model.get("max_positions") or most)
        learned = any(".embed_positions." in name for name in state["model"])
        if learned and max_positions not in (None, there):
            raise ValueError(
                f"{path} has learned embeddings of {there} positions, which --max-positions {max_positions} cannot "
                "change; leave the flag out"
            )
        if max_positions is None:
            most, origin = there, f"the positions of {path}:"
    if "--max-option-length" in found.flags:
        longest = max_option_length or int(found.flags[found.flags.index("--max-option-length") + 1])
        if longest > most - 3:
            raise ValueError(
                f"--max-option-length {longest} leaves no room for <s> and two </s> in {origin} {most}; give "
                f"--max-option-length of at most {most - 3}, and less to leave room for the text"
            )


def model_flags(path: Path, model: Any) -> list[str]:
    """Return flags of fairseq-train that build the same model: ``--arch`` and what differs from its defaults.

    Args:
        path: of the checkpoint, for messages.
        model: the config of the model in it. What it takes from other parts of the config is left out.

    Raises:
        ValueError: no flag can say it, as for a model without a dataclass.
    """
    arch = model._name
    config = MODEL_DATACLASS_REGISTRY.get(ARCH_MODEL_NAME_REGISTRY.get(arch))
    if config is None:
        raise ValueError(f"{path}: the architecture {arch!r} does not say its options in a dataclass")
    parser = argparse.ArgumentParser(add_help=False)
    gen_parser_from_dataclass(parser, config())
    preset = argparse.Namespace()
    ARCH_CONFIG_REGISTRY[arch](preset)
    values: Any = OmegaConf.to_container(model, resolve=True, enum_to_str=True)
    flags = ["--arch", arch]
    for action in parser._actions:
        usual = getattr(preset, action.dest, action.default)
        usual = usual.value if isinstance(usual, Enum) else usual
        value = values.get(action.dest, usual)
        if value == usual or str(action.default).startswith("${"):
            continue
        name = action.option_strings[0]
        if value is None or (isinstance(value, bool) and value == action.default):
            raise ValueError(f"{path}: no flag of --arch {arch} makes {name[2:]} {value} again")
        flags.append(name if isinstance(value, bool) else f"{name}={value}")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Print the lines; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", help="name, as in GLUE or in the note of the data folder")
    parser.add_argument("data", type=Path, help="data folder of the task")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="pretrained model")
    parser.add_argument("--max-positions", type=int, help="what fairseq-train will be told")
    parser.add_argument("--max-option-length", type=int, help="likewise")
    options = parser.parse_args(argv)
    found = fine_tuning(options.task, options.data)
    flags, state = found.flags, None
    if options.checkpoint:
        state = read_state(options.checkpoint)
        check_dictionary(options.checkpoint, state, options.data)
        check_segments(options.checkpoint, state, options.data, found)
        flags = [*flags, *model_flags(options.checkpoint, state["cfg"].model)]
    check_lengths(found, options.checkpoint, state, options.max_positions, options.max_option_length)
    facts = {"rows": found.rows, **found.hashes}
    print("\n".join([found.task, found.metric, ",".join(found.subsets), json.dumps(facts), *flags]))


if __name__ == "__main__":
    sys.exit(run_command(PROG, main))
