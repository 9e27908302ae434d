"""Numbers as people read them in the report."""

from __future__ import annotations

NOTHING = "\N{EN DASH}"


def percent(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f}%"


def points(value: float | None) -> str:
    return NOTHING if value is None else signed(100 * value, 1)


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
