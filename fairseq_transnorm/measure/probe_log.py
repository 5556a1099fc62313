"""The file in which training notes how memories and an induction head form: one JSON object a line.

A line of training is of an update of ``--probe-interval``, counted from 0. All its values are those of the weights
before that update, and of the batch that it is made from, over all micro-batches and processes:

* ``iter``: updates made before; ``epoch``; ``wall``: seconds since this process began to train;
* the names of ``PREDICTION`` and ``ATTENTION`` in :mod:`fairseq_transnorm.measure.copying`, losses in nats;
* ``acc_end_test``: ``acc_end`` of the validation sequences;
* the probes of :mod:`fairseq_transnorm.measure.memory_probes`;
* with ``--log-norms``, ``norm_<parameter>`` and ``gradnorm_<parameter>``, 2-norms of each parameter that is trained at
  this update and of its gradient, as the optimiser gets it.

A line of a validation has ``split`` besides, and ``sequences``, their number: its values are of the whole split, with
the weights after ``iter`` updates, without ``acc_end_test`` and norms. null is no value: of no position, or without a
meaning for the model.
"""

from __future__ import annotations

from pathlib import Path

from .json_lines import Lines, LinesFile, Record, read_file, read_lines

FILE = "probes.jsonl"


def read_records(path: Path) -> Lines:
    """Read a file.

    Raises:
        ValueError: a line is no record.
    """

    def check(record: Record) -> None:
        if type(record["iter"]) is not int:
            raise ValueError(f"iter is {record['iter']!r}, not a whole number")
        for name, value in ({"acc_end": record["acc_end"]} | record).items():
            if name != "split" and value is not None and type(value) not in (int, float):
                raise ValueError(f"{name} is {value!r}, not a number")

    return read_lines(path, check, "record of probes")


def read_probes(path: str | Path) -> list[Record]:
    """Return the records of a run in order of ``iter``; those of training have no ``split``.

    Of several of the same ``iter`` and split, as of a run that was killed and went on, the last counts. Arguments and
    errors as of :func:`read_file`.
    """
    advice = "train with --task bigram_icl --criterion bigram_icl --log-probes"
    found = read_file(path, FILE, read_records, advice)
    last = {(record["iter"], record.get("split")): record for record in found}
    return sorted(last.values(), key=lambda record: record["iter"])


class ProbeLog:
    """The file of a run that trains: see :class:`LinesFile`.

    Args:
        path: the file; made when missing.
        updates: N of the checkpoint the run goes on from; 0 for a new run. Update N, the first to come, is noted again,
            a validation after N updates is not.

    Raises:
        ValueError: the file of a run that goes on is damaged.
    """

    def __init__(self, path: Path, updates: int) -> None:
        def keep(record: Record) -> bool:
            return record["iter"] < updates or (record["iter"] == updates and "split" in record)

        self.file = LinesFile(path, updates, read_records, keep)

    def write(self, record: Record) -> None:
        """Append a record; errors as of :meth:`LinesFile.write`."""
        self.file.write(record, f"update {record['iter']}")
