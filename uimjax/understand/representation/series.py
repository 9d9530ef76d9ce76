"""How a representation changes over training: one line of numbers a checkpoint."""

from collections.abc import Iterable
from typing import Any

from uimjax.errors import UsageError
from uimjax.understand.representation import moments, similarity, spectrum
from uimjax.understand.representation.base import Features


def over_series(checkpoints: Iterable[tuple[int, Features]], centred: bool = False) -> list[dict[str, Any]]:
    """For each (step, features of the same rows): `step`, the numbers of its `Spectrum` (without the singular values),
    and `cka_to_last`, the unbiased CKA with the last checkpoint given. Features are `[N, d]`, or batches of them.

    They are read twice, so batches must come from a list or from an object whose iteration starts afresh. Memory is
    `O(d^2)` beside the features that the caller holds.

    Raises:
        UsageError: no checkpoints, or features that can be read once only. As `moments_of` and `cka`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(64, 3))
    >>> [(line["step"], round(line["cka_to_last"], 6)) for line in over_series([(0, 2 * x), (10, [x[:40], x[40:]])])]
    [(0, 1.0), (10, 1.0)]
    """
    held = list(checkpoints)
    if not held:
        raise UsageError("no checkpoints; at least one (step, features) was wanted")
    for step, features in held:
        if not hasattr(features, "shape") and iter(features) is features:
            raise UsageError(
                f"the features of step {step} can be read only once ({type(features).__name__}), and they are read "
                "twice: give an array, a list of batches, or an object whose __iter__ starts afresh"
            )
    return [_line(step, features, held[-1][1], centred) for step, features in held]


def _line(step: int, features: Features, last: Features, centred: bool) -> dict[str, Any]:
    numbers = spectrum.spectrum_of_moments(moments.moments_of(features), centred)._asdict()
    del numbers["singular_values"]
    return {"step": step, **numbers, "cka_to_last": similarity.cka(features, last)}
