"""One look for every figure: a variant has the same colour, marker and dash wherever it is drawn."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np

# Okabe and Ito's palette, safe for colour-blind readers. matplotlib has it as `okabe_ito` only from 3.11 on.
OKABE_ITO = {
    "black": "#000000",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "green": "#009e73",
    "yellow": "#f0e442",
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "purple": "#cc79a7",
}

# A curve that others are compared with, such as uniform attention; and a bound that none may cross.
BASELINE: dict[str, Any] = {"color": "0.25", "linestyle": (0, (1.0, 1.6)), "linewidth": 1.3, "zorder": 1.5}
LIMIT: dict[str, Any] = {"color": "0.55", "linestyle": (0, (4.0, 2.0)), "linewidth": 1.0, "zorder": 1.4}

_DASHES: dict[str, Any] = {"solid": "-", "dashed": (0, (5.0, 1.8)), "dashdot": (0, (5.0, 1.5, 1.0, 1.5))}
# for parts of the same thing, which share its colour
DASHES: tuple[Any, ...] = (*_DASHES.values(), (0, (1.0, 1.6)))

# Marker and dash tell the lines apart where the colour is lost in print.
_VARIANTS = {
    "transnormer_t2": ("blue", "o", "solid"),
    "transnormer_t1": ("sky", "s", "solid"),
    "transformer_lm": ("vermilion", "D", "dashed"),
    "1+elu": ("orange", "^", "dashdot"),
    "local": ("green", "s", "dashed"),
    "performer": ("purple", "v", "dashdot"),
    "cosformer": ("black", "p", "dashdot"),
    # forms of one operator
    "chunk": ("blue", "o", "solid"),
    "quadratic": ("sky", "s", "dashed"),
    "recurrent": ("green", "^", "dashdot"),
    "fla": ("purple", "P", "solid"),
    # initialisation and placement of the norms
    "dslm post-ln": ("blue", "o", "solid"),
    "dslm pre-ln": ("sky", "s", "dashed"),
    "xavier post-ln": ("vermilion", "D", "solid"),
    "xavier pre-ln": ("orange", "^", "dashed"),
    # norm growth: post-norm and the paper's pre-norm, and the same with the mask that leaks
    "control": ("blue", "o", "solid"),
    "pre_norm": ("orange", "^", "solid"),
    "control-mult": ("sky", "s", "dashed"),
    "pre_norm-mult": ("vermilion", "D", "dashed"),
    # probes of an induction head: the memories, the same colour for one matrix; where heads look; what comes of it
    "wo1_acc": ("blue", "o", "solid"),
    "wk1_acc": ("orange", "^", "dashed"),
    "wk0_acc": ("green", "s", "solid"),
    "wk0_cut_acc": ("green", "D", "dashed"),
    "ff1_loss": ("purple", "v", "solid"),
    "score_start_acc": ("green", "s", "solid"),
    "score2_acc": ("orange", "^", "solid"),
    "score_cond_acc": ("sky", "D", "dashed"),
    "pred_attended_acc": ("blue", "o", "dashed"),
    "acc_end_test": ("vermilion", "o", "solid"),
    "acc_end": ("black", "s", "dashed"),
    "loss_head": ("vermilion", "o", "solid"),
    "loss_bigram": ("black", "s", "dashed"),
    # NormAttention with several epsilons: one family
    "norm, eps 1e-2": ("sky", "s", "solid"),
    "norm, eps 1e-6 inside": ("blue", "o", "dashed"),
    "norm, eps 1e-8": ("purple", "v", "solid"),
}
_ALIASES = {
    "normgrowth_control": "control",
    "normgrowth_pre_norm": "pre_norm",
    "t1": "transnormer_t1",
    "t2": "transnormer_t2",
    "transnormer": "transnormer_t2",
    "transnormer_lm": "transnormer_t2",
    "transnormer_lm_tiny": "transnormer_t2",
    "transformer": "transformer_lm",
    "vanilla": "transformer_lm",
    "softmax": "transformer_lm",
    "sdpa": "transformer_lm",
    "linear": "1+elu",
    "scaled linear": "1+elu",
    "chunkwise": "chunk",
}
# Yellow is left out: on white paper a thin yellow line cannot be seen.
_OTHER_COLOURS = ("green", "purple", "orange", "sky", "vermilion", "blue", "black")
_OTHER_MARKERS = ("P", "X", "<", ">", "*", "h")


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return ``plot`` keywords (colour, marker, dash) for the variants of one figure.

    A variant that the package knows looks the same in every figure. Any other name gets the look that its letters pick;
    only when that colour is taken in this figure does it move on to the next free one, or where none is, to one that
    the fewest have, with another marker.

    Args:
        names: variant names; case, blanks around them and repetitions do not matter.
    """
    wanted = list(dict.fromkeys(names))
    styles: dict[str, dict[str, Any]] = {}
    taken: list[tuple[str, str]] = []  # colours and markers
    for name in wanted:
        if key := _known(name):
            colour, marker, dash = _VARIANTS[key]
            styles[name] = _style(colour, marker, dash)
            taken.append((colour, marker))
    for name in sorted(set(wanted) - set(styles)):
        start = zlib.crc32(name.strip().lower().encode())
        used = Counter(colour for colour, _ in taken)
        colour = min(_rotated(_OTHER_COLOURS, start), key=lambda c: used[c])
        markers = _rotated(_OTHER_MARKERS, start // 21)
        marker = next((m for m in markers if (colour, m) not in taken), markers[0])
        taken.append((colour, marker))
        styles[name] = _style(colour, marker, list(_DASHES)[start // 7 % len(_DASHES)])
    return {name: styles[name] for name in wanted}


def line_style(name: str) -> dict[str, Any]:
    """Return the ``plot`` keywords of a single variant; see :func:`line_styles`."""
    return line_styles([name])[name]


def ordered_colours(count: int) -> list[str]:
    """Return ``count`` colours from dark to light for things that have an order, such as layers."""
    # The light end of cividis is a yellow that white paper swallows.
    return [matplotlib.colors.to_hex(c) for c in matplotlib.colormaps["cividis"](np.linspace(0.0, 0.85, count))]


def ordered_markers(count: int) -> Sequence[str]:
    """Return ``count`` markers to go with :func:`ordered_colours`."""
    return [("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")[i % 10] for i in range(count)]


def _rotated(items: Sequence[str], start: int) -> list[str]:
    return [items[(start + i) % len(items)] for i in range(len(items))]


def _known(name: str) -> str | None:
    key = name.strip().lower()
    key = _ALIASES.get(key, key)
    return key if key in _VARIANTS else None


def _style(colour: str, marker: str, dash: str) -> dict[str, Any]:
    return {"color": OKABE_ITO[colour], "marker": marker, "linestyle": _DASHES[dash]}
