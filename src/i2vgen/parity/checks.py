"""Comparing what we compute with what was recorded: errors of several kinds, each beside its tolerance."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Check:
    """One comparison; `note` says what differs when a number cannot."""

    what: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def is_ok(self) -> bool:
        return self.error <= self.tolerance  # False for NaN

    @property
    def severity(self) -> float:
        """Error in units of the tolerance; infinite for NaN."""
        if math.isnan(self.error) or (self.tolerance == 0 and self.error > 0):
            return math.inf
        return self.error / self.tolerance if self.tolerance else 0.0


def worst(checks: Iterable[Check]) -> Check:
    """The check that is nearest to failing, or furthest beyond."""
    return max(checks, key=lambda check: check.severity)


def absolute(what: str, value: torch.Tensor, expected: torch.Tensor, tolerance: float) -> Check:
    """Largest absolute difference."""
    if difference := _cannot_compare(what, value, expected, tolerance):
        return difference
    return Check(what, (value.double() - expected.double()).abs().max().item(), tolerance)


def relative(what: str, value: torch.Tensor, expected: torch.Tensor, tolerance: float) -> Check:
    """L2 norm of the difference, relative to that of the recorded values."""
    if difference := _cannot_compare(what, value, expected, tolerance):
        return difference
    error, norm = (value.double() - expected.double()).norm(), expected.double().norm()
    return Check(what, (error / norm if norm > 0 else error).item(), tolerance)


def elementwise(
    what: str,
    value: torch.Tensor,
    expected: torch.Tensor,
    tolerance: float,
    allowance: torch.Tensor | None = None,
) -> Check:
    """Largest relative difference of any element; equal infinities are equal.

    Where the recorded value is 0 the difference itself counts. `allowance` is a factor on the tolerance by element.
    """
    if value.shape != expected.shape:
        return _shapes(what, value, expected, tolerance)
    value, expected = value.double(), expected.double()
    scale = torch.where(expected == 0, torch.ones_like(expected), expected.abs())
    error = torch.where(value == expected, torch.zeros_like(value), (value - expected).abs() / scale)
    if allowance is not None:
        error = error / allowance
    return Check(what, error.max().item() if error.numel() else 0.0, tolerance)


def equal(what: str, value: list, expected: list) -> Check:
    """Exact equality of numbers or names in lists."""
    if value == expected:
        return Check(what, 0.0, 0.0)
    if len(value) != len(expected):
        return Check(what, math.inf, 0.0, f"{what}: {len(value)} values, recorded {len(expected)}")
    index = next(i for i, (a, b) in enumerate(zip(value, expected, strict=True)) if a != b)
    return Check(what, math.inf, 0.0, f"{what}[{index}]: {value[index]}, recorded {expected[index]}")


def _cannot_compare(what: str, value: torch.Tensor, expected: torch.Tensor, tolerance: float) -> Check | None:
    if value.shape != expected.shape:
        return _shapes(what, value, expected, tolerance)
    for name, tensor in (("computed", value), ("recorded", expected)):
        if not torch.isfinite(tensor).all():
            return Check(what, math.nan, tolerance, f"{what}: {name} values are NaN or infinite")
    if value.numel() == 0:
        return Check(what, math.nan, tolerance, f"{what}: no values")
    return None


def _shapes(what: str, value: torch.Tensor, expected: torch.Tensor, tolerance: float) -> Check:
    note = f"{what}: shape {list(value.shape)}, recorded {list(expected.shape)}"
    return Check(what, math.inf, tolerance, note)
