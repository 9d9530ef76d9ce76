"""K-FAC, EK-FAC and the diagonal: measured on factors in one or two passes, solved in their own basis.

Over N examples (B batches of any size, in any order) with the gradients of a `Source`:

- K-FAC (Martens & Grosse 2015, arXiv 1503.05671): `H = A (x) C / (positions N)`, one pass;
- EK-FAC (George et al. 2018, arXiv 1806.03884): the same eigenvectors, and the measured second moments in them for
  eigenvalues, `L = 1/N sum_b (Q_A^T G_b Q_C)^2`, two passes;
- diagonal: the second moments of the parameters themselves, one pass.

*Guarantees*: sums over examples, so batches may be split, ordered and padded in any way; EK-FAC has the trace of the
matrix it stands for, whatever the parameter's uses.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.curvature import statistics
from uimjax.curvature.blocks import shapes
from uimjax.curvature.rotated import Rotated
from uimjax.curvature.source import Gradients, Source
from uimjax.errors import NonFiniteError, UnknownNameError, UsageError
from uimjax.rows import Batch

KINDS = ("ekfac", "kfac", "diagonal")


@dataclass(frozen=True)
class Kronecker:
    """A choice. `damping` times the mean eigenvalue is added to every eigenvalue (None: by the rule of `damping.py`).

    `terms`: 0 scores exactly; R > 0 takes `1 / (L + damping)` as R outer products where gradients have rank one
    (`separable.py`): many times as fast for many queries, the strongest rows of each query scored exactly afterwards,
    and the error measured and given with the scores.

    `query_rank`: 0 holds the queries' directions whole, a chunk of them at a time; r > 0 holds r singular pairs of each
    matrix that is at least four times as large as they are, so that more queries share a pass over the rows. What is
    lost is given with the scores; the queries' mean is one direction, and stays whole.
    """

    kind: Literal["ekfac", "kfac", "diagonal"] = "ekfac"
    source: Source = Source()
    damping: float | None = None
    terms: int = 0
    query_rank: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UnknownNameError("Kronecker curvature", self.kind, KINDS)
        if self.damping is not None and not self.damping > 0:
            raise UsageError(f"damping {self.damping} should be above 0, or None for the rule")
        if self.terms < 0:
            raise UsageError(f"{self.terms} terms; 0 (exact) or more were wanted")
        if self.query_rank < 0:
            raise UsageError(f"query_rank {self.query_rank}; 0 (whole directions) or more was wanted")
        if self.terms and self.query_rank:
            raise UsageError(
                f"terms={self.terms} scores the strongest rows again exactly, and query_rank={self.query_rank} keeps "
                "no exact directions: take one of them"
            )

    def __str__(self) -> str:
        return f"{self.kind}({self.source.kind})"


class Kept(Protocol):
    """Where a pass keeps its sums: `load(like)` gives (batches that are done, their sums), at first (0, None)."""

    def load(self, like: Any) -> tuple[int, Any]: ...

    def save(self, done: int, total: Any, last: bool) -> None: ...


class Sums(NamedTuple):
    """What a pass adds up: arrays by parameter, and the number of examples."""

    sums: Any
    examples: int


def measure(
    choice: Kronecker, made: Gradients, params: Any, batches: Callable[[], Iterable[Batch]],
    kept: Callable[..., Kept | None] = lambda *_: None,
) -> Rotated:  # fmt: skip
    """The undamped curvature of the rows that `batches()` gives, once for each pass; `kept(name, bases)`:
    where a pass keeps its sums.

    Raises:
        NonFiniteError: a statistic is NaN or infinite, or there are no rows.
    """
    bases: dict[str, Any] = dict.fromkeys(shapes(made.laid), (None, None))
    found = None
    if choice.kind != "diagonal":
        found = run_pass("covariances", made, params, batches, None, kept("covariances", None))
        bases = statistics.eigenbases(found.sums)
    if choice.kind == "kfac":
        assert found is not None
        return Rotated(bases, kfac_values(found, bases), dict.fromkeys(bases, 0.0))
    measured = run_pass("eigenvalues", made, params, batches, bases, kept("eigenvalues", bases))
    return Rotated(bases, eigenvalues(measured), dict.fromkeys(bases, 0.0))


def run_pass(
    what: str, made: Gradients, params: Any, batches: Callable[[], Iterable[Batch]], bases: Any,
    kept: Kept | None = None,
) -> Sums:  # fmt: skip
    """One pass over the rows; sums in float32 at least, checked. With `kept` it goes on where it was stopped, to the
    same bits."""
    program, total, examples, done, number = _pass(made, what), None, 0, 0, 0
    for number, batch in enumerate(batches(), 1):
        given = params, batch.rows, np.maximum(batch.ids, 0), batch.mask, bases
        if number == 1:  # from zeros: a first batch with nothing to add to would be a program of its own
            like = jax.eval_shape(program, *given, None)
            done, total = (0, None) if kept is None else kept.load(like)
            total = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like) if total is None else total
        examples += int(batch.mask.sum())
        if number <= done:
            continue
        total = program(*given, total)
        jax.block_until_ready(total)  # or, on a CPU, all batches stand in memory at once
        if kept is not None:
            kept.save(number, total, last=False)
    if kept is not None and number > done:
        kept.save(number, total, last=True)
    if not examples:
        raise NonFiniteError("a curvature of no rows was asked for")
    for path, fine in jax.tree_util.tree_flatten_with_path(_finite(total))[0]:
        if not bool(fine):
            raise NonFiniteError(
                f"the {what} of {jax.tree_util.keystr(path[:1], simple=True)} are not finite: a gradient overflows or "
                "is NaN. Look for the row with `uj.gradient_norms`."
            )
    return Sums(total, examples)


@functools.lru_cache(maxsize=32)
def _pass(made: Gradients, what: str):
    """Compiled `(params, rows, ids, mask, bases, total or None) -> total`."""

    def program(params: Any, rows: Any, ids: Any, mask: Any, bases: Any, total: Any) -> Any:
        found, mask = made.blocks(params, rows, ids), jnp.repeat(mask, made.draws)
        covariances = what == "covariances"
        sums = statistics.covariances(found, mask) if covariances else statistics.eigenvalues(found, bases, mask)
        return sums if total is None else jax.tree.map(jnp.add, total, sums)

    return jax.jit(program, donate_argnums=(5,))


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), tree)


def eigenvalues(measured: Sums) -> dict[str, Any]:
    return _over(measured.sums, measured.examples)


@jax.jit
def _over(sums: Any, count: Any) -> Any:
    return jax.tree.map(lambda x: x / count, sums)


def kfac_values(measured: Sums, bases: dict[str, Any]) -> dict[str, Any]:
    """`(Q_A^T A Q_A)_i (Q_C^T C Q_C)_o / (positions N)`.

    Raises:
        NonFiniteError: an eigenvalue below zero by more than rounding.
    """
    out = {}
    for path, its in measured.sums.items():
        rows, cols = (_diagonal(side, q, path) for side, q in zip(its[:2], bases[path], strict=True))
        scale = np.maximum(np.asarray(its.positions, np.float64), 1.0)[:, None, None] * measured.examples
        out[path] = jnp.asarray(rows[:, :, None] * cols[:, None, :] / scale, jnp.float32)
    return out


def _diagonal(side: Any, basis: Any, path: str) -> np.ndarray:
    wide = np.asarray(side, np.float64)
    if basis is None:
        return wide
    q = np.asarray(basis, np.float64)
    found = np.einsum("nji,njk,nki->ni", q, wide, q, optimize=True)
    if (found < -1e-4 * np.abs(found).max()).any():
        raise NonFiniteError(f"a covariance of {path} has the eigenvalue {found.min():.3g}; a sum of squares has none")
    return np.maximum(found, 0.0)
