"""Which per-example gradients a curvature is the second moment of.

- "fisher": those of labels that the model itself would give, the true Fisher matrix. Exact where the outputs are at
  most `EXACT` numbers, by a square root of the output Hessian, `J^T S (J^T S)^T` with `S S^T = diag(p) - p p^T` for a
  softmax (there it is the Gauss-Newton matrix as well: Martens 2020, arXiv 1412.1193); else from `samples` draws a row.
- "ggn": Gauss-Newton, `J^T (d^2 nll / d outputs^2) J`, exact; outputs of at most `EXACT` numbers.
- "empirical": those of the true labels. Cheapest; it vanishes where the model fits its data.
- "margin": of the margin log(p / (1 - p)) of the right class, of a sequence their sum (TRAK: Park et al. 2023, arXiv
  2303.14186).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.curvature import blocks
from uimjax.curvature.base import Source
from uimjax.curvature.blocks import Block, Laid
from uimjax.errors import MismatchError, ShapeError, UsageError
from uimjax.rows import count, example_spec
from uimjax.taps import Factors, Sites, capture, entries, sites
from uimjax.task import Task

EXACT = 16  # outputs an example, up to which the Fisher matrix is summed over all classes


class Gradients(NamedTuple):
    """The losses whose gradients count: `draws` of them a row, their blocks those of the task's loss."""

    laid: Laid
    draws: int
    plain: bool  # they are the task's loss itself

    def blocks(self, params: Any, rows: Any, ids: Any) -> list[Block]:
        """Of a batch `[B, ...]` with row ids `[B]`: B x `draws` gradients, row by row. Jittable."""
        return blocks.blocks(self.laid, factors(self.laid.sites, self.plain, params, rows, ids))


def factors(found: Sites, plain: bool, params: Any, rows: Any, ids: Any) -> Factors:
    return capture(found, params, rows)[1] if plain else entries(found, params, {"row": rows, "id": ids})[1]


def gradients(source: Source, task: Task, laid: Laid, params: Any, data: Any) -> Gradients:
    """The gradients of a source for a task; `laid` are the blocks of its loss, which they share.

    Raises:
        UsageError: the task lacks what the source needs. ShapeError: the outputs are too many, or of a strange shape.
        MismatchError: `nll` of `outputs` is not the `loss`.
    """
    if source.kind == "empirical":
        return Gradients(laid, 1, True)
    pseudo, draws = pseudo_losses(source, task, params, data)
    example = {"row": example_spec(data), "id": jax.ShapeDtypeStruct((), jnp.int32)}
    found, few = sites(pseudo, params, example, like=laid.sites), blocks.some(laid.sites, data, draws)
    made = jax.jit(factors, static_argnums=(0, 1))(found, False, params, few, np.arange(count(few)))
    return Gradients(blocks.lay_out(found, made, laid), draws, False)


def pseudo_losses(source: Source, task: Task, params: Any, data: Any) -> tuple[Task, int]:
    """(a task whose K losses have the gradients wanted, K). Raises as `gradients`."""
    if task.outputs is None:
        raise UsageError(
            f"the {source.kind} curvature needs the model's outputs: give the task outputs(params, example) -> logits, "
            "or take the true labels' gradients instead, Source('empirical')"
        )
    if task.segments is not None:
        raise UsageError(f"the {source.kind} curvature takes one document a row, and this task packs several")
    shape = jax.eval_shape(task.outputs, params, example_spec(data)).shape
    # a margin reads every position's label: a loss that leaves some out by an nll of its own is another one
    check_nll(
        dataclasses.replace(task, nll=None) if source.kind == "margin" and task.label else task, params, data, shape
    )
    if source.kind == "margin":
        if task.label is None or not shape:
            raise UsageError(
                f"a margin is of a class: give the task label(example) and logits [C] or [T, C], not {list(shape)}"
            )
        return dataclasses.replace(task, loss=_cached(_margin, task)), 1
    numbers = int(np.prod(shape))
    if numbers <= EXACT:
        return dataclasses.replace(task, loss=_cached(_roots, task)), numbers
    if source.kind == "ggn":
        raise ShapeError(
            f"outputs of shape {list(shape)}: the exact Gauss-Newton matrix is taken for at most {EXACT} numbers an "
            "example. For a softmax it is the Fisher matrix: Source('fisher') draws labels instead."
        )
    if task.nll is not None and task.sample is None:
        raise UsageError(
            f"outputs of shape {list(shape)} need labels drawn from the model, and only the task knows how its nll "
            "reads them: give it sample(key, outputs, example) -> example, or take Source('empirical')"
        )
    return dataclasses.replace(task, loss=_cached(_sampled, task, source.samples, source.seed)), source.samples


def nll_of(task: Task) -> Callable[[Any, Any], Any]:
    """The task's `nll(outputs, example)`, or the cross-entropy of its label."""
    if task.nll is not None:
        return task.nll
    if task.label is None:
        raise UsageError(
            "how do outputs become a loss? give the task nll(outputs, example), or label(example) for a softmax"
        )
    return _cached(_cross_entropy, task.label)


@functools.lru_cache(maxsize=64)
def _cached(make: Callable[..., Any], *choice: Any) -> Callable[..., Any]:
    return make(*choice)  # the same function for the same task, so that compiled programs are kept


def _cross_entropy(label: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def nll(outputs: Any, example: Any) -> Any:
        right = jnp.asarray(label(example))[..., None]
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), right, -1).sum()

    return nll


def check_nll(task: Task, params: Any, data: Any, shape: tuple[int, ...]) -> None:
    """On the first rows, `nll` of the `outputs` (of that shape) is the `loss`.

    Raises:
        ShapeError, MismatchError
    """
    if len(shape) not in (0, 1, 2):
        raise ShapeError(f"outputs of one example have shape {list(shape)}; logits [C] or [T, C] were wanted")
    if not shape and task.nll is None:
        raise ShapeError("outputs of one example are one number, no logits [C]: give the task nll(outputs, example)")
    loss, other = (np.asarray(x) for x in _cached(_both, task)(params, jax.tree.map(lambda x: x[:4], data)))
    if not np.allclose(loss, other, rtol=1e-3, atol=1e-4):
        what = "nll of the outputs" if task.nll is not None else "the softmax cross-entropy of the outputs"
        raise MismatchError(
            f"the first rows' losses are {loss.tolist()} and {what} {other.tolist()}. The curvature would be another "
            "loss's: give the task nll(outputs, example) with loss = nll of outputs, or Source('empirical')."
        )


def _both(task: Task) -> Callable[[Any, Any], Any]:
    """Compiled `(params, rows) -> (loss, nll of the outputs)` `[B]` each."""
    nll = nll_of(task)

    def one(params: Any, row: Any) -> Any:
        return jnp.sum(task.loss(params, row)), jnp.sum(nll(task.outputs(params, row), row))  # type: ignore[misc]

    return jax.jit(jax.vmap(one, (None, 0)))


def _roots(task: Task) -> Callable[[Any, Any], Any]:
    """`S^T z` `[K]` with `S S^T` the Hessian of `nll` in the outputs z, held fixed."""
    nll = nll_of(task)

    def losses(params: Any, example: Any) -> Any:
        z = task.outputs(params, example["row"])  # type: ignore[misc]  # checked above
        flat = jax.lax.stop_gradient(z.ravel())
        if task.nll is None and z.ndim == 1:  # diag(p) - p p^T = R R^T with R = diag(sqrt p) - p sqrt(p)^T
            p = jax.nn.softmax(flat)
            root = jnp.diag(jnp.sqrt(p)) - p[:, None] * jnp.sqrt(p)[None, :]
            return z.ravel() @ root
        values, vectors = jnp.linalg.eigh(jax.hessian(lambda f: jnp.sum(nll(f.reshape(z.shape), example["row"])))(flat))
        return z.ravel() @ (vectors * jnp.sqrt(jnp.maximum(values, 0))[None, :])

    return losses


def _sampled(task: Task, samples: int, seed: int) -> Callable[[Any, Any], Any]:
    """`[samples]` losses with the gradients of `nll` of labels drawn from the model, over the square root of their
    number; the draws follow from the seed and the row's id alone."""
    nll = nll_of(task)

    def drawn(key: Any, fixed: Any, row: Any, z: Any) -> Any:
        if task.sample is not None:
            return jnp.sum(nll(z, task.sample(key, fixed, row)))
        label = jax.random.categorical(key, fixed)
        return -jnp.take_along_axis(jax.nn.log_softmax(z), label[..., None], -1).sum()

    def losses(params: Any, example: Any) -> Any:
        z = task.outputs(params, example["row"])  # type: ignore[misc]  # checked above
        fixed = jax.lax.stop_gradient(z)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), example["id"]), samples)
        slope = jax.grad(lambda at, key: drawn(key, fixed, example["row"], at))
        slopes = jax.vmap(slope, (None, 0))(fixed, keys)  # at once: each loss apart would be K backward passes of K
        return jnp.tensordot(jax.lax.stop_gradient(slopes), z, z.ndim) / jnp.sqrt(jnp.asarray(samples, z.dtype))

    return losses


def _margin(task: Task) -> Callable[[Any, Any], Any]:
    def losses(params: Any, example: Any) -> Any:
        z = task.outputs(params, example["row"])  # type: ignore[misc]  # checked above
        label = jnp.asarray(task.label(example["row"]))[..., None]  # type: ignore[misc]  # checked above
        right = jnp.expand_dims(jnp.arange(z.shape[-1]), tuple(range(z.ndim - 1))) == label
        others = jax.scipy.special.logsumexp(jnp.where(right, -jnp.inf, z), axis=-1)
        return (jnp.where(right, z, 0).sum() - others.sum())[None]

    return losses
