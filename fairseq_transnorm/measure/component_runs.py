"""Simulations of many combinations of parameters, kept one by one: an interrupted run goes on where it was."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tqdm import tqdm

from .component_moments import BATCH_ENTRIES, SIMULATIONS, Parameters, simulate


def simulate_all(
    name: str,
    combinations: Sequence[Parameters],
    record: str | Path,
    *,
    trials: int,
    seed: int = 0,
    device: str = "cpu",
    workers: int = 1,
    title: str | None = None,
) -> list[dict[str, float]]:
    """Simulate a component at all combinations that the record lacks; return the measurements in their order.

    What is drawn for a combination depends on the seed, the component, the combination and the number of trials alone:
    not on the order, the number of workers, or where a run was interrupted. Threads of torch within a worker: one.

    Args:
        name: in ``SIMULATIONS``.
        combinations: parameters, no two of them the same.
        record: file with a line a finished combination; made when missing. Lines of other combinations stay in it.
        trials, seed: of each combination.
        device: where torch computes.
        workers: combinations at a time.
        title: of the progress bar, which is shown on a terminal only.

    Raises:
        ValueError: the record was made with other settings, is no record, or another process is writing it.
    """
    settings = {"component": name, "trials": trials, "seed": seed, "device": torch.device(device).type}
    with _open_record(Path(record), settings | {"batch_entries": BATCH_ENTRIES}) as (done, file):
        missing = [c for c in combinations if _key(c) not in done]
        progress = tqdm(
            total=len(combinations),
            initial=len(combinations) - len(missing),
            desc=title or name,
            unit="comb",
            disable=None,
        )
        with progress, ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for parameters, measured in _in_turn(pool, workers, missing, name, trials, seed, device):
                done[_key(parameters)] = measured
                _append(file, {"parameters": parameters, "measured": measured})
                progress.update()
        return [done[_key(c)] for c in combinations]


def _in_turn(
    pool: ThreadPoolExecutor, workers: int, missing: Sequence[Parameters], *how: Any
) -> Iterator[tuple[Parameters, dict[str, float]]]:
    """Yield what is finished; no more than ``workers`` are under way, so that an interrupt waits for these only."""
    waiting = list(reversed(missing))
    running: dict[Future[dict[str, float]], Parameters] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            parameters = waiting.pop()
            running[pool.submit(_simulate_one, parameters, *how)] = parameters
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def _simulate_one(parameters: Parameters, name: str, trials: int, seed: int, device: str) -> dict[str, float]:
    digest = hashlib.sha256(f"{seed} {name} {_key(parameters)}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7]))
    return simulate(SIMULATIONS[name], parameters, trials, generator)


def _key(parameters: Parameters) -> str:
    return json.dumps(parameters, sort_keys=True)


@contextmanager
def _open_record(path: Path, settings: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], BinaryIO]]:
    """Yield the finished combinations by key and the file to append to, which nobody else can open so meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{path} is being written by another process; wait for it or give another --out") from None
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        begun = not whole and _line(settings).startswith(content)  # nothing yet, or a head that a kill cut off
        lines = [] if begun else _parse(path, whole or content)
        file.truncate(len(whole))  # a line that a kill cut off; its combination is simulated again
        if not lines:
            _append(file, settings)
        elif changed := [key for key in settings if lines[0].get(key) != settings[key]]:
            was = ", ".join(f"{key} {lines[0].get(key)} (now {settings[key]})" for key in changed)
            raise ValueError(f"{path} was made with {was}; give another --out, or remove the file to begin anew")
        yield {_key(line["parameters"]): line["measured"] for line in lines[1:]}, file


def _parse(path: Path, content: bytes) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in content.splitlines()]
        wanted = [{"component"}, *[{"parameters", "measured"}] * (len(lines) - 1)]
        if all(names <= line.keys() for names, line in zip(wanted, lines, strict=False)):
            return lines
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path} is not a record of simulations; give another --out, or remove the file to begin anew")


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _append(file: BinaryIO, content: Mapping[str, Any]) -> None:
    file.write(_line(content))
    file.flush()
    os.fsync(file.fileno())
