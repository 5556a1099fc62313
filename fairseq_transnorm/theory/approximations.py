"""Short approximations of what ReLU and a feed-forward block do to the correlation of two positions.

Source: Kedia et al. 2024, arXiv:2403.09635, as realised in its authors' simulations. For 0 <= r <= 1 they are within
0.01 of the closed forms, which are ``relu(...).correlation`` and ``ffn_block(...).correlation`` without dropout.
"""

from __future__ import annotations

import numpy as np

from .moments import Values, require


def relu_correlation(r: Values) -> Values:
    """Return ``0.7 r + 0.3 r^2``, about the correlation after ReLU of inputs with mean 0."""
    _require_share(r)
    return 0.7 * r + 0.3 * r**2


def ffn_correlation(r: Values) -> Values:
    """Return ``1/pi + r / 2 + (1/2 - 1/pi) r^2``, about the correlation after a ReLU feed-forward block."""
    _require_share(r)
    return 1 / np.pi + r / 2 + (0.5 - 1 / np.pi) * r**2


def _require_share(r: Values) -> None:
    require("r", r, lambda v: (v >= 0) & (v <= 1), "must lie in [0, 1]")
