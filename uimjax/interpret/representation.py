"""What representations explain: similarity of features, and representer points of the last layer.

Both read `task.features` and no gradient of the network. `rep_sim` is the plain baseline of similarity-based
explanations (Hanawa et al. 2021, arXiv 2006.04528); `representer` weighs the same inner products by how the last layer
was pulled by each training row (Yeh et al. 2018, arXiv 1811.09720).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uimjax import rows as row
from uimjax.errors import NonFiniteError, ShapeError, UimError, UnknownNameError, UsageError
from uimjax.interpret import base
from uimjax.interpret.base import Scores
from uimjax.task import RELATIVE, Task

SIMILARITIES = ("cosine", "dot", "l2")
STEPS = 5000  # of L-BFGS at most
STATIONARY = 1e-3  # the gradient that may be left, as a share of the L2 term's own

Layer = str | int | None


def rep_sim(
    task: Task,
    params: Any,
    data: Any,
    queries: Any,
    batch_size: int = 256,
    layer: Layer = None,
    similarity: Literal["cosine", "dot", "l2"] = "cosine",
) -> np.ndarray:
    """Similarity of each training row's representation h_i to each query's h_q, `[N, Q]`; larger = more alike:

        cosine   h_i . h_q / (|h_i| |h_q|), 0 where either is zero
        dot      h_i . h_q
        l2       -|h_i - h_q|^2

    `task.features` gives an array, which is flattened, or several (layers): a dict, tuple, list or any pytree of them.
    `layer` chooses one by name: the key of a dict, the position in a tuple or list (negative ones count from the
    end), `a/b` inside of both. One array alone needs no name. Of a tuple or list without a name the last is taken,
    which is the deepest as networks list them; a dict has no order (JAX sorts its keys), so there a name is needed.

    Of a contrast query `(failing, safe)`, two halves that each look like the training rows, the failing one
    is compared.

    *Guarantees*: each value depends on its row and its query alone; batches may be cut in any way.

    Raises:
        UsageError: no `task.features`, packed rows, or a dict of layers without `layer`. UnknownNameError: no such
            layer or similarity. ShapeError: features cannot be taken of these rows, or differ in length.
        NonFiniteError: parameters, rows or features are not finite.
    """
    if similarity not in SIMILARITIES:
        raise UnknownNameError("similarity", similarity, SIMILARITIES)
    represent = _representing(task, "rep_sim", layer)
    failing, _ = _halves(data, queries)
    _check(represent, params, data, {"queries": failing})
    asked, _ = _mapped(represent, None, params, failing, batch_size)
    program = _compared(represent, similarity)
    parts = [np.asarray(program(params, b.rows, asked))[b.mask] for b in row.batches(data, batch_size)]
    values = np.concatenate(parts)
    base.finite(jnp.asarray(values), "similarities of the representations")
    return values


def representer(
    task: Task, params: Any, data: Any, queries: Any, batch_size: int = 256, decay: float = 1e-3, layer: Layer = None
) -> Scores:
    """Representer values of the last layer, `[N, Q]`: each row's part in the loss of each query.

    The last layer z = W h is fitted again on the features h (softmax regression, no bias: append a 1 to the features
    for one) to the minimum of `1/N sum_i loss_i + decay |W|^2`. There, and only there, it is a sum over training rows:

        W = sum_i alpha_i h_i^T,     alpha_i = -(1 / (2 decay N)) dloss_i / dz_i

    so that row i adds `alpha_i (h_i . h_q)` to the logits of a query. With f_q = nll of the query's label and
    u_q = df_q / dz_q = softmax(z_q) - onehot(y_q), its part in f_q, to first order in z, is

        value_iq = (alpha_i . u_q) (h_i . h_q)

    Sign as everywhere (`uimjax.task`): positive = proponent, the row pushes the query's loss up. A row like the query
    with the same label has alpha_i along -u_q: negative, an opponent of the failure. It is the influence
    `-grad f^T H^-1 grad loss_i / N` of the last layer with the L2 term alone for H, `H = 2 decay I`.

    Of a contrast query `(failing, safe)`, two halves that each look like the training rows, f is the difference of the
    two halves' nll, and so is the value. `how` holds the decay, the steps, the gradient left, and the share of rows
    that the layer gets right. Features of all rows are held in memory, `[N, D]`.

    *Guarantees*: `sum_i value_iq = u_q . z_q`, up to `STATIONARY`.

    Raises:
        UsageError: the task lacks features, outputs (they say how many classes there are) or label, rows are packed,
            or decay is not above 0. ShapeError: outputs or labels are not those of one class a row. NonFiniteError:
            L-BFGS does not reach the stationary point. As `rep_sim` for layers, rows and features.
    """
    if not decay > 0:
        raise UsageError(f"decay={decay}: the representer theorem holds for an L2 penalty above 0")
    represent = _representing(task, "representer", layer)
    if task.label is None or task.outputs is None:
        raise UsageError(
            "representer fits a softmax over classes again: give the task outputs(params, example) -> logits [C] and "
            "label(example)"
        )
    failing, safe = _halves(data, queries)
    asked = {"queries": failing} if safe is None else {"queries": failing, "the queries' safe halves": safe}
    _check(represent, params, data, asked)
    classes = _classes(task, params, data)
    features, labels = _labelled(task, represent, params, data, batch_size, classes)
    halves = [_labelled(task, represent, params, half, batch_size, classes) for half in asked.values()]
    head = fit_head(features, labels, classes, decay)
    alpha = -_residuals(head.weights, features, labels) / (2 * decay * len(features))
    values = np.zeros((len(features), len(halves[0][0])))
    for sign, (h, y) in zip((1, -1), halves, strict=False):
        values += sign * (alpha @ _residuals(head.weights, h, y).T) * (features @ h.T)
    right = float(np.mean((features @ head.weights.T).argmax(1) == labels))
    how = {"decay": decay, "steps": head.steps, "gradient": head.gradient, "accuracy": right}
    return Scores(values, f"representer, decay {decay:g}", RELATIVE, how)


# ---------------------------------------------------------------- the last layer


class Head(NamedTuple):
    """`weights` `[C, D]` float64; `gradient`: the norm left, as a share of the L2 term's own; `steps` of L-BFGS."""

    weights: np.ndarray
    gradient: float
    steps: int


def fit_head(features: np.ndarray, labels: np.ndarray, classes: int, decay: float, weights: Any = None) -> Head:
    """Minimise `sum_i w_i nll(W h_i, y_i) / N + decay |W|^2` over W `[C, D]`, in float64, by L-BFGS; `weights` `[N]`,
    ones unless given. Strictly convex: one minimum, whatever the start.

    Raises:
        NonFiniteError: the gradient left is more than `STATIONARY` of the L2 term's own.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    with jax.enable_x64(True):  # in float32 the mean's rounding is as large as the gradient of a small L2 term
        arrays = [jnp.asarray(x, jnp.float64) for x in (features, weights)]
        start = jnp.zeros((classes, features.shape[1]), jnp.float64)
        found, left, steps = _fitted(
            *arrays, jnp.asarray(labels, jnp.int32), jnp.asarray(decay, jnp.float64), start, STEPS
        )
        head = Head(np.asarray(found), float(left), int(steps))
    if not head.gradient <= STATIONARY:
        raise NonFiniteError(
            f"the last layer is not at its stationary point: after {head.steps} steps of L-BFGS the gradient is "
            f"{head.gradient:.2g} of the L2 term's, at most {STATIONARY:g} was wanted. Representer values hold only "
            f"there: raise decay ({decay:g}), or scale the features to norms near 1."
        )
    return head


@jax.jit
def _fitted(features: Any, weights: Any, labels: Any, decay: Any, start: Any, most: Any) -> tuple[Any, Any, Any]:
    """(the weights, the gradient left as a share of `2 decay |W|`, steps: at most so many).

    Iterated is V with W = V L^-1, where L L^T bounds the curvature from above (Boehning 1992: a softmax's is at most
    1/2): as strongly curved in all directions, while W's own differ as the features' variances do.
    """
    covariance = (features * weights[:, None]).T @ features / (2 * features.shape[0])
    root = jnp.linalg.cholesky(covariance + 2 * decay * jnp.eye(features.shape[1], dtype=features.dtype))
    solve = functools.partial(jax.scipy.linalg.solve_triangular, root, lower=True)
    inside = solve(features.T).T

    def leave(v: Any) -> Any:
        return solve(v.T, trans=1).T

    def objective(v: Any) -> Any:
        logp = jax.nn.log_softmax(inside @ v.T)
        nll = -jnp.take_along_axis(logp, labels[:, None], 1)[:, 0]
        return jnp.sum(weights * nll) / features.shape[0] + decay * jnp.sum(jnp.square(leave(v)))

    solver = optax.lbfgs(memory_size=20)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def left(v: Any, gradient: Any) -> Any:
        size = jnp.linalg.norm(gradient @ root.T)  # of the gradient in W
        return jnp.where(size > 0, size / jnp.maximum(2 * decay * jnp.linalg.norm(leave(v)), 1e-300), 0.0)

    def step(carry: Any) -> Any:
        v, state, _, steps = carry
        value, gradient = value_and_grad(v, state=state)
        updates, state = solver.update(gradient, state, v, value=value, grad=gradient, value_fn=objective)
        v = optax.apply_updates(v, updates)
        return v, state, left(v, optax.tree.get(state, "grad")), steps + 1

    def unfinished(carry: Any) -> Any:
        _, _, share, steps = carry
        return (share > STATIONARY / 10) & (steps < most)

    begin = (start, solver.init(start), jnp.asarray(jnp.inf, start.dtype), jnp.asarray(0))
    v, _, _, steps = jax.lax.while_loop(unfinished, step, begin)
    return leave(v), left(v, jax.grad(objective)(v)), steps


def _residuals(weights: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`d nll / d z = softmax(z) - onehot(y)` `[B, C]`."""
    z = features @ weights.T
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(labels)), labels] -= 1
    return p


# ---------------------------------------------------------------- features and labels


def _representing(task: Task, method: str, layer: Layer) -> Callable[[Any, Any], Any]:
    """`(params, example) -> [D]`, the same function for the same choice, so that compiled programs are kept."""
    if task.features is None:
        raise UsageError(f"{method} compares representations: give the task features(params, example) -> [D]")
    if task.segments is not None:
        raise UsageError(
            f"{method} takes one document a row, and this task packs several (segments): pass the documents one by one "
            "with a task without segments"
        )
    return _flat(task.features, layer)


@functools.lru_cache(maxsize=32)
def _flat(features: Callable[[Any, Any], Any], layer: Layer) -> Callable[[Any, Any], Any]:
    def represent(params: Any, example: Any) -> Any:
        found = _picked(features(params, example), layer)
        return found.ravel().astype(jnp.promote_types(found.dtype, jnp.float32))

    return represent


def _picked(found: Any, layer: Layer) -> Any:
    """One array of what `features` returned."""
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]
    }
    arrays, ordered = list(named.values()), isinstance(found, Sequence)
    if layer is None and len(arrays) == 1:
        return arrays[0]
    if layer is None and ordered and arrays:
        return _picked(found[-1], None)
    if not arrays or list(named) == [""]:
        raise UsageError(
            f"features returns {'one array' if arrays else 'nothing'}, and no layers to choose {layer!r} from"
        )
    if layer is None:
        raise UsageError(
            f"features returns the layers {', '.join(named)}, in no order; choose one by its name, layer=..."
        )
    if isinstance(layer, int) and ordered and -len(arrays) <= layer < len(arrays):
        return arrays[layer]
    if str(layer) not in named:
        raise UnknownNameError("layer of features", str(layer), named)
    return named[str(layer)]


def _halves(data: Any, queries: Any) -> tuple[Any, Any]:
    """(the queries, or their failing half; the safe half or None). Rows may be tuples too, so a pair is a contrast
    only where it does not itself look like the training rows."""
    pair = type(queries) is tuple and len(queries) == 2
    if not pair or jax.tree.structure(queries) == jax.tree.structure(data):
        return queries, None
    return queries


def _check(represent: Callable[[Any, Any], Any], params: Any, data: Any, asked: dict[str, Any]) -> None:
    """Refuse bad parameters and rows, and features that cannot be compared, before anything is compiled."""
    row.check_finite(params, "parameters")
    sizes = {}
    for what, rows in {"training rows": data, **asked}.items():
        row.count(rows)
        row.check_finite(rows, what)
        try:
            sizes[what] = jax.eval_shape(represent, params, row.example_spec(rows)).shape[0]
        except UimError:
            raise
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape[1:])}", rows)
            raise ShapeError(
                f"task.features cannot be taken of one of the {what}, {shapes}: {error!r}. Queries are rows like the "
                "training rows, or a pair (failing, safe) of them."
            ) from error
    if len(set(sizes.values())) > 1:
        raise ShapeError(
            f"features differ in length: {sizes}. Let task.features return one vector [D] (say, the mean over tokens)."
        )


@functools.lru_cache(maxsize=32)
def _batched(represent: Callable[[Any, Any], Any], label: Callable[[Any], Any] | None):
    """Compiled `(params, rows) -> (features [B, D], labels [B] or 0)`."""

    def program(params: Any, rows: Any) -> Any:
        return jax.vmap(lambda r: (represent(params, r), 0 if label is None else label(r)))(rows)

    return jax.jit(program)


def _mapped(represent: Any, label: Any, params: Any, data: Any, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    program, parts = _batched(represent, label), []
    for batch in row.batches(data, min(batch_size, row.count(data))):
        parts.append([np.asarray(x)[batch.mask] for x in program(params, batch.rows)])
    features, labels = (np.concatenate(x) for x in zip(*parts, strict=True))
    base.finite(jnp.asarray(features), "representations")
    return features, labels


@functools.lru_cache(maxsize=32)
def _compared(represent: Callable[[Any, Any], Any], similarity: str):
    """Compiled `(params, rows, features [Q, D] of the queries) -> [B, Q]`."""

    def unit(x: Any) -> Any:
        return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-30)

    def program(params: Any, rows: Any, asked: Any) -> Any:
        found = jax.vmap(functools.partial(represent, params))(rows)
        if similarity == "l2":  # by differences: |a|^2 - 2ab + |b|^2 cancels where rows are alike
            return -jnp.square(found[:, None, :] - asked[None]).sum(-1)
        found, asked = (unit(found), unit(asked)) if similarity == "cosine" else (found, asked)
        return jnp.matmul(found, asked.T, precision="highest")

    return jax.jit(program)


def _classes(task: Task, params: Any, data: Any) -> int:
    shape = jax.eval_shape(task.outputs, params, row.example_spec(data)).shape  # type: ignore[arg-type]  # checked
    if len(shape) != 1:
        raise ShapeError(
            f"representer: outputs of one row have shape {list(shape)}; logits [C] of one class were wanted"
        )
    return shape[0]


def _labelled(
    task: Task, represent: Any, params: Any, data: Any, batch_size: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """(features `[N, D]` float64, labels `[N]`)."""
    features, labels = _mapped(represent, task.label, params, data, batch_size)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not (0 <= labels.min() <= labels.max() < classes):
        raise ShapeError(
            f"representer: labels are {labels.dtype}{list(labels.shape)} from {labels.min()} to {labels.max()}; one "
            f"class a row, integers [N] from 0 to {classes - 1}, was wanted"
        )
    return features.astype(np.float64), labels
