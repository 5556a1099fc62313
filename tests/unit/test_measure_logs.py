"""Training logs of fairseq: both formats, both sources, repeated, resumed and cut-off lines."""

import json
import math

import pytest

from fairseq_transnorm.measure.logs import curve_rows, find_log, read_log, relative_deviation

STAMP = "2024-05-01 12:00:00 | INFO | "


def inner(updates, loss=4.0, gnorm=1.0, wall=1, wpb=768, epoch=1):
    line = {"epoch": epoch, "update": 0.1, "loss": str(loss), "ppl": str(2**loss), "wps": "9", "ups": "40"}
    line |= {"wpb": str(wpb), "bsz": "8", "num_updates": str(updates), "lr": "0.001", "gnorm": str(gnorm)}
    return json.dumps(line | {"train_wall": "0", "wall": str(wall)})


def valid(updates, loss=3.5, name="valid", epoch=1):
    line = {"loss": str(loss), "ppl": str(2**loss), "wps": "9", "wpb": "700", "bsz": "8", "num_updates": str(updates)}
    return json.dumps({"epoch": epoch} | {f"{name}_{key}": value for key, value in line.items()})


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_json_lines(tmp_path):
    log = write(
        tmp_path / "train.log",
        "{'_name': None, 'common': {'seed': 1}}",  # the config, a Python dict
        inner(10, loss=5.0, wall=2),
        inner(20, loss=4.5, wall=5, wpb=700),
        'begin validation on "valid" subset',
        valid(20),
        json.dumps({"epoch": 1, "train_loss": "4.75", "train_ppl": "27", "train_num_updates": "20", "train_wall": "6"}),
        "done training in 6.0 seconds",
    )
    rows = read_log(log)
    assert [(r["split"], r["updates"], r["loss"]) for r in rows] == [
        ("train_inner", 10, 5.0),
        ("train_inner", 20, 4.5),
        ("valid", 20, 3.5),
        ("train", 20, 4.75),
    ]
    assert [r["tokens"] for r in rows] == [7680, 14680, 14680, 14680]
    assert [r["wall"] for r in rows[:3]] == [2, 5, 5]
    assert rows[0]["gnorm"] == 1.0
    assert rows[0]["lr"] == 0.001
    assert rows[0]["epoch"] == 1
    assert all(type(v) in (int, float, str) for r in rows for v in r.values())


def test_the_same_run_caught_from_the_screen(tmp_path):
    lines = [inner(10), inner(20), valid(20)]
    tags = ["train_inner", "train_inner", "valid"]
    plain = read_log(write(tmp_path / "a.log", *lines))
    stamped = [f"{STAMP}{tag} | {line}" for tag, line in zip(tags, lines, strict=True)]
    assert read_log(write(tmp_path / "b.log", *stamped)) == plain


SIMPLE = [
    "epoch 001:     10 / 14 loss=7.763, ppl=217.17, wps=2087, ups=4.26, wpb=760, bsz=8, num_updates=10, lr=0.0001, "
    "gnorm=1.427, train_wall=0, wall=1",
    "epoch 001 | valid on 'valid' subset | loss 7.737 | ppl 213.37 | wps 52 | wpb 750.5 | bsz 8 | num_updates 14 "
    "| best_loss 7.737",
    "epoch 001 | loss 7.735 | ppl 212.98 | wps 17 | ups 2.69 | wpb 762.1 | bsz 8 | num_updates 14 | lr 0.00014 "
    "| gnorm 1.417 | train_wall 0 | wall 1",
]


@pytest.mark.parametrize("prefix", ["", STAMP + "train_inner | "])
def test_simple_lines(tmp_path, prefix):
    rows = read_log(write(tmp_path / "a.log", *(prefix + line for line in SIMPLE)))
    assert [(r["split"], r["updates"], r["loss"], r["ppl"]) for r in rows] == [
        ("train_inner", 10, 7.763, 217.17),
        ("valid", 14, 7.737, 213.37),
        ("train", 14, 7.735, 212.98),
    ]
    assert rows[1]["tokens"] == 7600 + 4 * 760, "after the last training line, at its tokens per update"


def test_repeated_lines_count_once(tmp_path):
    """fairseq adds a handler to the log file every epoch, so epoch 3 is there three times."""
    once = [inner(10), valid(10), inner(20, epoch=2), valid(20, epoch=2)]
    twice = [*once[:2], *(line for line in once[2:] for _ in range(2))]
    assert read_log(write(tmp_path / "a.log", *once)) == read_log(write(tmp_path / "b.log", *twice))


def test_what_a_killed_run_did_after_its_checkpoint_is_forgotten(tmp_path):
    lost = [inner(30, loss=9.0), valid(30, loss=9.0), inner(40, loss=9.0)]
    kept = [inner(10), inner(20), valid(20)]
    resumed = [inner(30), valid(30), inner(40), inner(50)]
    interrupted = read_log(write(tmp_path / "a.log", *kept, *lost, *resumed))
    assert interrupted == read_log(write(tmp_path / "b.log", *kept, *resumed))
    assert 9.0 not in [r["loss"] for r in interrupted]


def test_lines_cut_by_a_kill_are_skipped(tmp_path):
    rows = read_log(write(tmp_path / "a.log", inner(10), inner(20)[:-30], SIMPLE[0][:60], inner(30)))
    assert [r["updates"] for r in rows] == [10, 30]


def test_time_is_interpolated_between_whole_seconds(tmp_path):
    lines = [inner(u, wall=int(u / 4)) for u in range(1, 13)]
    rows = read_log(write(tmp_path / "a.log", *lines))
    assert [r["wall"] for r in rows if r["updates"] in (4, 6, 8, 12)] == [1.0, 1.5, 2.0, 3.0]


def test_a_diverged_run_can_be_read(tmp_path):
    rows = read_log(write(tmp_path / "a.log", inner(10, loss=math.nan), valid(10)))
    assert math.isnan(rows[0]["loss"])


def test_a_save_folder_stands_for_its_only_log(tmp_path):
    write(tmp_path / "command.log", "fairseq-train ...")
    log = write(tmp_path / "run.log", inner(10))
    assert find_log(tmp_path) == log
    write(tmp_path / "other.log", inner(10))
    with pytest.raises(ValueError, match=r"several logs, \['other\.log', 'run\.log'\]"):
        find_log(tmp_path)
    assert find_log(tmp_path / "run.log") == log
    train = write(tmp_path / "train.log", inner(10))
    assert find_log(tmp_path) == train


def test_what_is_missing_is_said(tmp_path):
    (tmp_path / "checkpoint_last.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"no \*\.log in .*checkpoint_last\.pt.*--log-file"):
        read_log(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no log .*gone\.log.*checkpoint_last\.pt"):
        read_log(tmp_path / "gone.log")
    with pytest.raises(ValueError, match="no line of fairseq-train"):
        read_log(write(tmp_path / "text.log", "To be, or not to be", "{}", '{"loss": 1}'))


def test_relative_deviation_by_hand(tmp_path):
    norms = [9.0, 9.0, 1.0, 2.0, 3.0]
    rows = read_log(write(tmp_path / "a.log", *(inner(u, gnorm=g) for u, g in enumerate(norms, start=1))))
    got = relative_deviation(rows, warmup=2)
    assert got == {"mean": 2.0, "std": 1.0, "relative_deviation": 0.5, "count": 3, "interval": 1}
    with pytest.raises(ValueError, match="1 gradient norms after 4 updates"):
        relative_deviation(rows, warmup=4)


def test_gradient_norms_that_are_not_finite_are_named(tmp_path):
    rows = read_log(write(tmp_path / "a.log", inner(1), inner(2, gnorm=math.inf), inner(3)))
    with pytest.raises(ValueError, match="not finite at update 2"):
        relative_deviation(rows, warmup=0)


def test_curves_of_a_log(tmp_path):
    lines = [line for u in range(1, 9) for line in (inner(u, loss=u, gnorm=u % 2 + 1),)]
    log = read_log(write(tmp_path / "a.log", *lines, valid(8, name="valid"), valid(8, loss=3.0, name="valid1")))
    rows = curve_rows(log, "t2", "a.log", points=4)
    training = [r for r in rows if r["kind"] == "training"]
    assert [(r["updates"], r["loss"]) for r in training] == [(2, 1.5), (4, 3.5), (6, 5.5), (8, 7.5)]
    assert training[0]["ppl"] == pytest.approx(2**1.5)
    assert [(r["split"], r["loss"]) for r in rows if r["kind"] == "validation"] == [("valid", 3.5)]
    assert curve_rows(log, "t2", "a.log", split="valid1")[-1]["loss"] == 3.0
    assert rows[0]["gnorm_deviation"] == pytest.approx(0.534522 / 1.5, rel=1e-5)
    sparse = read_log(write(tmp_path / "b.log", inner(10), inner(20), valid(20)))
    assert curve_rows(sparse, "t2", "b.log")[0]["gnorm_deviation"] is None, "means over 10 updates say nothing"
    with pytest.raises(ValueError, match=r"no validation on 'test', only on \['valid', 'valid1'\]"):
        curve_rows(log, "t2", "a.log", split="test")
    with pytest.raises(ValueError, match="no validation line"):
        curve_rows(read_log(write(tmp_path / "c.log", inner(1))), "t2", "c.log")
