"""Norms of T5-base over its pretraining, read off the figures of the original: the series behind the paper's claim.

Of 104 checkpoints, 5,100 updates apart and the last 4,088, these are the first five, every fourth of the others, and
the last. Source: Merrill et al. 2021, arXiv:2010.09697, figures of the original repository.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fairseq_transnorm.theory.norm_growth import step_from_cosine

from .trajectory import COLUMNS

BOTH = "encoder and decoder"  # all but the shared embedding
ENCODER = "encoder"
# updates, norm of encoder and decoder, its direction cosine to the checkpoint before it in the series of 104, norm of
# the encoder
T5_BASE: tuple[tuple[int, float, float | None, float], ...] = (
    (0, 470.6, None, 304.2),
    (5100, 569.0, 0.7994, 347.2),
    (10200, 743.6, 0.8550, 431.1),
    (15300, 873.3, 0.9219, 500.1),
    (20400, 980.4, 0.9468, 557.2),
    (40800, 1307.4, 0.9743, 729.3),
    (61200, 1540.0, 0.9820, 860.0),
    (81600, 1734.7, 0.9858, 970.0),
    (102000, 1910.4, 0.9881, 1066.1),
    (122400, 2069.0, 0.9898, 1151.3),
    (142800, 2214.6, 0.9913, 1230.7),
    (163200, 2351.1, 0.9922, 1304.1),
    (183600, 2481.6, 0.9929, 1373.5),
    (204000, 2608.0, 0.9934, 1440.2),
    (224400, 2729.3, 0.9940, 1503.4),
    (244800, 2846.0, 0.9944, 1563.9),
    (265200, 2957.7, 0.9949, 1622.2),
    (285600, 3065.5, 0.9952, 1678.7),
    (306000, 3169.9, 0.9955, 1732.6),
    (326400, 3270.7, 0.9957, 1783.2),
    (346800, 3368.9, 0.9959, 1831.4),
    (367200, 3465.9, 0.9960, 1879.3),
    (387600, 3561.9, 0.9962, 1926.8),
    (408000, 3656.8, 0.9964, 1973.5),
    (428400, 3750.3, 0.9965, 2019.3),
    (448800, 3841.9, 0.9966, 2064.2),
    (469200, 3931.7, 0.9968, 2107.9),
    (489600, 4019.9, 0.9969, 2150.6),
    (510000, 4106.6, 0.9970, 2192.6),
    (524288, 4166.2, 0.9976, 2221.6),
)
_INTERVAL = 5100
_LAST_BUT_ONE = 520200


def t5_rows(run: str = "T5-base") -> list[dict[str, Any]]:
    """Return the series as rows of a trajectory.

    The cosine is that to the checkpoint before, most of which are not among these: for the length of the step and its
    alignment their norm is interpolated, its square being almost a line. The cosine has four digits, so a length is
    good to about 1 %, an alignment to 0.003.
    """
    rows = []
    for t, norm, cosine, encoder in T5_BASE:
        step = {}
        if cosine is not None:
            before = _norm_at(_LAST_BUT_ONE if t == T5_BASE[-1][0] else t - _INTERVAL)
            length, alignment = step_from_cosine(before, norm, cosine)
            step = {"step_norm": length, "direction_cosine": cosine, "alignment": alignment}
        for scope, value, more in ((BOTH, norm, step), (ENCODER, encoder, {})):
            rows.append(dict.fromkeys(COLUMNS) | {"run": run, "scope": scope, "updates": t, "norm": value} | more)
    return rows


def _norm_at(t: int) -> float:
    """Interpolate the norm of encoder and decoder: a cubic through the squares at the four nearest checkpoints."""
    near = sorted(T5_BASE, key=lambda row: abs(row[0] - t))[:4]
    cubic = np.polyfit([(row[0] - t) / _INTERVAL for row in near], [row[1] ** 2 for row in near], 3)
    return math.sqrt(float(cubic[-1]))
