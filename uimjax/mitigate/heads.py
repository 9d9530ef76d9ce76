"""Head tuning: a new head on frozen features `[N, D]`, of a model that is given or only asked for them.

Heads: "linear", logits = F W + b, and "mlp", the residual one of NMTune, Z = F + s relu(BN(F W1 + b1)) W2 + b2 with s
learned from 1, logits = Z W + b. The loss is the mean over a batch of w_i CE_i, and on top of it

- NMTune (Chen et al. 2024, arXiv 2309.17002), Z those of the second view and F the first's:
  `mse |Z / |Z| - F / |F||^2 / (B D) + cov sum_{i != j} C_ij^2 / D - svd mean_{k <= top} sigma_k / sum sigma`, C the
  covariance of Z and sigma its singular values, not centred. The released code takes (1, .04, .001) and top 5, the
  paper one weight of .01 and sigma_1: `NMTune()`, `NMTune.paper()`;
- SKD (NeurIPS 2025), of Z and the logits: `skew |mean_j |skew_j(Z)| - s| + kurt |mean_j kurt_j(Z) - k| + disagree
  mean max(0, 1 - (z_y - mean_{c != y} z_c))`, skew_j and (excess) kurt_j of feature j over the batch, s and k what a
  model that saw no noise has: both fall with noise in pretraining. Without a clean model to read them off, `LIFTED`
  times those of F;
- `adjust` tau: CE of z + tau log pi, pi the classes' shares (Menon et al. 2021, arXiv 2007.07314);
- `robust` eta: groups weighted by q_g, q_g <- q_g exp(eta loss_g) / sum (group DRO: Sagawa et al. 2020, arXiv
  1911.08731);
- weights of rows, as `jtt` gives them: rows that a first head gets wrong count `upweight` times (Liu et al. 2021, arXiv
  2107.09044).
"""

import functools
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uimjax.errors import DataError, NonFiniteError, ShapeError, UnknownNameError, UsageError

EPSILON, MEMORY = 1e-5, 0.9  # of batch norm
KINDS = ("linear", "mlp")
LIFTED = 1.5  # skewness and kurtosis that SKD aims at, by those of the features


@dataclass(frozen=True)
class NMTune:
    mse: float = 1.0
    cov: float = 0.04
    svd: float = 0.001
    top: int = 5

    @classmethod
    def paper(cls) -> "NMTune":
        return cls(0.01, 0.01, 0.01, 1)


@dataclass(frozen=True)
class SKD:
    """`skew_to`, `kurt_to`: of a clean model's features (None: `LIFTED` times those of the features that arrive)."""

    skew: float = 0.1
    kurt: float = 1.0
    disagree: float = 0.1
    skew_to: float | None = None
    kurt_to: float | None = None


@dataclass(frozen=True)
class Tuning:
    """How to tune: AdamW over so many epochs of whole batches (a last one that is short is left out). `ratio`: hidden
    units of the MLP by features. Defaults are NMTune's."""

    head: Literal["linear", "mlp"] = "linear"
    penalty: NMTune | SKD | None = None
    adjust: float = 0.0
    robust: float = 0.0
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    ratio: float = 4.0
    seed: int = 0

    def __post_init__(self):
        if self.head not in KINDS:
            raise UnknownNameError("head", self.head, KINDS)
        if self.penalty is not None and self.head != "mlp":
            raise UsageError("NMTune and SKD move features, and a linear head leaves them as they are; take head='mlp'")
        if min(self.epochs, self.batch_size) < 1 or not min(self.learning_rate, self.ratio) > 0:
            raise UsageError(f"epochs, batch_size, learning_rate and ratio should be positive: {self}")
        if min(self.adjust, self.robust, self.weight_decay) < 0:
            raise UsageError(f"adjust, robust and weight_decay should be 0 or more: {self}")


class Tuned(NamedTuple):
    """A head: its `params`, the batch norm's running `stats`, and what it was made by. `loss` `[E]`: mean CE of each
    epoch's batches; `held` `[E]`: accuracy on what was held out (NaN: nothing), of which the best epoch's head is kept;
    `groups` `[G]`: the robust weights at the end."""

    params: Any
    stats: Any
    how: Tuning
    loss: np.ndarray
    held: np.ndarray
    groups: np.ndarray


def tune(
    features: np.ndarray, labels: np.ndarray, how: Tuning = Tuning(), *, classes: int | None = None,
    views: np.ndarray | None = None, groups: np.ndarray | None = None, weights: np.ndarray | None = None,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
) -> Tuned:  # fmt: skip
    """Train a head on features `[N, D]` and labels `[N]`. `views` `[N, D]`: features of a second view of each row,
    which then goes through the head (default: the same); `groups` `[N]`: numbers from 0, for `robust`; `weights` `[N]`.

    Raises:
        ShapeError, NonFiniteError. DataError: a label out of range. UsageError: `robust` without groups, or fewer rows
            than a batch of two.
    """
    classes = int(np.max(labels, initial=0)) + 1 if classes is None else classes
    features, labels = checked(features, labels, classes)
    count, how = len(labels), _aimed(how, features)
    views = features if views is None else checked(views, labels, classes)[0]
    weights = np.ones(count, np.float32) if weights is None else np.asarray(weights, np.float32)
    if (how.robust > 0) != (groups is not None):
        raise UsageError(f"robust={how.robust} and groups={'None' if groups is None else '[N]'} belong together")
    groups = np.zeros(count, np.int32) if groups is None else np.asarray(groups, np.int32)
    for name, values in (("views", views), ("weights", weights), ("groups", groups)):
        if len(values) != count or (name == "groups" and values.min() < 0):
            raise ShapeError(f"{name} of {len(values)} rows arrived for {count}; one each was wanted")
    size = min(how.batch_size, count)
    if size < 2:
        raise UsageError(f"{count} rows arrived; two and more were wanted")
    log_shares = jnp.log(jnp.maximum(jnp.bincount(jnp.asarray(labels), length=classes) / count, 1e-12))
    rows = _Rows(*map(jnp.asarray, (features, views, labels, weights, groups)))
    state, key = _begin(how, features.shape[1], classes, int(groups.max()) + 1), jax.random.key(how.seed)
    program, loss, held, best = _epoch(how, size), np.zeros(how.epochs), np.full(how.epochs, np.nan), state
    for epoch in range(how.epochs):
        state, loss[epoch] = program(state, rows, log_shares, key, epoch)
        if not np.isfinite(loss[epoch]):
            raise NonFiniteError(f"the head diverged in epoch {epoch}; lower its learning rate ({how.learning_rate})")
        if held_out is not None:
            held[epoch] = accuracy(Tuned(state.params, state.stats, how, loss, held, state.groups), *held_out)
        if held_out is None or held[epoch] >= np.nanmax(held):
            best = state
    return Tuned(best.params, best.stats, how, loss, held, np.asarray(state.groups))


def jtt(
    features: np.ndarray,
    labels: np.ndarray,
    how: Tuning = Tuning(),
    first: int = 5,
    upweight: float = 20.0,
    **more: Any,
) -> tuple[Tuned, np.ndarray]:
    """(the second head, the rows `[K]` that the first one, of `first` epochs, got wrong). `more`: as `tune` takes it.

    Raises:
        UsageError: `upweight` below 1, or the first head errs nowhere. As `tune`.
    """
    if not upweight >= 1:
        raise UsageError(f"upweight={upweight} arrived; 1 or more was wanted")
    early = tune(features, labels, replace(how, epochs=first), **{k: v for k, v in more.items() if k != "held_out"})
    wrong = np.flatnonzero(logits(early, features).argmax(1) != labels)
    if not len(wrong):
        raise UsageError(f"the head of {first} epochs gets every row right, so none counts more; take fewer epochs")
    weights = np.ones(len(labels), np.float32)
    weights[wrong] = upweight
    return tune(features, labels, how, weights=weights, **more), wrong


def logits(head: Tuned, features: np.ndarray) -> np.ndarray:
    """`[N, C]`."""
    return np.asarray(_logits(head.how)(head.params, head.stats, jnp.asarray(features, jnp.float32)))


def accuracy(head: Tuned, features: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(logits(head, features).argmax(1) == np.asarray(labels)))


def penalties(penalty: NMTune, z: Any, f: Any) -> dict[str, Any]:
    """NMTune's three terms of new features `z` and old ones `f`, `[B, D]` each; the last is negative."""
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)  # noqa: E731  # twice
    away = z - jnp.mean(z, 0, keepdims=True)
    square = jnp.square(away.T @ away / (len(z) - 1))
    sigma = jnp.linalg.svd(z, compute_uv=False)
    return {
        "mse": jnp.mean(jnp.square(unit(z) - jax.lax.stop_gradient(unit(f)))),
        "cov": (jnp.sum(square) - jnp.sum(jnp.diag(square))) / z.shape[1],
        "svd": -jnp.mean(sigma[: penalty.top] / jnp.sum(sigma)),
    }


def checked(features: Any, labels: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features in float32 and labels in int32, finite and in range."""
    x, y = np.asarray(features, np.float32), np.asarray(labels)
    if x.ndim != 2 or y.shape != x.shape[:1] or y.dtype.kind not in "iu" or not len(y):
        raise ShapeError(
            f"features {list(x.shape)} and labels {y.dtype} {list(y.shape)} arrived; [N, D] and integers [N] fit"
        )
    if not np.isfinite(x).all():
        raise NonFiniteError(f"the features of row {int(np.argwhere(~np.isfinite(x))[0][0])} are NaN or infinite")
    odd = np.flatnonzero((y < 0) | (y >= classes))
    if len(odd):
        raise DataError(f"row {odd[0]} has the label {y[odd[0]]}; 0..{classes - 1} were wanted ({classes} classes)")
    return x, y.astype(np.int32)


def restoring(penalty: SKD, z: Any, out: Any, labels: Any) -> dict[str, Any]:
    """SKD's three terms of new features `z` `[B, D]` and logits `out` `[B, C]`; its targets are numbers."""
    skew, kurt = _shape(z, jnp)
    right = jnp.take_along_axis(out, labels[:, None], 1)[:, 0]
    others = (jnp.sum(out, 1) - right) / (out.shape[1] - 1)
    return {
        "skew": jnp.abs(skew - penalty.skew_to),
        "kurt": jnp.abs(kurt - penalty.kurt_to),
        "disagree": jnp.mean(jax.nn.relu(1 - (right - others))),
    }


def _shape(x: Any, xp: Any) -> tuple[Any, Any]:
    """(mean absolute skewness, mean excess kurtosis) over the features of `[B, D]`."""
    away = x - x.mean(0, keepdims=True)
    unit = away / xp.sqrt((away**2).mean(0, keepdims=True) + EPSILON)
    return xp.abs((unit**3).mean(0)).mean(), ((unit**4).mean(0) - 3).mean()


def _aimed(how: Tuning, features: np.ndarray) -> Tuning:
    """With SKD's targets as numbers."""
    if not isinstance(how.penalty, SKD):
        return how
    skew, kurt = map(float, _shape(features.astype(np.float64), np))
    skew, kurt = LIFTED * skew, LIFTED * (kurt + 3) - 3  # of an excess below 0 a multiple would aim downwards
    its = how.penalty
    aims = {
        "skew_to": skew if its.skew_to is None else its.skew_to,
        "kurt_to": kurt if its.kurt_to is None else its.kurt_to,
    }
    return replace(how, penalty=replace(its, **aims))


# ---------------------------------------------------------------- the head


class _Rows(NamedTuple):
    features: Any
    views: Any
    labels: Any
    weights: Any
    groups: Any


class _State(NamedTuple):
    params: Any
    stats: Any
    optimizer: Any
    groups: Any


def _begin(how: Tuning, width: int, classes: int, groups: int) -> _State:
    one, two, three = jax.random.split(jax.random.key(how.seed), 3)
    drawn = jax.nn.initializers.lecun_normal()
    params: dict[str, Any] = {"w": drawn(one, (width, classes)), "b": jnp.zeros(classes)}
    stats: dict[str, Any] = {}
    if how.head == "mlp":
        hidden = max(1, round(how.ratio * width))
        params |= {"w1": drawn(two, (width, hidden)), "b1": jnp.zeros(hidden), "w2": drawn(three, (hidden, width))}
        params |= {"b2": jnp.zeros(width), "s": jnp.ones(()), "scale": jnp.ones(hidden), "shift": jnp.zeros(hidden)}
        stats = {"mean": jnp.zeros(hidden), "var": jnp.ones(hidden)}
    return _State(params, stats, _optimizer(how).init(params), jnp.full(groups, 1.0 / groups))


def _optimizer(how: Tuning) -> optax.GradientTransformation:
    return optax.adamw(how.learning_rate, weight_decay=how.weight_decay)


def _forward(how: Tuning, params: Any, stats: Any, x: Any, training: bool) -> tuple[Any, Any, Any]:
    """(logits, new features, running statistics)."""
    if how.head == "linear":
        return x @ params["w"] + params["b"][None], x, stats
    h = x @ params["w1"] + params["b1"][None]
    mean, var = (jnp.mean(h, 0), jnp.var(h, 0)) if training else (stats["mean"], stats["var"])
    if training:
        unbiased = var * (len(x) / (len(x) - 1))
        new = {"mean": mean, "var": unbiased}
        stats = {name: MEMORY * stats[name] + (1 - MEMORY) * jax.lax.stop_gradient(new[name]) for name in stats}
    h = (h - mean[None]) * (params["scale"] / jnp.sqrt(var + EPSILON))[None] + params["shift"][None]
    z = x + params["s"] * (jax.nn.relu(h) @ params["w2"] + params["b2"][None])
    return z @ params["w"] + params["b"][None], z, stats


@functools.lru_cache(maxsize=32)
def _logits(how: Tuning):
    return jax.jit(lambda params, stats, x: _forward(how, params, stats, x, False)[0])


def _loss(how: Tuning, params: Any, state: _State, rows: _Rows, log_shares: Any) -> tuple[Any, tuple[Any, Any, Any]]:
    """(what is minimised, (running statistics, robust weights, mean CE))."""
    out, z, stats = _forward(how, params, state.stats, rows.views, True)
    adjusted = out + how.adjust * log_shares[None]
    each = optax.softmax_cross_entropy_with_integer_labels(adjusted, rows.labels)
    total, groups = jnp.sum(each * rows.weights) / jnp.maximum(jnp.sum(rows.weights), 1e-12), state.groups
    if how.robust:
        inside = (rows.groups[:, None] == jnp.arange(len(groups))[None]) * rows.weights[:, None]
        of_group = (inside * each[:, None]).sum(0) / jnp.maximum(inside.sum(0), 1e-12)
        groups = groups * jnp.exp(how.robust * jax.lax.stop_gradient(of_group))
        groups = groups / groups.sum()
        total = jnp.sum(groups * of_group)
    if how.penalty is not None:
        if isinstance(how.penalty, SKD):
            terms = restoring(how.penalty, z, out, rows.labels)
        else:
            terms = penalties(how.penalty, z, rows.features)
        total = total + sum(getattr(how.penalty, name) * value for name, value in terms.items())
    return total, (stats, groups, jnp.mean(each))


@functools.lru_cache(maxsize=32)
def _epoch(how: Tuning, size: int):
    optimizer = _optimizer(how)

    def program(state: _State, rows: _Rows, log_shares: Any, key: Any, epoch: Any) -> tuple[_State, Any]:
        count = len(rows.labels)
        order = jax.random.permutation(jax.random.fold_in(key, epoch), count)[: count // size * size].reshape(-1, size)

        def step(state: _State, ids: Any) -> tuple[_State, Any]:
            some = jax.tree.map(lambda x: x[ids], rows)
            gradient, (stats, groups, mean) = jax.grad(lambda p: _loss(how, p, state, some, log_shares), has_aux=True)(
                state.params
            )
            updates, after = optimizer.update(gradient, state.optimizer, state.params)
            return _State(optax.apply_updates(state.params, updates), stats, after, groups), mean

        state, means = jax.lax.scan(step, state, order)
        return state, jnp.mean(means)

    return jax.jit(program)
