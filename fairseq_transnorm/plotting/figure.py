"""Writing a figure: the drawing twice and its numbers, all or none, the same bytes on every run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .tables import Row, to_json

# Laid over matplotlib's own defaults, so that the reader's matplotlibrc changes nothing.
_STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # ships with matplotlib: no machine lacks it
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.3",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.7,
    "xtick.color": "0.3",
    "ytick.color": "0.3",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "lines.linewidth": 1.7,
    "lines.markersize": 4.5,
    "lines.markeredgewidth": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.6,
    "pdf.fonttype": 42,  # text stays text: searchable, and journals accept it
    "svg.hashsalt": "fairseq_transnorm",
}


@contextmanager
def figure(
    stem: str | Path, rows: Sequence[Row], *, size: tuple[float, float] = (5.2, 3.4), seed: int | None = None
) -> Iterator[Axes]:
    """Yield axes to draw ``rows`` on; write ``stem.pdf``, ``stem.png`` and ``stem.json`` when the block ends.

    A second run writes the same bytes: nothing holds a time. The folder is made when missing, and each file is
    written under another name and then renamed. When the block raises, nothing is written.

    Args:
        stem: path without an extension; a trailing ``.pdf``, ``.png`` or ``.json`` is dropped.
        rows: every number that is drawn, as flat dicts of plain Python values.
        size: width and height in inches.
        seed: the seed behind the numbers, for the JSON.

    Raises:
        TypeError: a value in ``rows`` is not plain Python.
    """
    with panels(stem, rows, size=size, seed=seed) as (ax,):
        yield ax


@contextmanager
def panels(
    stem: str | Path,
    rows: Sequence[Row],
    *,
    nrows: int = 1,
    ncols: int = 1,
    size: tuple[float, float] = (3.6, 3.0),
    sharex: bool = False,
    sharey: bool | Literal["row"] = False,
    count: int | None = None,
    seed: int | None = None,
) -> Iterator[list[Axes]]:
    """Yield the axes of ``nrows`` x ``ncols`` panels, row by row; otherwise like :func:`figure`.

    Args:
        size: width and height of one panel in inches.
        sharex: same x range in all panels, tick labels only at the bottom.
        sharey: same y range in all panels, or in those of a row; tick labels only at the left.
        count: number of panels that are used; the last ones are left out.
    """
    stem = _without_suffix(Path(stem))
    table = to_json(rows, seed=seed)  # a value that cannot be kept fails before anybody draws
    with matplotlib.style.context(["default", _STYLE]):
        fig = Figure(figsize=(size[0] * ncols, size[1] * nrows))
        FigureCanvasAgg(fig)
        axes = list(fig.subplots(nrows, ncols, sharex=sharex, sharey=sharey, squeeze=False).flat)
        used = axes if count is None else axes[:count]
        for ax in axes[len(used) :]:
            ax.remove()
        yield used
        _write(fig, stem, table)


def _write(fig: Figure, stem: Path, table: str) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    temporary = {
        suffix: stem.with_name(f".{stem.name}.{os.getpid()}.tmp{suffix}") for suffix in (".pdf", ".png", ".json")
    }
    try:
        fig.savefig(temporary[".pdf"], format="pdf", metadata={"CreationDate": None})
        fig.savefig(temporary[".png"], format="png")
        temporary[".json"].write_text(table, encoding="utf-8")
        for suffix, path in temporary.items():
            path.replace(stem.with_name(stem.name + suffix))
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _without_suffix(stem: Path) -> Path:
    return stem.with_suffix("") if stem.suffix in {".pdf", ".png", ".json"} else stem
