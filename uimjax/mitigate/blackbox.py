"""Black-box tuning: CMA-ES over a few numbers, by queries alone, for models that answer and show no gradients.

- `search`: minimises what `ask` says of candidates `[P, d]` (Hansen's CMA-ES by the library `cmaes`).
- `prompt`: BBT's soft prompt `p0 + A z` of d numbers, entries of A drawn from N(0, alpha std / (sqrt(d) sigma)), std
  that of the embeddings (Sun et al. 2022, arXiv 2201.03514).
- `affine`: logits `[N, C]` times exp(s) plus b, s and b `[C]` each: all that can be done to answers alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import logsumexp

from uimjax.errors import NonFiniteError, ShapeError, UsageError
from uimjax.progress import Progress, quiet


@dataclass(frozen=True)
class Search:
    """Defaults are BBT's. `queries`: candidates that are asked about, in generations of `population`; the last one is
    not begun if it would exceed them. `sigma`: standard deviation of the first generation around 0."""

    queries: int = 8000
    population: int = 20
    sigma: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.population < 4 or self.queries < self.population or not self.sigma > 0:
            raise UsageError(f"a population of 4 and more, as many queries, and sigma above 0 were wanted: {self}")


class Found(NamedTuple):
    """`z` `[d]`: the best candidate of all that were asked about, and its `value`; `queries` `[G]` and `curve` `[G]`:
    how many had been asked after each generation, and the best value until then."""

    z: np.ndarray
    value: float
    queries: np.ndarray
    curve: np.ndarray


def search(
    ask: Callable[[np.ndarray], Any], size: int, how: Search = Search(), progress: Progress = quiet
) -> Found:  # fmt: skip
    """Minimise over z `[size]`, from 0. `ask`: candidates `[P, size]` -> values `[P]`; 0 itself is the first query.

    Raises:
        UsageError: no number to search over, or the extra is not installed. ShapeError, NonFiniteError: of a value.
    """
    if size < 1:
        raise UsageError(f"{size} numbers to search over; at least 1 was wanted")
    try:
        from cmaes import CMA
    except ImportError as error:
        raise UsageError("black-box tuning takes cmaes: pip install 'uimjax[search]'") from error
    made = CMA(np.zeros(size), how.sigma, seed=how.seed, population_size=how.population)
    z = np.zeros(size)
    value = float(_asked(ask, z[None])[0])
    queries, curve, spent = [1], [value], 1
    for _ in progress(range((how.queries - 1) // how.population), "asking the black box", unit="generations"):
        candidates = np.stack([made.ask() for _ in range(how.population)])
        values = _asked(ask, candidates)
        made.tell(list(zip(candidates, values.tolist(), strict=True)))
        spent, best = spent + len(values), int(values.argmin())
        if values[best] < value:
            z, value = candidates[best], float(values[best])
        queries.append(spent)
        curve.append(value)
        if made.should_stop():  # it has converged: further candidates would be the same
            break
    return Found(z, value, np.asarray(queries), np.asarray(curve))


def _asked(ask: Callable[[np.ndarray], Any], candidates: np.ndarray) -> np.ndarray:
    values = np.asarray(ask(candidates), np.float64)
    if values.shape != (len(candidates),):
        raise ShapeError(f"{len(candidates)} candidates got values of shape {list(values.shape)}; one each was wanted")
    if not np.isfinite(values).all():
        raise NonFiniteError(
            f"the black box says {values[~np.isfinite(values)][0]} of a candidate; clip it, or penalise"
        )
    return values


def prompt(
    embedding: np.ndarray, tokens: int = 50, size: int = 500, alpha: float = 1.0, sigma: float = 1.0, seed: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
    """`z [..., size] -> prompts [..., tokens, D]` around embeddings of `tokens` words drawn from `embedding` `[V, D]`.

    Raises:
        ShapeError, NonFiniteError. UsageError: tokens, size, alpha or sigma not above 0.
    """
    embedding = np.asarray(embedding, np.float64)
    if embedding.ndim != 2 or 0 in embedding.shape:
        raise ShapeError(f"an embedding {list(embedding.shape)} arrived; [V, D] was wanted")
    if not np.isfinite(embedding).all():
        raise NonFiniteError("the embedding holds NaN or infinity")
    if not min(tokens, size, alpha, sigma) > 0:
        raise UsageError(f"tokens={tokens}, size={size}, alpha={alpha}, sigma={sigma}: each above 0 was wanted")
    rng = np.random.default_rng(seed)
    begin = embedding[rng.integers(len(embedding), size=tokens)]
    spread = alpha * embedding.std() / (np.sqrt(size) * sigma)
    matrix = rng.normal(0, spread, (size, tokens * embedding.shape[1]))
    return lambda z: begin + (np.asarray(z) @ matrix).reshape(*np.shape(z)[:-1], *begin.shape)


def affine(
    logits: np.ndarray, labels: np.ndarray, spread: float = 1.0
) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:  # fmt: skip
    """(size of z, `ask`): the mean cross-entropy, nats, of `apply_affine(logits, z)` for each candidate, and beside it
    `|z|^2 / (2 N spread^2)`: z is then the likeliest under a normal prior, without which a few rows that are told
    apart at once drive the scale away.

    Raises:
        ShapeError, NonFiniteError. UsageError: a spread not above 0.
    """
    if not spread > 0:
        raise UsageError(f"spread={spread} arrived; above 0 was wanted")
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ShapeError(f"logits {list(logits.shape)} and labels {list(labels.shape)} arrived; [N, C] and [N] fit")
    if not np.isfinite(logits).all():
        raise NonFiniteError("the logits hold NaN or infinity")

    def ask(candidates: np.ndarray) -> np.ndarray:
        found = []
        for z in candidates:
            made = apply_affine(logits, z)
            nll = np.mean(logsumexp(made, 1) - made[np.arange(len(labels)), labels])
            found.append(nll + np.sum(np.square(z)) / (2 * len(labels) * spread**2))
        return np.asarray(found)

    return 2 * logits.shape[1], ask


def apply_affine(logits: np.ndarray, z: np.ndarray) -> np.ndarray:
    """`logits exp(s) + b`, z = (s, b)."""
    scale, shift = np.split(np.asarray(z, np.float64), 2)
    return np.asarray(logits, np.float64) * np.exp(scale) + shift
