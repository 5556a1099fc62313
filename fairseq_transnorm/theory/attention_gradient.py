"""Variance of the gradient in the input of self-attention: the paper's form and two that err less.

Source: ``values`` is that of Kedia et al. 2024, arXiv:2403.09635; the others are derived, and checked by simulation
(``analysis/dslm/simulations.py``).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

AttentionGradient = Literal["values", "corrected", "whole"]


def attention_gradient(form: AttentionGradient, r: Any, rg: Any, p: Any, q2: Any, length: Any, d_in: Any) -> Any:
    """Return ``G' / (sg^2 d_out sv^2)`` of attention, with q2 = d_in^2 sq^2 sk^2 sigma^4.

    ``values``, the paper's, counts the path through V alone::

        (1 + (L - 1) rg (1 - p)) / (L (1 - p))

    ``corrected`` has what uneven column sums of P and the path through K add however long the sequence is::

        1 / (L (1 - p)) + rg kappa (1 + r (1 - r) q2),   kappa = exp(r (1 - r) q2)

    ``whole`` counts all paths to first order in q2 beside P's own spread, also what vanishes with L and d_in, which is
    all that there is of K and Q where rg = 0. With e = exp((1 - r) q2) and n = (1 - r + r p) / (1 - p), the spread of a
    masked g_i . v_j over the keys::

        V   e / (L (1 - p)) + rg kappa (L - 1) / L
        K   rg kappa r (1 - r) q2 + e n q2 / L
        Q   (1 - r)^2 q2 / d_in + e (1 - r) n q2 / L

    For the gradient in q_i is (sum_j dS_ij k_j) / sqrt(d_out), dS_ij = P_ij (m_ij g_i . v_j - their mean): its
    expectation is the covariance (1 - r) sigma^2 that keys and values of one row share through x, the rest is noise of
    L terms. The gradient in k_j sums dS_ij q_i over the queries, and what the g_i and the q_i have in common adds up.

    Args:
        form: ``values``, ``corrected`` or ``whole``.
        r, rg: correlation between positions of x, and of the gradient in the output.
        p: dropout of the attention probabilities.
        q2: see above; the variance of a query's scores over the keys is (1 - r) q2.
        length, d_in: positions L, well above 1, and features of x.

    Raises:
        ValueError: there is no such form. The other domains are checked by the callers.
    """
    if form == "values":
        return (1 + (length - 1) * rg * (1 - p)) / (length * (1 - p))
    uneven = r * (1 - r) * q2
    common = rg * np.exp(uneven)
    if form == "corrected":
        return 1 / (length * (1 - p)) + common * (1 + uneven)
    if form != "whole":
        raise ValueError(f"gradient {form!r} must be values, corrected or whole")
    peak = np.exp((1 - r) * q2) / length
    noise = (1 - r + r * p) / (1 - p) * q2
    values = peak / (1 - p) + common * (length - 1) / length
    return values + common * uneven + peak * noise + (1 - r) ** 2 * q2 / d_in + peak * (1 - r) * noise
