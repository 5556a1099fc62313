"""What attention maps and maps of memories show: cells in their places, names of tokens, marks, scales."""

import runpy

import pytest
from matplotlib.figure import Figure

from fairseq_transnorm.plotting import MARKED
from tests.helpers import ROOT

TEXT, COUNTERS = "ab\na", [1, 0, 0, 2]


def draw(script, *arguments):
    ax = Figure().subplots()
    return ax, runpy.run_path(str(ROOT / "analysis/birth" / script))["draw_map"](ax, *arguments)


def attention(weight, kind="induction"):
    """Rows of the positions 5 to 8 of a sequence."""
    return [
        {"kind": kind, "query": 5 + t, "query_token": TEXT[t], "query_counter": COUNTERS[t]}
        | {"key": 5 + j, "key_token": TEXT[j], "weight": weight(t, j), "before_is_query": (t, j) == (3, 1)}
        for t in range(4)
        for j in range(t + 1)
    ]


def test_an_attention_map():
    ax, image = draw("attention_maps.py", attention(lambda t, j: (4 * t + j) / 20), True, 3.0)
    cells = image.get_array()
    assert [[None if cells.mask[t, j] else cells[t, j] for j in range(4)] for t in range(4)] == [
        [0.0, None, None, None],
        [4 / 20, 5 / 20, None, None],
        [8 / 20, 9 / 20, 10 / 20, None],
        [12 / 20, 13 / 20, 14 / 20, 15 / 20],
    ]
    assert image.get_extent() == [4.5, 8.5, 8.5, 4.5], "queries go down"
    assert (image.norm.vmin, image.norm.vmax, image.cmap.name) == (0, 1, "cividis")
    for axis in (ax.xaxis, ax.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["a", "b", "↵", "a"]
        marked = [label.get_color() == MARKED["color"] for label in axis.get_ticklabels()]
        assert marked == [True, False, False, True]
    assert [list(line.get_xydata()[0]) for line in ax.lines] == [[6, 8]], "key and query"
    plain, _ = draw("attention_maps.py", attention(lambda t, j: 0.0), False, 3.0)
    assert not plain.lines[0].get_xydata().size, "the first layer has no marks"


@pytest.mark.parametrize(
    ("kind", "weight", "most"),
    [("linear", 0.25, 0.25), ("local", -3.0, 3.0), ("local", 5.0, 5.0), ("local", 0.5, None), ("linear", 0.0, 1.0)],
)
def test_weights_with_signs_or_above_1_have_a_scale_of_their_own(kind, weight, most):
    _, image = draw("attention_maps.py", attention(lambda t, j: weight, kind), True, 3.0)
    low, name = (0, "cividis") if most is None else (-most, "RdBu_r")
    assert (image.norm.vmin, image.norm.vmax, image.cmap.name) == (low, most or 1, name)


def test_a_map_of_tokens_that_are_not_all():
    rows = [
        {"row": i, "row_name": name, "column": j, "trigger": i == 7, "value": float(10 * i + j)}
        for i, name in ((2, " "), (7, "x"))
        for j in (2, 7)
    ]
    ax, _ = draw("memories.py", rows, "wo1_acc", 2.0)
    (image,) = ax.images
    assert image.get_array().tolist() == [[22, 27], [72, 77]]
    assert (image.norm.vmin, image.norm.vmax) == (-77, 77)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["␣", "x"]
    assert [label.get_color() == MARKED["color"] for label in ax.get_xticklabels()] == [False, True]


def test_recall_is_said_with_that_of_the_first_positions():
    recall = runpy.run_path(str(ROOT / "analysis/birth/memories.py"))["recall"]
    probes = {"wo1_acc": 1.0, "wk0_acc": 0.25, "wk0_16_acc": 0.5}
    assert recall(probes, "wo1_acc") == "recall 1.00"
    assert recall(probes, "wk0_acc") == "recall 0.25 (0.50 of t < 16)"
