"""Small helpers for axes that say what they show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FuncFormatter,
    LogFormatterSciNotation,
    LogLocator,
    NullFormatter,
    NullLocator,
)

# names on an axis that stand out from the others
MARKED: dict[str, Any] = {"color": "#d55e00", "fontweight": "bold"}
_LOG = " (log scale)"


def describe(ax: Axes, *, x: str, y: str, title: str | None = None) -> None:
    """Name both axes, with units where there are any; a logarithmic axis says so by itself, whatever comes first."""
    ax.set_xlabel(x + (_LOG if ax.get_xscale() == "log" else ""))
    ax.set_ylabel(y + (_LOG if ax.get_yscale() == "log" else ""))
    if title is not None:
        ax.set_title(title)


def panel_title(ax: Axes, title: str) -> None:
    """Head one of several panels, smaller than the title of a figure and above its left corner."""
    ax.set_title(title, loc="left", fontsize="medium", fontweight="bold")


def log_axis(ax: Axes, which: Literal["x", "y"], *, base: int = 10, plain: bool = False) -> None:
    """Make one axis logarithmic and say so in its name.

    Args:
        ax: the axes.
        which: ``"x"`` or ``"y"``.
        base: 2 marks every power of two, as sequence lengths want it.
        plain: write 1024 rather than a power, and mark more than the powers where the data need it; draw them first.
    """
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log", base=base)
    low, high = axis.get_view_interval()
    marks = _marks(high / low) if plain and base == 10 else (1.0,)
    axis.set_major_locator(LogLocator(base=base, subs=marks, numticks=8 if marks == (1.0,) and base == 10 else 14))
    if plain or base == 2:
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.10g}") if plain else LogFormatterSciNotation(base=base)
    )
    axis.set_minor_formatter(NullFormatter())
    if (label := axis.get_label_text()) and not label.endswith(_LOG):
        axis.set_label_text(label + _LOG)


def count_axis(ax: Axes, which: Literal["x", "y"]) -> None:
    """Write large counts, such as tokens, as 250k and 1.5M."""
    (ax.xaxis if which == "x" else ax.yaxis).set_major_formatter(EngFormatter(sep=""))


def mark_ticks(
    ax: Axes, places: Sequence[int], names: Sequence[str], marked: Sequence[bool], size: float = 7.5
) -> None:
    """Name the rows and columns of a square map alike, some of them ``MARKED``, in letters of ``size`` points."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(list(places), list(names))
        axis.set_tick_params(length=0, pad=2, labelsize=size)
        for label, mark in zip(axis.get_ticklabels(), marked, strict=True):
            label.set(**MARKED if mark else {})
    if max(map(len, names)) > 1:
        ax.xaxis.set_tick_params(labelrotation=90)
    ax.spines[["left", "bottom"]].set_visible(False)


def legend(ax: Axes, *, title: str | None = None, beside: bool = False, panels: Sequence[Axes] = ()) -> None:
    """Add a legend, in the emptiest corner or ``beside`` the axes, where many lines leave no corner empty.

    With ``panels`` it is of all of them, each label once.
    """
    where: dict[str, Any] = {"loc": "best"}
    if beside:
        where = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
    if panels:
        entries = _entries(panels)
        where |= {"handles": list(entries.values()), "labels": list(entries)}
    ax.legend(title=title, **where)


def shared_legend(axes: Sequence[Axes], *, below: bool = False) -> None:
    """Add one legend to the right of all panels, or ``below`` them, each label once."""
    entries = _entries(axes)
    figure = axes[0].figure
    assert isinstance(figure, Figure)
    where: dict[str, Any] = {"loc": "outside lower center", "ncols": len(entries)} if below else {}
    figure.legend(list(entries.values()), list(entries), **{"loc": "outside right upper"} | where)


def _entries(axes: Sequence[Axes]) -> dict[str, Artist]:
    entries: dict[str, Artist] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    return entries


def _marks(span: float) -> tuple[float, ...]:
    """Return the first digits that get a tick on an axis whose ends have the ratio ``span``."""
    if span < 2:
        return (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.2, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0)
    if span < 8:
        return (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    return (1.0, 2.0, 5.0) if span < 100 else (1.0,)
