"""Scalars of logs, and the plane of theta . delta against |delta|."""

import json
import math

import pytest

from fairseq_transnorm.measure.growth_plane import plane_rows
from fairseq_transnorm.measure.logs import read_log
from fairseq_transnorm.measure.scalars import by_epoch, scalar_rows

# norm 5 -> |(3, 4) + (0.3, 0)| and on; product and step of the whole, then of its two parameters
STEPS = [
    {"updates": 1, "product": 0.9, "step_norm": 0.3, "tensors": {"a": [3.0, 0.3, 0.9], "b": [4.0, 0.0, 0.0]}},
    {"updates": 2, "product": -0.5, "step_norm": 1.0, "tensors": {"a": [3.3, 1.0, -0.5], "b": [4.0, 0.0, 0.0]}},
    {"updates": 3, "product": -0.6, "step_norm": 1.0, "tensors": {"a": [3.1, 0.6, -1.0], "b": [4.0, 0.8, 0.4]}},
]
RECORDS = [{"updates": 0, "norm": 5.0}, *STEPS]


def test_averages_of_the_sums_over_the_scope():
    rows = plane_rows("run", "source", RECORDS, "sum", 2)
    assert [row["updates"] for row in rows] == [2, 3]
    assert [row["step_norm"] for row in rows] == pytest.approx([math.sqrt((0.09 + 1) / 2), 1.0])
    assert [row["product"] for row in rows] == pytest.approx([0.2, -0.55])
    assert [row["growing"] for row in rows] == [0.5, 0.0], "at -|delta|^2 / 2 the norm stays"


def test_medians_over_parameters():
    (row,) = plane_rows("run", "source", RECORDS, "median", 3)
    squares = [(0.09 + 0) / 2, (1 + 0) / 2, (0.36 + 0.64) / 2]
    assert row["step_norm"] == pytest.approx(math.sqrt(sum(squares) / 3))
    assert row["product"] == pytest.approx((0.45 - 0.25 - 0.3) / 3)


@pytest.mark.parametrize(
    ("records", "reduce", "window", "message"),
    [
        (RECORDS, "sum", 4, "source has 3 records of updates, fewer than the --window of 4"),
        ([{"updates": 1, "product": 0.1, "step_norm": 0.1}], "median", 1, "train with --norm-log-tensors"),
    ],
)
def test_a_plane_that_cannot_be_drawn(records, reduce, window, message):
    with pytest.raises(ValueError, match=message):
        plane_rows("run", "source", records, reduce, window)


def line(split, updates, epoch, **stats):
    entry = {"num_updates": str(updates)} | {name: str(value) for name, value in stats.items()}
    if split != "train_inner":
        entry = {f"{split}_{name}": value for name, value in entry.items()}
    return json.dumps({"epoch": epoch} | entry) + "\n"


@pytest.fixture
def folder(tmp_path):
    layers = [{"stack": "decoder", "layer": 2, "norm": 1.5}]
    records = [{"updates": u, "epoch": 1 + u // 3, "norm": 2.0 + u, "lr": 0.1, "layers": layers} for u in range(5)]
    (tmp_path / "norms.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = line("train_inner", 2, 1, loss=5, gnorm=1.5, norm="4.0") + line("valid", 2, 1, loss=4, sat=0.5)
    text += line("train_inner", 4, 2, loss=3, gnorm=1.25) + line("valid", 4, 2, loss=2, sat="nan")
    (tmp_path / "train.log").write_text(text + line("train", 4, 2, loss=4, lr=0.2))
    return tmp_path


def values(rows):
    return [(row["split"], row["updates"], row["value"]) for row in rows]


def test_each_scalar_comes_from_the_file_that_has_it(folder):
    def found(scalar, split=None, path=folder):
        return values(scalar_rows("run", path, [scalar], split))

    assert found("norm") == [("norms", u, 2.0 + u) for u in range(5)]
    assert found("norm_decoder_2")[-1] == ("norms", 4, 1.5)
    assert found("loss") == [("valid", 2, 4.0), ("valid", 4, 2.0)]
    assert found("loss", "train_inner") == [("train_inner", 2, 5.0), ("train_inner", 4, 3.0)]
    assert found("gnorm") == [("train_inner", 2, 1.5), ("train_inner", 4, 1.25)]
    assert found("sat") == [("valid", 2, 0.5)], "what is not finite has no point"
    assert found("norm", None, folder / "train.log") == [("train_inner", 2, 4.0)]
    assert found("lr", "train") == [("train", 4, 0.2)]
    assert [row["run"] for row in scalar_rows("x", folder, ["loss", "lr"])] == ["x"] * 7


def test_an_epoch_has_its_last_value_and_the_start_is_epoch_0(folder):
    rows = scalar_rows("run", folder, ["norm"])
    assert by_epoch(rows) == [(0, 2.0), (1, 4.0), (2, 6.0)]


def test_a_scalar_that_is_not_there_is_told_with_those_that_are(folder):
    with pytest.raises(ValueError, match=r"has no 'speed'; there are .*gnorm.*norm, norm_decoder_2"):
        scalar_rows("run", folder, ["speed"])
    with pytest.raises(ValueError, match=r"no 'gnorm' in its lines of 'valid'"):
        scalar_rows("run", folder, ["gnorm"], "valid")
    (folder / "norms.jsonl").unlink()
    (folder / "train.log").unlink()
    with pytest.raises(FileNotFoundError, match=r"no \*\.log in"):
        scalar_rows("run", folder, ["norm"])


def test_a_log_keeps_further_scalars_when_asked(folder):
    assert "sat" not in read_log(folder)[1]
    assert read_log(folder, ["sat"])[1]["sat"] == 0.5
