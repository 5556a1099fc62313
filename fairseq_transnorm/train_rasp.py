"""``python -m fairseq_transnorm.train_rasp ARGS``: train on a formal language, then evaluate the best model.

The arguments are those of fairseq-train; ``--user-dir`` may be left out. When training ends, or is interrupted with
Ctrl-C, ``checkpoint_best.pt`` is evaluated on train, valid and test; ``training_prints.txt`` and ``results.json`` in
the save folder tell. The exit status is 0 then; 130 where there is no checkpoint yet, or at an interrupt of the
evaluation, which ends it; and 1 for an error, which writes no results. The same command goes on with a run that was
stopped, and evaluates one that is finished again.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import train
from omegaconf.errors import InterpolationKeyError

from . import USER_DIR
from .interrupts import end, held, interrupts
from .measure.checkpoints import Run, read_mapped
from .measure.epoch_log import INTERRUPTED, Record, describe, read_written, results, run_arguments, saved, write_prints
from .measure.language_accuracy import evaluate, load_first, write_results
from .measure.language_runs import CHECKPOINTS, TASK, read_results
from .models.options import flag
from .tasks.epoch_log import arguments, sizes

PROG = "train_rasp"
FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"  # fairseq-train's
BROKEN_OFF = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate; return the exit status."""
    interrupts.take()
    try:
        return train_and_evaluate(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        again = " again" if interrupts.count > 1 else ""
        print(f"{PROG}: interrupted{again}; the same command evaluates, or goes on", file=sys.stderr)
        return BROKEN_OFF
    except (OSError, ValueError, ImportError) as error:
        logging.getLogger(PROG).debug("where it came from", exc_info=True)  # LOGLEVEL=DEBUG
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 1


def train_and_evaluate(argv: list[str]) -> int:
    """Train until the end or an interrupt, then evaluate; errors as of fairseq-train."""
    cfg, interrupted = None, interrupts.count > 0
    try:
        interrupts.raising = True
        with held():
            cfg = read_options(argv)
        if not interrupted and not is_done(cfg, last_checkpoint(cfg)):
            train.cli_main()
    except KeyboardInterrupt:
        interrupted = True
    except Exception:
        if not interrupts.count:
            raise
        interrupted = True  # other processes end too, and that is an error here
    if cfg is None:
        return BROKEN_OFF
    folder = Path(cfg.checkpoint.save_dir)
    paths = [path for name in CHECKPOINTS.values() if (path := folder / name).is_file()]
    status = BROKEN_OFF if interrupted and not paths else 0
    if is_first(cfg):
        gc.collect()  # with the iterators of training go the processes that loaded its data
        finish(cfg, folder, paths, interrupted)
    return status


def read_options(argv: list[str]) -> Any:
    """Return fairseq's config; it is left in ``sys.argv`` for fairseq.

    Raises:
        ValueError: the task is another one, or the model is for one.
    """
    if not any(text == "--user-dir" or text.startswith("--user-dir=") for text in argv):
        argv = [*argv, "--user-dir", USER_DIR]
    sys.argv = [PROG, *argv]
    args = options.parse_args_and_arch(options.get_training_parser(), argv)
    if args.task != TASK:
        raise ValueError(f"--task {args.task}: this command trains {TASK} alone; for others take fairseq-train")
    try:
        return convert_namespace_to_omegaconf(args)
    except InterpolationKeyError as error:  # the model takes an option from another task
        raise ValueError(f"--arch {args.arch} is not for --task {TASK}; give --arch rasp_transformer") from error


def last_checkpoint(cfg: Any) -> dict[str, Any] | None:
    """Return the checkpoint that a run goes on from, None for a new one.

    Raises:
        ValueError: it is damaged, or of another model; dropout alone may change.
    """
    last = Path(cfg.checkpoint.save_dir) / CHECKPOINTS["last"]
    if cfg.checkpoint.restore_file != last.name or not last.is_file():
        return None
    state = read_mapped(last)
    if not state.get("cfg"):
        return state
    ours, theirs = arguments(cfg), run_arguments(state["cfg"])
    names = [name for name in ("arch", *cfg.model) if name in ours and "dropout" not in name]
    different = [name for name in names if theirs.get(name) != ours[name]]
    if different:
        options = ", ".join(f"{flag(name)} {theirs.get(name)}, not {ours[name]}" for name in different)
        raise ValueError(f"{last} has a model of {options}; give the same, or another --save-dir")
    return state


def is_done(cfg: Any, last: dict[str, Any] | None) -> bool:
    """Return whether a run that would go on has ``--max-update`` updates: fairseq would make one more."""
    most = cfg.optimization.max_update
    return bool(most and last and int(last["optimizer_history"][-1]["num_updates"]) >= most)


def is_first(cfg: Any) -> bool:
    """Return whether this process is the first of several, as torchrun, SLURM or the options say."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", cfg.distributed_training.distributed_rank))
    return int(rank) == 0


def finish(cfg: Any, folder: Path, paths: Sequence[Path], interrupted: bool) -> None:
    """Evaluate the best model, if there is one, and write what came of the run.

    Args:
        cfg: of the run.
        folder: its save folder.
        paths: its checkpoints, those to be taken before others first.
        interrupted: whether it was.

    Raises:
        ValueError: no checkpoint can be read, or it was trained on other samples.
    """
    for unfinished in folder.glob("*.pt.tmp"):  # of a process that was killed
        unfinished.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    records, settings = read_written(folder), arguments(cfg)
    device = "cuda" if torch.cuda.is_available() and not cfg.common.cpu else "cpu"
    run = load_first(paths, device) if paths else None
    before = read_results(folder) if interrupted and run else None  # training would have removed it
    reason = str(before["stop_reason"]) if before else stop_reason(cfg, records, run, interrupted)
    reason += ": there is no checkpoint yet" if interrupted and not paths else ""
    print(f"{PROG}: stopped training - {reason}", flush=True)
    task, evaluated = tasks.setup_task(cfg.task), None
    if run:
        if other := task.other_samples(run.task.facts(), str(run.path)):
            raise ValueError(f"{other}; give the same, or another --save-dir")
        settings = arguments(run.cfg)  # not those of this call, which may have trained nothing
        with held():  # a second interrupt leaves no results
            write_prints(folder, results(settings, records, reason, None), records, sizes(task))
        print(f"{PROG}: evaluating {run.path}", flush=True)
        evaluated = evaluate(run)
    records = saved(records, evaluated)
    with held():
        write_results(folder, task, results(settings, records, reason, evaluated), records)
    print("\n".join([*describe(evaluated), f"wrote {folder}/results.json"]), flush=True)


def stop_reason(cfg: Any, records: Sequence[Record], run: Run | None, interrupted: bool) -> str:
    """Say why training ended; without validation there are no records, but a checkpoint."""
    if interrupted:
        return INTERRUPTED
    last: Record = {"epoch": run.epochs if run else 0, "updates": run.updates if run else 0, "stop": None}
    last = records[-1] if records else last
    if last["stop"]:
        return str(last["stop"])
    for name, reached in {"max_epoch": last["epoch"], "max_update": last["updates"]}.items():
        if 0 < cfg.optimization[name] <= reached:
            return name
    return "by another option of fairseq-train"


if __name__ == "__main__":
    log_level = os.environ.get("LOGLEVEL", "INFO").upper()
    logging.basicConfig(format=FORMAT, datefmt="%Y-%m-%d %H:%M:%S", level=log_level, stream=sys.stdout, force=True)
    exit_status = main()
    end()
    sys.exit(exit_status)
