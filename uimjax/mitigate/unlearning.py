"""Unlearning: the loop that minimises `gamma * forget + alpha * retain`, over rows to forget and rows to keep.

Forget losses: `uimjax.mitigate.forgetting`. Retain losses of a row that is not forgotten, `before` the model before:

    nll      mean_t NLL_t                                       none   0
    row      sum_t NLL_t                                        hidden mean_t mean_d (h_td - h_before,td)^2
    kl       mean_t KL(p_before,t || p_t)
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from uimjax import checkpoint
from uimjax import rows as row
from uimjax.convolutions import fast
from uimjax.errors import NonFiniteError, UnknownNameError, UsageError
from uimjax.mitigate import forgetting, looking, subspace
from uimjax.mitigate.forgetting import PDU, RMU, Forget, GradDiff, Seen, Views
from uimjax.progress import Progress, quiet
from uimjax.sinks import Sink
from uimjax.store import digest_tree, stage_key
from uimjax.task import Task

KEPT = ("nll", "row", "kl", "hidden", "none")  # retain losses
HEAL = 240  # steps of the retain loss alone, where there is one
BATCH = 64  # rows that are looked at together outside of steps
FEW = 32  # ids to forget, to which fewer are padded


@dataclass(frozen=True)
class Unlearning:
    """How to unlearn: AdamW steps, `batch_size` forget rows and `retain_size` retain rows each.

    `loss`: a name or a value of `uimjax.mitigate.forgetting`. `retain`: which retain loss (default: "hidden" for RMU,
    else "nll"); `gamma`, `alpha`: weights of both (default: those that the loss holds). After `steps` of both losses,
    `heal_steps` (default 240, 0 without a retain loss) of that alone let the rest of the model recover. The rate falls
    linearly from `learning_rate` to 0: at a constant one the last few retain rows drawn move every probe.

    Every `every` steps the mean loss of at most `watched` retain rows is looked at; once it has risen by more than the
    share `most` of what it was, forgetting ends and healing begins. `include`, `exclude`: the parameters that move, by
    patterns of their paths; `lora`: by adapters of that rank alone, which are added to the matrices at the end.
    """

    loss: str | Forget = "npo"
    retain: Literal["nll", "row", "kl", "hidden", "none"] | None = None
    gamma: float | None = None
    alpha: float | None = None
    steps: int = 60
    heal_steps: int | None = None
    learning_rate: float = 1e-3
    batch_size: int = 32
    retain_size: int = 128
    every: int = 20
    watched: int = 256
    most: float | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    lora: int = 0

    def __post_init__(self):
        loss = forgetting.get(self.loss)
        if self.retain not in (None, *KEPT):
            raise UnknownNameError("retain loss", str(self.retain), KEPT)
        keeps = self.retain or ("hidden" if isinstance(loss, RMU) else "nll")
        gamma = loss.gamma if self.gamma is None else self.gamma
        alpha = loss.alpha if self.alpha is None else self.alpha
        kept = alpha > 0 and keeps != "none"
        heal = (HEAL if kept else 0) if self.heal_steps is None else self.heal_steps
        if (
            min(self.steps, self.batch_size, self.retain_size, self.every, self.watched) < 1
            or not self.learning_rate > 0
        ):
            raise UsageError(
                f"steps, batch_size, retain_size, every, watched and learning_rate should be positive: {self}"
            )
        if not gamma > 0 or alpha < 0 or heal < 0 or self.lora < 0 or not (self.most is None or self.most > 0):
            raise UsageError(f"gamma and most should be above 0, alpha, heal_steps and lora 0 or more: {self}")
        if heal and not kept:
            raise UsageError(f"{heal} steps of healing by a retain loss whose weight is 0; give alpha and retain")
        settled = {"loss": loss, "retain": keeps, "gamma": gamma, "alpha": alpha, "heal_steps": heal}
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    @property
    def healing(self) -> int:
        return self.heal_steps or 0  # __post_init__ made it a number

    @property
    def looks(self) -> int:
        """Most times that the retain metric is looked at."""
        return math.ceil(self.steps / self.every) + math.ceil(self.healing / self.every)

    @property
    def needs(self) -> frozenset[str]:
        assert isinstance(self.loss, Forget)  # __post_init__ made it one
        more = {"kl": {"logits", "logits before"}, "hidden": {"hidden"}}.get(str(self.retain), set())
        return self.loss.needs | more

    @property
    def by_token(self) -> bool:
        """Does it look at tokens one by one, and not at sums over rows alone?"""
        sums = (forgetting.NPO, forgetting.DPO, forgetting.Counterfactual, forgetting.Learn)
        summed = isinstance(self.loss, sums) or getattr(self.loss, "per", "") == "row"
        return not summed or self.retain not in ("row", "none") or bool(self.needs & {"logits", "hidden"})


class Unlearned(NamedTuple):
    """New `params`; `kept` `[K + 1]`: the retain metric, mean loss in nats of the watched rows, before the first step
    and each time that it was looked at; `forgot`: steps of forgetting that were taken; `dual`: alpha at the end."""

    params: Any
    kept: np.ndarray
    forgot: int
    dual: float


class _State(NamedTuple):
    free: Any
    optimizer: Any
    dual: Any


class _Held(NamedTuple):
    """What a checkpoint holds."""

    state: _State
    kept: Any
    forgot: Any


class _Fixed(NamedTuple):
    """What no step changes; `losses`, `other_losses` `[F, T]`: of the model before, where they are needed. Ids and
    `others` are padded, so that edits of about one size share their programs; `forgets` and `retains` count."""

    params: Any
    data: Any
    others: Any
    forget: Any
    retain: Any
    forgets: Any
    retains: Any
    losses: Any
    other_losses: Any
    direction: Any


def unlearn(
    task: Task,
    params: Any,
    data: Any,
    forget: Any,
    choice: Unlearning,
    seed: int = 0,
    *,
    others: Any = None,
    hidden: Callable[[Any, Any], Any] | None = None,
    folder: Path | None = None,
    sinks: Sequence[Sink] = (),
    progress: Progress = quiet,
) -> Unlearned:
    """Unlearn the rows `forget` (ids) of `data`; every other row may be drawn as a retain row.

    `others`: for DPO, CDA and `Learn`, a row for each of `forget`, in its order: the answer that is to come instead, or
    the counterfactual. `hidden`: for RMU, `(params, example) -> [T, D]`, or `[D]` of a class (default: the task's
    features). With `folder` a stopped run is continued, to the bit; `sinks` get the retain metric. The parameters that
    came in are left as they are.

    Raises:
        UsageError: nothing to forget, ids out of range or twice, nothing left to retain, or what the loss looks at is
            lacking. MismatchError: labels and outputs do not give the loss, or `folder` holds another run.
        NonFiniteError: it diverged.
    """
    count = row.count(data)
    forget = row.chosen(forget, count, "to forget")
    task = looking.labelled(task, data)
    looking.check(task, params, data, choice.needs, choice.by_token, hidden, others)
    if others is not None and row.count(others) != len(forget):
        raise UsageError(f"{row.count(others)} other answers arrived for {len(forget)} rows; one each was wanted")
    retain = np.setdiff1d(np.arange(count), forget)
    made, placed = _program(task, choice, hidden), jax.tree.map(jnp.asarray, data)
    free = subspace.opened(params, choice.include, choice.exclude, choice.lora, seed)
    state = _State(free, made.init(free), jnp.asarray(choice.alpha, jnp.float32))
    held, start = _Held(state, np.full(choice.looks + 1, np.nan), np.asarray(choice.steps)), 0
    if folder is not None:
        causes = map(digest_tree, (params, data, forget, others))
        shown = looking.digest(task, params, data, choice.needs, choice.by_token, hidden)
        checkpoint.claim(folder, stage_key(str(choice), str(seed), shown, *causes))
        start = checkpoint.latest(folder) or 0
        held = checkpoint.load(folder, held)[1] if start else held
    fixed = _fixed(made, choice, hidden, task, params, placed, others, forget, retain, seed)
    return _run(made, choice, fixed, held, start, seed, folder, sinks, progress)


def _run(
    made: "_Made", choice: Unlearning, fixed: "_Fixed", held: "_Held", done: int, seed: int, folder: Path | None,
    sinks: Sequence[Sink], progress: Progress,
) -> Unlearned:  # fmt: skip
    """The steps from `done` on, `every` at a time."""
    state, kept, forgot = held.state, np.array(held.kept), int(held.forgot)
    few = np.linspace(0, fixed.retains - 1, min(choice.watched, fixed.retains))
    watch = lambda params: float(made.watch(params, fixed.data, fixed.retain[np.unique(few.round().astype(int))]))  # noqa: E731
    kept[0] = kept[0] if done else watch(fixed.params)
    keys = jax.random.split(jax.random.key(seed), choice.steps + choice.healing)
    alone = fixed._replace(others=None, losses=None, other_losses=None, direction=None)  # of these healing sees nothing
    looked = int(np.isfinite(kept).sum()) - 1
    for k in progress(range(choice.looks), "unlearning", unit=f"x {choice.every} steps", skip=looked):
        if k < looked or done >= forgot + choice.healing:
            continue
        healing = done >= forgot
        stop = min(done + choice.every, forgot + choice.healing if healing else forgot)
        some = keys[done:stop], np.arange(done, stop)
        state = made.heal(alone, state, *some) if healing else made.forget(fixed, state, *some)
        done, kept[k + 1] = stop, watch(subspace.join(fixed.params, state.free))
        if not np.isfinite(kept[k + 1]):
            raise NonFiniteError(f"unlearning diverged; lower its learning rate ({choice.learning_rate}) or steps")
        if choice.most is not None and not healing and kept[k + 1] > (1 + choice.most) * kept[0]:
            forgot = done
        for sink in sinks:
            sink.write(done, {"retain_loss": float(kept[k + 1])})
        if folder is not None:
            checkpoint.save(folder, done, _Held(state, kept, np.asarray(forgot)))
    return Unlearned(subspace.join(fixed.params, state.free), kept[np.isfinite(kept)], forgot, float(state.dual))


def _fixed(
    made: Any, choice: Unlearning, hidden: Any, task: Task, params: Any, data: Any, others: Any, forget: Any,
    retain: Any, seed: int,
) -> _Fixed:  # fmt: skip
    forgets, retains = len(forget), len(retain)
    forget = np.resize(forget, max(FEW, 1 << (forgets - 1).bit_length()))  # the beginning again, which is never drawn
    retain = np.resize(retain, forgets + retains)
    others = others if others is None else _at(others, np.resize(np.arange(forgets), len(forget)))
    losses = made.losses(params, data, forget) if "before" in choice.needs else None
    other = None if others is None else made.losses(params, others, np.arange(len(forget)))
    direction = None
    if isinstance(choice.loss, RMU):
        seen = jax.eval_shape(looking.look(task, choice.needs, choice.by_token, hidden), params, row.example_spec(data))
        drawn = jax.random.uniform(jax.random.fold_in(jax.random.key(seed), 7), (seen.hidden.shape[-1],))
        direction = drawn / jnp.linalg.norm(drawn)  # of uniform numbers, as the reference code draws it
    return _Fixed(params, data, others, forget, retain, forgets, retains, losses, other, direction)


class _Made(NamedTuple):
    """Compiled: `forget`, `heal` of (fixed, state, keys of the steps, their numbers); `watch` of (params, data, ids) ->
    mean loss; `losses` of (params, rows, ids) -> `[F, T]`; the optimizer's `init`."""

    forget: Any
    heal: Any
    watch: Any
    losses: Any
    init: Any


def _program(task: Task, choice: Unlearning, hidden: Any) -> _Made:
    healing = replace(choice, loss=GradDiff(per="row"), gamma=1.0)  # the same program after any forget loss
    losses = _losses(task, choice.needs, choice.by_token, hidden)
    init = _optimizer(choice).init
    return _Made(_steps(task, choice, hidden, True), _steps(task, healing, hidden, False), _watch(task), losses, init)


def _optimizer(choice: Unlearning) -> optax.GradientTransformation:
    falling = optax.linear_schedule(choice.learning_rate, 0.0, choice.steps + choice.healing)
    return optax.adamw(falling, weight_decay=0.0)


def _at(rows: Any, ids: Any) -> Any:
    return jax.tree.map(lambda x: x[ids], rows)


@functools.lru_cache(maxsize=32)
def _watch(task: Task):
    def watch(params: Any, data: Any, ids: Any) -> Any:
        return jnp.mean(jax.lax.map(lambda i: jnp.sum(task.loss(params, _at(data, i))), ids, batch_size=BATCH))

    return jax.jit(watch)


@functools.lru_cache(maxsize=32)
def _losses(task: Task, needs: frozenset[str], by_token: bool, hidden: Any):
    look = looking.look(task, needs, by_token, hidden)
    return jax.jit(
        lambda params, rows, ids: jax.lax.map(lambda i: look(params, _at(rows, i)).nll, ids, batch_size=BATCH)
    )


@functools.lru_cache(maxsize=32)
def _steps(task: Task, choice: Unlearning, hidden: Any, forgetting: bool):
    optimizer, look = _optimizer(choice), looking.look(task, choice.needs, choice.by_token, hidden)

    def forget_loss(current: Any, fixed: _Fixed, k: Any) -> Any:
        """Mean over the drawn places `k` `[B]` of the rows to forget."""
        example, other = _at(fixed.data, fixed.forget[k]), None if fixed.others is None else _at(fixed.others, k)
        losses, other_losses = (None if x is None else x[k] for x in (fixed.losses, fixed.other_losses))
        one = functools.partial(_forget_one, choice, look, current, fixed.params, fixed.direction)
        return jnp.mean(jax.vmap(one)(example, other, losses, other_losses))

    def retain_loss(current: Any, fixed: _Fixed, ids: Any) -> Any:
        one = functools.partial(_retain_one, choice, look, current, fixed.params)
        return jnp.mean(jax.vmap(one)(_at(fixed.data, ids)))

    def step(fixed: _Fixed, state: _State, its: tuple[Any, Any]) -> tuple[_State, None]:
        key, i = its
        one, two = jax.random.split(key)

        def objective(free: Any) -> tuple[Any, Any]:
            current, kept = subspace.join(fixed.params, free), jnp.float32(0)
            if choice.alpha and choice.retain != "none":
                drawn = jax.random.randint(two, (choice.retain_size,), 0, fixed.retains)
                kept = retain_loss(current, fixed, fixed.retain[drawn])
            loss = state.dual * kept
            if forgetting:
                k = jax.random.randint(one, (choice.batch_size,), 0, fixed.forgets)
                loss = loss + choice.gamma * forget_loss(current, fixed, k)
            return loss, kept

        gradient, kept = fast(jax.grad(objective, has_aux=True))(state.free)
        updates, after = optimizer.update(gradient, state.optimizer, state.free)
        dual = state.dual
        if isinstance(choice.loss, PDU) and forgetting:
            risen = jnp.maximum(dual + choice.loss.rate * (kept - choice.loss.bound), 0)
            dual = jnp.where(i >= choice.loss.warmup * choice.steps, risen, dual).astype(dual.dtype)
        return _State(optax.apply_updates(state.free, updates), after, dual), None

    def program(fixed: _Fixed, state: _State, keys: Any, numbers: Any) -> _State:
        return jax.lax.scan(functools.partial(step, fixed), state, (keys, numbers))[0]

    return jax.jit(program)


def _forget_one(
    choice: Unlearning, look: looking.Look, current: Any, params: Any, direction: Any, example: Any, other: Any,
    losses: Any, other_losses: Any,
) -> Any:  # fmt: skip
    now, needs = look(current, example), choice.needs
    before = jax.lax.stop_gradient(look(params, example)) if "logits before" in needs else None
    if losses is not None:
        before = (before or now)._replace(nll=losses)
    other = None if other is None else look(current, other)
    other_before = None if other is None else other._replace(nll=other_losses)
    assert isinstance(choice.loss, Forget)  # __post_init__ made it one
    return choice.loss(Views(now, before, other, other_before, direction))


def _retain_one(choice: Unlearning, look: looking.Look, current: Any, params: Any, example: Any) -> Any:
    now = look(current, example)
    if choice.retain == "nll":
        return now.mean(now.nll)
    if choice.retain == "row":
        return now.total
    before: Seen = jax.lax.stop_gradient(look(params, example))
    if choice.retain == "hidden":
        return now.mean(jnp.mean(jnp.square(now.hidden - before.hidden), -1))
    log_p, log_q = jax.nn.log_softmax(before.logits), jax.nn.log_softmax(now.logits)
    return now.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))
