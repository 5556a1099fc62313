"""Grids, errors and records of the component simulations."""

import fcntl
import json
import math

import pytest

from fairseq_transnorm.measure.component_errors import compare, lenient_error, percentiles, plain_error, summarise
from fairseq_transnorm.measure.component_grid import COMPONENTS, SINGLE, Component, Metric, Reduction
from fairseq_transnorm.measure.component_moments import SIMULATIONS
from fairseq_transnorm.measure.component_runs import simulate_all

PUBLISHED = {"linear": 13122, "relu": 450, "gelu": 450, "layernorm": 4050, "dropout": 4374, "softmax": 625}
PUBLISHED |= {"attention": 26244}
REDUCED = {"linear": 100, "relu": 225, "gelu": 60, "layernorm": 150, "dropout": 150, "softmax": 100, "attention": 120}
TRIALS = {"linear": 100, "relu": 10_000, "gelu": 100_000, "layernorm": 100, "dropout": 100, "softmax": 10_000}
TRIALS |= {"attention": 64}
FEW = COMPONENTS["relu"].select(0, Reduction(5, length=100))


def test_grids_have_the_published_sizes():
    assert {name: sum(1 for _ in COMPONENTS[name].combinations()) for name in SINGLE} == PUBLISHED
    assert {name: COMPONENTS[name].trials for name in SINGLE} == TRIALS
    chosen = {name: COMPONENTS[name].select(0, COMPONENTS[name].reduced) for name in SINGLE}
    assert {name: len(combinations) for name, combinations in chosen.items()} == REDUCED
    assert all(c["length"] == 100 and c["d_in"] * c["d_out"] <= 316_000 for c in chosen["linear"])
    assert {c["length"] for c in chosen["softmax"]} == {300, 720}
    assert {c["d_in"] for c in chosen["attention"]} == {100, 316}
    assert set(SIMULATIONS) == set(COMPONENTS)
    blocks = COMPONENTS["attention_block"].select(0)
    assert all(c["attention_p"] == c["p"] for c in blocks)


def test_a_larger_selection_begins_with_the_smaller():
    few, more = (COMPONENTS["dropout"].select(3, Reduction(n, length=100)) for n in (4, 9))
    assert more[:4] == few
    assert few != COMPONENTS["dropout"].select(4, Reduction(4, length=100))
    both = COMPONENTS["dropout"].select(3, Reduction(9, length=100), Reduction(7, width=316))
    assert len(both) == 7
    assert max(c["d"] for c in both) <= 316


@pytest.mark.parametrize(
    ("observed", "predicted", "scale", "expected"),
    [
        (2.0, 1.0, None, 0.5),
        (-2.0, -1.0, None, 0.5),
        (2.0, 1.0, 4.0, 0.25),
        (2.0, 1.0, 0.1, 0.5),
        (0.2, 0.0, 4.0, 0.05),
        (-0.2, 0.0, 0.1, 0.2),
        (0.0, 0.0, 1.0, 0.0),
        (0.0, 1.0, None, math.inf),
    ],
)
def test_lenient_error_by_hand(observed, predicted, scale, expected):
    assert lenient_error(observed, predicted, scale) == pytest.approx(expected)


def test_plain_error_has_no_lenience_and_says_nothing_about_0():
    assert plain_error(0.001, 0.002) == pytest.approx(1.0)
    assert plain_error(0.001, 0.0) is None
    assert plain_error(0.001, 1e-17, scale=0.1) is None, "rounding"
    assert plain_error(0.001, 1e-17) == pytest.approx(1.0)


def test_percentiles_are_taken_at_the_floor_index():
    assert percentiles(range(100)) == [50, 90, 99]
    assert percentiles([3.0, 1.0, 2.0]) == [2.0, 3.0, 3.0]  # indices 1, 2, 2
    assert percentiles(range(225)) == [112, 202, 222]


def test_table_puts_theory_beside_measurement_and_judges():
    component = Component(
        "Doubling", trials=1, grid={}, reduced=Reduction(), theory=lambda c: {"mean": c["a"], "variance": 2.0},
        metrics=[Metric("x mean", "mean", scale="variance", bound=(1.0, 10.0, 30.0)), Metric("x var", "variance")],
    )  # fmt: skip
    seen = [{"mean": m, "variance": v} for m, v in ((0.0, 2.0), (1.1, 1.6), (2.5, 2.5))]
    rows = compare(component, [{"a": 0.0}, {"a": 1.0}, {"a": 2.0}], seen)
    assert [row["x mean: error"] for row in rows] == pytest.approx([0.0, 0.05, 0.2])
    assert rows[0]["x mean: relative error"] is None
    mean, variance = summarise(component, rows)
    assert (mean["p50"], mean["p90"], mean["p99"]) == pytest.approx((5.0, 20.0, 20.0))
    assert (mean["relative p50"], mean["relative p99"]) == pytest.approx((20.0, 20.0)), "of two, at index 1"
    assert (mean["theory"], mean["measured"], mean["combinations"]) == (2.0, 2.5, 3)
    assert mean["within"] is False
    assert (mean["bound p50"], mean["bound p99"]) == (1.0, 30.0)
    assert variance["within"] is None
    loose = Component("", 1, {}, Reduction(), component.theory, [component.metrics[0]._replace(bound=(5.1, 21, 21))])
    assert summarise(loose, rows)[0]["within"] is True


def simulate_few(record, combinations=FEW, **changed):
    return simulate_all("relu", combinations, record, **{"trials": 50, "seed": 1} | changed)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("relu") / "new folder" / "relu.jsonl"
    return path, simulate_few(path)


def test_results_do_not_depend_on_order_workers_or_company(record, tmp_path):
    _, measured = record
    assert simulate_few(tmp_path / "a.jsonl", FEW[::-1], workers=2) == measured[::-1]
    assert simulate_few(tmp_path / "b.jsonl", FEW[3:4]) == measured[3:4]
    assert simulate_few(tmp_path / "c.jsonl", FEW[:2], seed=2) != measured[:2]
    assert measured[0] != measured[1]


def test_a_finished_combination_is_not_done_again(record, monkeypatch):
    path, measured = record
    before = path.read_bytes()
    monkeypatch.setattr("fairseq_transnorm.measure.component_runs.simulate", None)
    assert simulate_few(path) == measured
    assert path.read_bytes() == before


@pytest.mark.parametrize("end", [1, 40, -1])
def test_a_record_cut_off_anywhere_is_taken_up(record, tmp_path, end):
    path, measured = record
    lines = path.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "relu.jsonl"
    cut.write_bytes(b"".join(lines[:3]) + lines[3][:end])
    assert simulate_few(cut) == measured
    assert sorted(cut.read_bytes().splitlines()) == sorted(path.read_bytes().splitlines())
    for head in (lines[0][:end], lines[0]):
        cut.write_bytes(head)
        for _ in range(2):
            assert simulate_few(cut) == measured


@pytest.mark.parametrize(("changed", "named"), [({"trials": 51}, "trials 50 .now 51."), ({"seed": 2}, "seed 1")])
def test_other_settings_are_refused(record, changed, named):
    path, _ = record
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"relu\.jsonl was made with {named}.*another --out"):
        simulate_few(path, **changed)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["hello", "hello\n", "[1]\n", "{}\n", '{"component": "relu"}\n{"a": 1}\n'])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "relu.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"relu\.jsonl (is not a record|was made with)"):
        simulate_few(path)
    assert path.read_text() == content


def test_two_processes_do_not_write_one_record(record):
    path, _ = record
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="written by another process"):
            simulate_few(path)


def test_lines_of_a_record_are_whole_json(record):
    path, measured = record
    head, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert (head["component"], head["trials"], head["seed"], head["device"]) == ("relu", 50, 1, "cpu")
    assert [line["parameters"] for line in lines] == FEW
    assert [line["measured"] for line in lines] == measured
