"""Norms of per-example gradients in the step's own backward pass, and what they say of the batch size."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax import factors as algebra
from uimjax import rows as row
from uimjax.curvature.source import nll_of
from uimjax.errors import CoverageError, ShapeError, UsageError
from uimjax.taps import Sites, check_budget, layouts, sites
from uimjax.taps.captures import assemble, forward
from uimjax.task import Task
from uimjax.understand.dynamics.collector import turns

DECAY = 0.995  # nanoGNS's


class Graded(NamedTuple):
    """`gradient`: of the weighted mean loss, as the parameters; `losses` `[B]` nats; `norms` `[B]`: of each example's
    own gradient over all parameters, unweighted; `outputs` `[B, ...]` of the same pass, where asked for."""

    gradient: Any
    losses: Any
    norms: Any
    outputs: Any = None


def graded(task: Task, params: Any, rows: Any, weights: Any = None, outputs: bool = False) -> Graded:
    """One backward pass that gives the batch gradient and each example's gradient norm (GraNd, arXiv 2107.07075).

    `gradient = sum_b w_b grad_b / sum_b w_b`, `weights` `[B]` (ones unless given; 0 is padding). Pure: call it inside a
    jitted step in the place of `jax.value_and_grad`. Norms come from Gram matrices or from gradients that the sum needs
    as well, whichever is cheaper for each parameter. `outputs` asks for the task's too (then `loss` must be `nll` of
    them, which `curvature.source.check_nll` proves).

    Raises:
        CoverageError: the task attributes a part of its parameters, so that no step could be made of the gradient.
        UsageError: packed rows. TapError and its children: the loss cannot be followed.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    weights = jnp.ones(count) if weights is None else weights
    total = jnp.sum(weights)
    return _passed(task, params, rows, weights / jnp.where(total > 0, total, 1), outputs)


def clipped(task: Task, params: Any, rows: Any, mask: Any, most: Any) -> Graded:
    """As `graded`, with `gradient = sum_b m_b min(1, most / norm_b) grad_b`, `mask` `[B]`: the sum that DP-SGD takes
    (arXiv 1607.00133), of one backward pass. Raises as that."""
    return _passed(task, params, rows, lambda norms: mask * jnp.minimum(1.0, most / jnp.maximum(norms, 1e-30)), False)


def _passed(task: Task, params: Any, rows: Any, weights: Any, outputs: bool) -> Graded:
    """`gradient = sum_b w_b grad_b`; `weights`: `[B]`, or a function of the norms."""
    if task.segments is not None:
        raise UsageError("packed rows have several examples each: unpack them, or collect without grand")
    followed = _with_outputs(task) if outputs else task
    found = sites(followed, params, row.example_spec(rows))
    _check_whole(task, found, params)
    count = jax.tree.leaves(rows)[0].shape[0]
    check_budget(found, count)
    made, records, pull = forward(found, params, rows)  # [B], [B, T], or the loss with the outputs behind it
    made = made.reshape(count, -1)
    head = 1 if outputs else made.shape[1]
    ones = jnp.broadcast_to((jnp.arange(made.shape[1]) < head).astype(made.dtype), made.shape)
    spec = found.program.out_avals[0].shape
    factors = assemble(found, params, records, pull(ones.reshape(count, *spec)), layouts.factor)
    losses = made[:, :head].sum(1)
    norms, summed = algebra.norms_and_sum(found, factors, weights)
    named, tree = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") or "params" for path, _ in named]
    gradient = [summed.get(p, jnp.zeros_like(leaf)) for p, (_, leaf) in zip(paths, named, strict=True)]
    gradient = [g.astype(leaf.dtype) for g, (_, leaf) in zip(gradient, named, strict=True)]
    if not outputs:
        return Graded(jax.tree.unflatten(tree, gradient), losses, norms)
    shape = jax.eval_shape(lambda p, r: task.outputs(p, r), params, row.example_spec(rows)).shape  # type: ignore[misc]
    return Graded(jax.tree.unflatten(tree, gradient), losses, norms, made[:, 1:].reshape(count, *shape))


@functools.lru_cache(maxsize=32)
def _with_outputs(task: Task) -> Task:
    """The loss with its outputs behind it, `[1 + ...]`: only the first is pulled back, so that one pass gives both."""
    nll = nll_of(task)

    def loss(params: Any, example: Any) -> Any:
        made = task.outputs(params, example)  # type: ignore[misc]  # checked by the caller
        value = jnp.sum(nll(made, example))
        return jnp.concatenate([value[None], made.reshape(-1).astype(value.dtype)])

    return Task(loss)


def _check_whole(task: Task, found: Sites, params: Any) -> None:
    if tuple(task.include) != ("*",) or task.exclude:
        raise CoverageError(f"the task attributes {found.coverage:.1%} of its parameters: train with include=('*',)")
    odd = [leaf for leaf in jax.tree.leaves(params) if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)]
    if odd:
        raise UsageError(
            "parameters that are no floats have no gradient: keep them out of params, in the task's closure"
        )


class Noise(NamedTuple):
    """Running estimates for the gradient noise scale: of tr(Sigma), of |G|^2, and the weight of both."""

    trace: Any
    square: Any
    weight: Any


def noise_init() -> Noise:
    return Noise(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


def noise_update(noise: Noise, small: Any, big: Any, sizes: tuple[Any, Any], decay: float = DECAY) -> Noise:
    """After a step with squared gradient norms `small` and `big` of batches of b < B examples (McCandlish et al. 2018,
    arXiv 1812.06162, appendix A):

        |G|^2 = (B big - b small) / (B - b),      tr(Sigma) = (small - big) / (1 / b - 1 / B).

    Each has a running mean of its own, and their ratio is taken at the end: the mean of ratios is biased. With the
    norms of examples b = 1, and `small` is their mean square. A step of B <= b (a last batch of one example) tells
    nothing, and leaves the estimate as it is.
    """
    b, big_b = (jnp.asarray(size, jnp.float32) for size in sizes)
    told = big_b > b
    big_b = jnp.where(told, big_b, b + 1)
    square = (big_b * big - b * small) / (big_b - b)
    trace = (small - big) / (1 / b - 1 / big_b)
    kept = lambda old, new: jnp.where(told, decay * old + (1 - decay) * new, old)  # noqa: E731  # one line, used thrice
    return Noise(kept(noise.trace, trace), kept(noise.square, square), kept(noise.weight, 1.0))


def noise_scale(noise: Noise) -> dict[str, float]:
    """`simple` = tr(Sigma) / |G|^2, the batch size at which noise and signal are alike, and both estimates. NaN before
    the first step, and where |G|^2 is estimated as 0 or less."""
    weight = float(noise.weight)
    if weight == 0:
        return dict.fromkeys(("simple", "trace", "square"), float("nan"))
    trace, square = float(noise.trace) / weight, float(noise.square) / weight
    return {"simple": trace / square if square > 0 else float("nan"), "trace": trace, "square": square}


class Variance(NamedTuple):
    """VoG's state: how often each example was met `[N]`, and the mean and squared deviations of its input gradients
    `[N, P]`."""

    met: Any
    mean: Any
    spread: Any


def vog_init(count: int, size: int, dtype: Any = jnp.float32) -> Variance:
    """For `count` examples with `size` input numbers each."""
    return Variance(jnp.zeros(count, jnp.int32), jnp.zeros((count, size), dtype), jnp.zeros((count, size), dtype))


def vog_update(state: Variance, ids: Any, gradients: Any) -> Variance:
    """After one more checkpoint of the examples `ids` `[B]` with input gradients `[B, ...]`. Ids outside 0..N-1 are
    padding, and left out; one that stands several times in the batch counts as often, in its order."""
    count, new = len(state.met), gradients.reshape(len(ids), -1).astype(state.mean.dtype)
    place = jnp.where((ids >= 0) & (ids < count), ids, count).astype(jnp.int32)
    turn = turns(place)
    last = jnp.max(jnp.where(place < count, turn, 0))

    def round_(carry: tuple[Any, Variance]) -> tuple[Any, Variance]:
        number, now = carry
        here = jnp.where(turn == number, place, count)
        at = jnp.minimum(here, count - 1)
        met, mean = now.met[at] + 1, now.mean[at]
        moved = mean + (new - mean) / met[:, None].astype(new.dtype)
        return number + 1, Variance(
            now.met.at[here].set(met, mode="drop"), now.mean.at[here].set(moved, mode="drop"),
            now.spread.at[here].add((new - mean) * (new - moved), mode="drop"),
        )  # fmt: skip

    return jax.lax.while_loop(lambda carry: carry[0] <= last, round_, (jnp.int32(0), state))[1]


def vog_finish(state: Variance, labels: Any = None) -> Any:
    """Variance of gradients `[N]` (Agarwal et al. 2022, arXiv 2008.11600): the mean over inputs of the standard
    deviation over checkpoints; with `labels` `[N]` as z-scores within each class. NaN: never met."""
    met = np.asarray(state.met)
    raw = np.sqrt(np.asarray(state.spread, np.float64) / np.maximum(met, 1)[:, None]).mean(1)
    raw = np.where(met > 0, raw, np.nan)
    if labels is None:
        return raw
    if np.shape(labels) != raw.shape:
        raise ShapeError(f"labels {list(np.shape(labels))} arrived for {len(raw)} examples; one each was wanted")
    found = np.full(len(raw), np.nan)
    for label in np.unique(labels):
        here = np.asarray(labels) == label
        spread = np.nanstd(raw[here])
        found[here] = (raw[here] - np.nanmean(raw[here])) / (spread if spread > 0 else 1.0)
    return found


def input_gradients(
    outputs: Callable[[Any, Any], Any], params: Any, inputs: Any, labels: Any, probabilities: bool = False
) -> Any:
    """Gradients `[B, ...]` of the label's logit in the inputs `[B, ...]`, as the paper defines VoG; of its probability
    with `probabilities`, as the authors' toy script does. `outputs(params, input) -> [C]`."""

    def one(x: Any, label: Any) -> Any:
        logits = outputs(params, x)
        return (jax.nn.softmax(logits) if probabilities else logits)[label]

    return jax.vmap(jax.grad(one))(inputs, labels)
