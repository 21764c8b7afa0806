"""Quantiles of Student's t distribution: how many estimated standard errors an interval reaches from a mean."""

from __future__ import annotations


def critical_t(freedom: int, confidence: float = 0.95) -> float:
    """The two-sided critical value of Student's t.

    Args:
        freedom: degrees of freedom, at least 1.
        confidence: in (0, 1).
    """
    from scipy.special import stdtrit  # takes half a second to load

    return float(stdtrit(freedom, 0.5 + confidence / 2))
