"""No curvature: H = I."""

from typing import Any

from uimjax.curvature.base import Curvature


def identity() -> Curvature:
    def solve(_inverse: Any, rows: Any, power: float = -1.0) -> Any:
        del power
        return rows

    same = lambda state, *_: state  # noqa: E731  # three times the same nothing
    return Curvature("identity", lambda _: None, same, lambda *_: (), same, same, solve)
