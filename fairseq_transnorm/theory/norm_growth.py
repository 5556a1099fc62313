"""How the norm of a parameter vector changes: exactly, in one step, and over many steps under two assumptions.

A step delta leads from theta to theta'. Exactly, ``|theta'|^2 = |theta|^2 + 2 theta . delta + |delta|^2``, so the norm
grows if and only if ``theta . delta > -|delta|^2 / 2``.

Over many steps the paper assumes ``|delta_t| = eta_t |theta_t|``, eta the learning rate. *Aligned* steps point where
theta points, *misaligned* ones are orthogonal to it. Without that assumption, orthogonal steps of constant length give
``|theta_t|^2 = |theta_0|^2 + t |delta|^2``, the straight line that measured norms follow.

Source: Merrill et al. 2021, arXiv:2010.09697, sections 3 and 4. The derivation printed there drops the 2 of
``2 theta . delta``, which does not matter where that product is 0.
"""

from __future__ import annotations

import math


def integrated_rate(rate: float, power: float, start: float, end: float) -> float:
    """Return the integral of ``rate * t^-power`` from ``start`` to ``end``, in updates, ``0 < start <= end``.

    Power 0 is a constant learning rate, 1/2 the inverse square root; the square of that has power 1.
    """
    if power == 1:
        return rate * math.log(end / start)
    return rate * (end ** (1 - power) - start ** (1 - power)) / (1 - power)


def aligned_norm(norm: float, rate: float, power: float, start: float, end: float) -> float:
    """Return the norm at update ``end`` when every step is aligned: ``|theta| exp(integral of eta)``.

    With ``eta = 1 / sqrt(t)`` it grows as ``exp(2 sqrt(t))``.

    Args:
        norm: at update ``start``.
        rate, power: of the learning rate ``eta_t = rate * t^-power``.
        start, end: updates.
    """
    return norm * math.exp(integrated_rate(rate, power, start, end))


def misaligned_norm(norm: float, rate: float, power: float, start: float, end: float) -> float:
    """Return the norm at update ``end`` when every step is orthogonal: ``|theta| exp((integral of eta^2) / 2)``.

    With ``eta = rate / sqrt(t)`` it grows as ``t^(rate^2 / 2)``: as the square root of t for a rate of 1 alone.
    Arguments as of :func:`aligned_norm`.
    """
    return norm * math.exp(integrated_rate(rate**2, 2 * power, start, end) / 2)


def boundary(step_norm: float, *, updated: bool = False) -> float:
    """Return the product of theta and delta below which the norm shrinks: ``-|delta|^2 / 2``.

    Args:
        step_norm: of delta.
        updated: the product is that of the updated parameters, ``theta' . delta``; its boundary is ``|delta|^2 / 2``.
    """
    return math.copysign(step_norm**2 / 2, 1 if updated else -1)


def grows(product: float, step_norm: float) -> bool:
    """Return whether a step makes the norm larger, given ``theta . delta`` and ``|delta|``."""
    return product > boundary(step_norm)


def step_from_cosine(norm: float, next_norm: float, direction_cosine: float) -> tuple[float, float]:
    """Return the length of a step and its alignment from what two points show of themselves.

    ``|delta|^2 = rho'^2 + rho^2 - 2 rho rho' kappa`` and ``alpha = (rho' kappa - rho) / |delta|``, differences of
    almost equal numbers, good enough for digitised series; measure.parameters.step_between has the parameters.

    Args:
        norm, next_norm: rho and rho', of theta and theta'.
        direction_cosine: kappa, of theta and theta'.

    Raises:
        ValueError: no step has these numbers.
    """
    squared = (next_norm - norm) ** 2 + 2 * norm * next_norm * (1 - direction_cosine)
    if not squared > 0:
        raise ValueError(f"no step leads from norm {norm} to {next_norm} with a direction cosine of {direction_cosine}")
    return math.sqrt(squared), (next_norm * direction_cosine - norm) / math.sqrt(squared)


def decay_threshold(rate: float, rms_update: float, parameters: int, norm: float) -> float:
    """Return the weight decay above which AdamW makes the norm shrink, where its updates are orthogonal to theta.

    A step is ``-eta (u + lambda theta)`` with ``|u|^2 = n rms^2``, so the norm grows if and only if
    ``lambda < eta rms^2 n / (2 rho^2)``, lambda times eta being small: in the plane of both logarithms a diagonal.
    This estimate is ours, not the paper's.

    Args:
        rate: learning rate eta.
        rms_update: root mean square of the normalised update, at most about 1.
        parameters: their number n.
        norm: rho.
    """
    return rate * rms_update**2 * parameters / (2 * norm**2)
