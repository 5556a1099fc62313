"""What heat maps of formal languages show: every cell in its place, scales, symbols, titles."""

import argparse
import re
import runpy
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fairseq_transnorm.data.languages.definition import BOS, SYMBOLS
from fairseq_transnorm.measure.language_attention import joined
from fairseq_transnorm.plotting import MARKED, text_name
from tests.helpers import ROOT

SCRIPT = runpy.run_path(str(ROOT / "analysis/rasp/heat_maps.py"))
OPTIONS = {"autoscale": False, "vmin": None, "vmax": None, "size": 4.0, "skip_colorbar": False, "with_numbers": None}


def cells(heads=1, symbols="ab\n", targets=(), attention="softmax", sign=1):
    """Rows of one layer whose weights tell head, query and key, below 1; scores are ten times that."""
    rows = []
    for head in range(heads):
        for query, of_query in enumerate(symbols):
            for key, of_key in enumerate(symbols):
                weight = (head + query / 10 + key / 100) / heads
                row = {"model": "runs/m$1$", "language": "reverse_100", "sequence": symbols, "attention": attention}
                row |= {"layer": 3, "head": head, "query": query, "query_symbol": of_query, "key": key}
                row |= {"key_symbol": of_key, "weight": sign * weight, "score": -10 * weight}
                row |= {"target": int(query == key) if head in targets else None}
                rows.append(row | {"target_mass": 0.5, "squared_difference": 0.1})
    return rows


def drawn(rows, kind="distributions", monkeypatch=None, **options):
    """Draw a layer; return the panels that are left, by their titles, the bars' axes and the figure."""
    shown = {}

    @contextmanager
    def panels(stem, rows, nrows, ncols, size, seed):
        figure = Figure(figsize=(size[0] * ncols, size[1] * nrows), layout="constrained")
        FigureCanvasAgg(figure)
        shown.update(figure=figure, shape=(nrows, ncols))
        yield list(figure.subplots(nrows, ncols, squeeze=False).flat)

    draw_layer = SCRIPT["draw_layer"]
    monkeypatch.setitem(draw_layer.__globals__, "panels", panels)
    numbered = draw_layer(rows, "stem", kind, argparse.Namespace(**(OPTIONS | options), seed=0))
    figure = shown["figure"]
    maps = {ax.get_title(loc="left"): ax for ax in figure.axes if ax.images and ax.get_title(loc="left")}
    bars = [ax for ax in figure.axes if ax.get_title(loc="left") == ""]
    return SimpleNamespace(maps=maps, bars=bars, figure=figure, shape=shown["shape"], numbered=numbered)


def grid(heads, head):
    return [[(head + query / 10 + key / 100) / heads for key in range(3)] for query in range(3)]


def test_a_panel_a_head_with_the_targets_below(monkeypatch):
    page = drawn(cells(5, targets=(0, 3)), monkeypatch=monkeypatch)
    assert page.shape == (3, 3), "two rows of five heads, one of two targets"
    below = [f"target of head {head}\nweight on it 0.50" for head in (0, 3)]
    assert list(page.maps) == [*(f"head {head}" for head in range(5)), *below]
    places = [page.maps[title].get_subplotspec().num1 for title in page.maps]
    assert places == [0, 1, 2, 3, 4, 6, 7]
    for head in range(5):
        (image,) = page.maps[f"head {head}"].images
        np.testing.assert_allclose(image.get_array(), grid(5, head))
        assert image.get_extent() == [-0.5, 2.5, 2.5, -0.5], "queries go down"
        assert (image.norm.vmin, image.norm.vmax, image.cmap.name) == (0, 1, "cividis")
    for title in below:
        assert page.maps[title].images[0].get_array().tolist() == np.eye(3).tolist()
    assert len(page.bars) == 1
    assert page.figure.get_size_inches().tolist() == [12, 12]


@pytest.mark.parametrize("heads", range(1, 10))
def test_the_rows_of_panels(heads, monkeypatch):
    above = int(heads**0.5)
    assert drawn(cells(heads), monkeypatch=monkeypatch).shape == (above, -(-heads // above))


def test_symbols_can_be_seen_on_both_axes(monkeypatch):
    ax = drawn(cells(symbols=f"{BOS} \t\na"), monkeypatch=monkeypatch).maps["head 0"]
    for axis in (ax.xaxis, ax.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == [BOS, "␣", "⇥", "↵", "a"]
        assert [label.get_color() == MARKED["color"] for label in axis.get_ticklabels()] == [True] + [False] * 4
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("key", "query")


MOST = (2 + 0.2 + 0.02) / 3  # the largest weight of three heads


@pytest.mark.parametrize(
    ("kind", "rows", "options", "ends"),
    [
        ("distributions", {}, {}, [(0, 1)] * 3),
        ("distributions", {}, {"autoscale": True}, [(head / 3, (head + 0.22) / 3) for head in range(3)]),
        ("distributions", {}, {"vmin": 0.1, "vmax": 0.5}, [(0.1, 0.5)] * 3),
        ("distributions", {}, {"vmin": 3.0}, [(3, 4)] * 3),
        ("distributions", {}, {"vmax": 0.2, "autoscale": True}, [(0, 0.2)] + [(-0.8, 0.2)] * 2),
        ("distributions", {"attention": "linear"}, {}, [(0, MOST)] * 3),
        ("distributions", {"attention": "linear", "sign": -1}, {}, [(-MOST, MOST)] * 3),
        ("scores", {}, {}, [(-10 * MOST, 10 * MOST)] * 3),
        ("scores", {}, {"autoscale": True}, [(-10 * (head + 0.22) / 3, -10 * head / 3) for head in range(3)]),
    ],
)
def test_scales(kind, rows, options, ends, monkeypatch):
    page = drawn(cells(3, **rows), kind, monkeypatch, **options)
    images = [page.maps[f"head {head}"].images[0] for head in range(3)]
    assert [(image.norm.vmin, image.norm.vmax) for image in images] == [pytest.approx(pair) for pair in ends]
    assert {image.cmap.name for image in images} == {"RdBu_r" if ends[0][0] == -ends[0][1] else "cividis"}
    assert len(page.bars) == (3 if options.get("autoscale") else 1), "a bar for each scale"
    assert not drawn(cells(3, **rows), kind, monkeypatch, **options, skip_colorbar=True).bars
    wanted = "weights of linear attention, no distribution" if rows else "attention weights"
    assert (wanted if kind == "distributions" else "before the softmax") in page.figure.get_suptitle()


def test_numbers_in_the_cells(monkeypatch):
    page = drawn(cells(2, targets=(1,)), monkeypatch=monkeypatch, with_numbers=3)
    for head in range(2):
        texts = {text.get_position(): text.get_text() for text in page.maps[f"head {head}"].texts}
        assert texts == {(key, query): f"{grid(2, head)[query][key]:.3f}" for query in range(3) for key in range(3)}
    colours = {text.get_text(): text.get_color() for head in range(2) for text in page.maps[f"head {head}"].texts}
    assert (colours["0.000"], colours["0.610"]) == ("white", "black"), "on dark, on light"
    assert not drawn(cells(), monkeypatch=monkeypatch).maps["head 0"].texts


def test_letters_too_small_to_be_read_are_left_out(monkeypatch):
    page = drawn(cells(symbols="ab" * 33), monkeypatch=monkeypatch, size=2.0, with_numbers=2)
    ax = page.maps["head 0"]
    assert not ax.texts
    assert not page.numbered
    for axis in (ax.xaxis, ax.yaxis):
        assert axis.get_ticklocs().tolist() == list(range(0, 66, 4)), "every fourth symbol"
        assert {label.get_text() for label in axis.get_ticklabels()} == {"a"}
        assert all(label.get_fontsize() >= 3 for label in axis.get_ticklabels())
    page = drawn(cells(symbols="ab" * 6), monkeypatch=monkeypatch, size=2.0, with_numbers=2)
    assert page.numbered
    assert min(text.get_fontsize() for text in page.maps["head 0"].texts) >= 3
    assert len(page.maps["head 0"].get_xticks()) == 12


@pytest.mark.parametrize(("model", "size"), [("m", 2.0), ("x" * 90, 2.0), ("runs/m$1$ _" * 5, 3.0)])
def test_the_title_is_whole_and_says_what_rows_and_columns_are(model, size, monkeypatch):
    page = drawn([row | {"model": model} for row in cells()], monkeypatch=monkeypatch, size=size)
    title = page.figure.get_suptitle()
    told = f"reverse_100, {model} layer 3: attention weights rows: queries, columns: keys"
    assert re.sub(r"\s", "", title) == re.sub(r"\s", "", told)
    page.figure.canvas.draw()
    extent, whole = page.figure._suptitle.get_window_extent(), page.figure.bbox
    assert extent.x0 >= 0
    assert extent.x1 <= whole.x1
    assert extent.y1 <= whole.y1


@pytest.mark.parametrize("skip_colorbar", [False, True])
@pytest.mark.parametrize(("size", "heads"), [(2.0, 2), (2.0, 12), (3.0, 2), (5.0, 2)])
def test_panels_are_in_line_and_their_titles_are_apart_and_whole(size, heads, skip_colorbar, monkeypatch):
    page = drawn(
        cells(heads, BOS + "dbbda", range(heads)), "distributions", monkeypatch, size=size, skip_colorbar=skip_colorbar
    )
    page.figure.canvas.draw()
    titles = [ax._left_title.get_window_extent() for ax in page.maps.values()]
    for number, title in enumerate(titles):
        assert title.x1 <= page.figure.bbox.x1
        assert not any(title.overlaps(other) for other in titles[:number])
    columns = {}
    for ax in page.maps.values():
        columns.setdefault(ax.get_subplotspec().num1 % page.shape[1], []).append(ax.get_window_extent().x0)
    for places in columns.values():
        assert places == pytest.approx([places[0]] * len(places), abs=0.5)


def spelled(name):
    """Read a name of :func:`text_name` that is not shortened."""
    parts = re.findall(r"((?:%..)+)|_(.)|([a-z0-9])", name)
    return "".join(
        bytes.fromhex(code.replace("%", "")).decode() if code else large.upper() + small for code, large, small in parts
    )


@given(st.text(st.sampled_from(SYMBOLS + BOS), min_size=1, max_size=70))
def test_a_sequence_can_be_read_off_its_folder(text):
    name = text_name(text)
    assert re.fullmatch(r"[a-z0-9_%~]{1,240}", name), "for any file system, capitals or not"
    if not name.startswith("~"):
        assert spelled(name) == text


def test_long_sequences_have_names_of_their_own():
    names = [text_name(text) for text in ("!" * 80, "!" * 81, "!" * 101, "!" * 102, "!" * 300, "!" * 301, "a" * 240)]
    assert len(set(names)) == len(names)
    assert [len(name) - len(name.lstrip("~")) for name in names] == [0, 1, 1, 1, 2, 2, 0]
    assert max(map(len, names)) == 240
    assert text_name("aB/ §") == "a_b%2f%20%c2%a7"


@pytest.mark.parametrize(
    ("text", "read"), [(r"a\tb\n\r\x0b\x0c", "a\tb\n\r\x0b\x0c"), (r"\\t", "\\t"), ("no", "no"), (r"\\\\", "\\\\")]
)
def test_escapes(text, read):
    assert SCRIPT["unescaped"](text) == read


@given(st.text(st.sampled_from(SYMBOLS)))
def test_escapes_read_back_what_a_text_of_a_model_shows(text):
    shown = joined(list(text))
    assert shown.isprintable()
    assert SCRIPT["unescaped"](shown) == text


@pytest.mark.parametrize("text", [r"\q", "a\\", r"\x41"])
def test_other_escapes_are_refused(text):
    with pytest.raises(ValueError, match=r"--escapes: .* is none of"):
        SCRIPT["unescaped"](text)
