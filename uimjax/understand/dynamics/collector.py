"""Statistics of training per example, inside the jitted step: fixed memory per example, exact in one pass.

`Collector` is a triple of pure functions: `init` makes the state, `update` takes one batch's ids with what the step
knows already (logits and labels, or losses), `finish` turns the state into statistics on the host. Each example is a
row of a table that its id names; under a mesh the rows are shared out and each device keeps its own.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import DataError, ShapeError, UnknownNameError, UsageError
from uimjax.understand.dynamics import signals as signal

SIGNALS = ("loss", "margin", "probability", "correct", "el2n", "grand")
CLASSES = ("loss", "margin", "probability", "correct", "el2n")  # what logits and labels give
MEANS = ("loss", "margin", "probability", "el2n", "grand")
SQUARES = {"el2n": "el2n_squared"}  # what is kept beside a mean
COUNTS = ("met", "correct", "right", "forgotten", "first", "wrong", "epoch", "repeated", "lost", "classes")
SPREAD, LAST = -2, -1  # columns of a state's values, after the means
NEVER = -1
MIXED, OUTSIDE = -1, -2  # instead of a number of classes: several, and a label that is none of them
LARGEST = float(np.finfo(np.float16).max)


class State(NamedTuple):
    """`values` `[N, k + 2]`: running means of the signals, the sum of squared deviations of p_y (Welford), the newest
    loss: one table, since a GPU's small steps pay by the scatter; `counts` `[N, 10]` int32 (`COUNTS`); `at`
    `[N, A, 2]`: EL2N and GraNd at the chosen meetings; `ring` `[N, R]`: the newest losses; `tokens`: a state of N x T
    rows."""

    values: Any
    counts: Any
    at: Any
    ring: Any
    tokens: Any


class Statistics(NamedTuple):
    """What a run showed of each example, NumPy arrays `[N]`; what was not collected is NaN.

    `met`: meetings; `margin` (AUM), `probability` (confidence), `loss`, `el2n`, `grand`: means over them; `variance`:
    population variance of p_y; `last_loss`; `correct`: meetings at which it was right; `forgotten`: right, then wrong;
    `first`: the number of the first right meeting, from 0, -1 for never; `learned`: meetings after which it stayed
    right; `at` `{"el2n": [N, A], "grand": [N, A]}` at the meetings `chosen`; `losses` `[N, R]`, oldest first, NaN
    before the first. `repeated`: meetings that came twice in an epoch; `lost`: at which a signal was NaN or infinite,
    which its mean is from then on. `tokens`: the same of N x T tokens."""

    met: np.ndarray
    margin: np.ndarray
    probability: np.ndarray
    variance: np.ndarray
    loss: np.ndarray
    last_loss: np.ndarray
    el2n: np.ndarray
    el2n_squared: np.ndarray
    grand: np.ndarray
    correct: np.ndarray
    forgotten: np.ndarray
    first: np.ndarray
    learned: np.ndarray
    repeated: np.ndarray
    lost: np.ndarray
    at: dict[str, np.ndarray]
    chosen: tuple[int, ...]
    losses: np.ndarray
    tokens: Any


@dataclass(frozen=True)
class Collector:
    """Collects `what` of `count` examples.

    `what`: of loss, margin, probability, correct, el2n (from logits and labels) and grand (norms of per-example
    gradients, given to `update`; `graded` computes them in the step's own backward pass). `at`: meetings, from 0, whose
    EL2N and GraNd are kept by themselves (papers score at one epoch). `ring`: so many of the newest losses in float16
    (above 65504: 65504).
    `tokens`: statistics of every position of sequences of that length as well. `margins`: of "logits" or of
    "probabilities". About 70 bytes an example in float32, 4 more for each of `at`, 2 for each of `ring`.

    *Guarantees*: exact, up to rounding, whatever the batches, their order within an epoch, padding, accumulation over
    microbatches (call `update` for each), devices and restarts (the state is a pytree of arrays). Ids may be missing
    (never met: NaN) or repeated; repetitions in one batch count one after the other, in the order of the batch.

    >>> import jax.numpy as jnp, uimjax as uj
    >>> collector = uj.dynamics.Collector(3)
    >>> state = collector.init()
    >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> state = collector.update(state, jnp.array([2, 0]), logits=logits, labels=jnp.array([0, 0]), epoch=0)
    >>> collector.finish(state).margin.round(2).tolist()
    [-1.0, nan, 2.0]
    """

    count: int
    what: tuple[str, ...] = CLASSES
    at: tuple[int, ...] = ()
    ring: int = 0
    tokens: int = 0
    margins: str = "logits"

    def __post_init__(self):
        object.__setattr__(self, "what", tuple(self.what))
        object.__setattr__(self, "at", tuple(self.at))
        for name in self.what:
            if name not in SIGNALS:
                raise UnknownNameError("signal", name, SIGNALS)
        if self.count < 1 or self.ring < 0 or self.tokens < 0 or not self.what:
            raise UsageError(f"at least one example and one signal were wanted, ring and tokens from 0: {self}")
        if any(k < 0 for k in self.at) or (self.at and not {"el2n", "grand"} & set(self.what)):
            raise UsageError(f"at={self.at} are meetings from 0 at which el2n or grand is kept; what={self.what}")
        if self.margins not in signal.MARGINS:
            raise UnknownNameError("kind of margin", self.margins, signal.MARGINS)

    @property
    def means(self) -> tuple[str, ...]:
        held = tuple(name for name in MEANS if name in self.what)
        return held + tuple(SQUARES[name] for name in held if name in SQUARES)

    def init(self, dtype: Any = jnp.float32) -> State:
        """Of examples that were never met. Under a mesh, lay it out by `mesh.shard_batch`; under `vmap` (seeds as an
        axis) make one for each: `jax.vmap(lambda _: collector.init())(seeds)`."""
        n = self.count
        counts = jnp.zeros((n, len(COUNTS)), jnp.int32)
        counts = counts.at[:, COUNTS.index("first")].set(NEVER).at[:, COUNTS.index("epoch")].set(NEVER)
        return State(
            jnp.zeros((n, len(self.means) + 2), dtype).at[:, LAST].set(jnp.nan),
            counts,  # below: nothing, where it would be empty, which no checkpoint takes
            jnp.full((n, len(self.at), 2), jnp.nan, dtype) if self.at else (),
            jnp.full((n, self.ring), jnp.nan, jnp.float16) if self.ring else (),
            self._of_tokens().init(dtype) if self.tokens else (),
        )  # fmt: skip

    def update(
        self, state: State, ids: Any, *, logits: Any = None, labels: Any = None, losses: Any = None, norms: Any = None,
        mask: Any = None, counted: Any = None, epoch: Any = None, distinct: bool = False,
    ) -> State:  # fmt: skip
        """The state after one more batch. Pure; jit it with the step, and donate the state.

        `ids` `[B]` integers; rows whose `mask` `[B]` is False and ids outside 0..N-1 (padding) are left out. `logits`
        `[B, C]` with `labels` `[B]`; of sequences `[B, T, C]` with `[B, T]`, of which the tokens `counted` `[B, T]`
        matter (default: labels from 0; a sequence without one is not met). `losses` `[B]` alone give the loss; given
        beside logits, they are the loss that is kept (its own noise or weighting). `norms` `[B]`: of the gradients.
        `epoch`: a number; a second meeting in one epoch is then noticed. `distinct`: no id stands twice in this batch
        (a loader without replacement, as that of `fit`); repetitions are then not looked for, which spares a GPU the
        asking of its host at every step. Of an id that stands twice all the same one meeting is kept.

        Raises:
            UsageError: what is collected was not given. ShapeError: arrays that do not fit. A label outside 0..C-1 and
            another number of classes are noticed by `finish`.
        """
        _check_kinds(ids, mask, labels, counted)
        ids = _wide(ids)
        found, tokens = self._signals(logits, labels, losses, norms, counted)
        batch = len(ids)
        for name, values in found.items():
            if values.shape != (batch,):
                raise ShapeError(f"{name} of shape {list(values.shape)} arrived for {batch} ids; one each was wanted")
        keep = (ids >= 0) & (ids < self.count)
        keep = keep if mask is None else keep & mask
        keep = keep if tokens is None else keep & tokens[1].any(-1)
        place = jnp.where(keep, ids, self.count).astype(jnp.int32)
        made = _scattered(self, distinct, state, place, found, NEVER if epoch is None else epoch)
        if not self.tokens:
            return made
        each, counted = tokens  # pyright: ignore[reportGeneralTypeIssues]  # _signals refused None
        where = place[:, None] * self.tokens + jnp.arange(self.tokens, dtype=jnp.int32)[None]
        where = jnp.where(counted & keep[:, None], where, self.count * self.tokens)
        flat = {name: values.reshape(-1) for name, values in each.items()}
        inner = self._of_tokens()
        return made._replace(tokens=_scattered(inner, distinct, state.tokens, where.reshape(-1), flat, NEVER))

    def finish(self, state: State, repeats: str = "refuse") -> Statistics:
        """Statistics on the host. `repeats="count"` takes examples that were met twice in an epoch as they came.

        Raises:
            DataError: no example was met at all; a label was outside 0..C-1, or C changed; an example was met twice in
                one epoch, so that "epochs" would be meetings of some and not of others: a loader that repeats rows, or
                ids that are not unique.
        """
        if repeats not in ("refuse", "count"):
            raise UnknownNameError("way with repeated ids", repeats, ("refuse", "count"))
        if np.ndim(state.values) != 2:
            raise ShapeError(
                f"a state of {np.ndim(state.values)} axes arrived; take one seed: tree.map(lambda x: x[k])"
            )
        counts: dict[str, np.ndarray] = dict(zip(COUNTS, np.asarray(state.counts).T, strict=True))
        _check_classes(counts)
        if repeats == "refuse" and counts["repeated"].any():
            first, many = int(np.flatnonzero(counts["repeated"])[0]), int((counts["repeated"] > 0).sum())
            raise DataError(
                f"{many} examples were met twice in one epoch, first id {first}: ids should be unique, and each epoch "
                "should hold each once. Give the epoch that a batch belongs to, or take repeats='count'."
            )
        return self._statistics(state, counts)

    def _of_tokens(self) -> "Collector":
        return Collector(self.count * self.tokens, tuple(n for n in self.what if n != "grand"), margins=self.margins)

    def _signals(self, logits: Any, labels: Any, losses: Any, norms: Any, counted: Any) -> tuple[dict[str, Any], Any]:
        """({signal: [B]}, (of the tokens {signal: [B, T]}, which of them count) or None)."""
        found, tokens = {}, None
        labels = None if labels is None else _wide(labels)
        if (logits is None) != (labels is None):
            raise UsageError("logits and labels belong together")
        if logits is not None:
            each = signal.of_classes(logits, jnp.maximum(labels, 0), self.margins)
            classes = logits.shape[-1]
            outside = labels >= classes if logits.ndim == 3 else (labels < 0) | (labels >= classes)
            if logits.ndim == 3:
                counted = labels >= 0 if counted is None else counted & (labels >= 0)
                tokens, each = (each, counted), signal.of_sequences(each, counted)
                outside = (outside & counted).any(-1)
            found = each | {"classes": jnp.where(outside, OUTSIDE, classes)}
        if losses is not None:
            found = found | {"loss": losses}
        if norms is not None:
            found = found | {"grand": norms}
        lacking = [name for name in self.what if name not in found]
        if lacking:
            given = "norms (uimjax.dynamics.graded)" if lacking == ["grand"] else "logits and labels"
            raise UsageError(
                f"{', '.join(lacking)} cannot be collected from what arrived: give {given}, or collect less"
            )
        if self.tokens and (tokens is None or tokens[1].shape[1] != self.tokens):
            raise ShapeError(f"tokens={self.tokens} are collected of logits [B, {self.tokens}, C]; others arrived")
        held = (*(name for name in SIGNALS if name in self.what), *self.means, "classes")
        return {name: found[name] for name in dict.fromkeys(held) if name in found}, tokens

    def _met(self, state: State, place: Any, found: dict[str, Any], epoch: Any) -> State:
        """Rows at distinct places meet what was found of them; the place N is nowhere."""
        at = jnp.minimum(place, self.count - 1)
        counts, values, dtype = state.counts[at], state.values[at], state.values.dtype
        met = counts[:, COUNTS.index("met")]
        put = lambda table, new: table.at[place].set(new.astype(table.dtype), mode="drop")  # noqa: E731
        means, more, last = values[:, :SPREAD], values[:, SPREAD], values[:, LAST]
        if self.means:
            new = jnp.stack([found[name].astype(dtype) for name in self.means], 1)
            moved = means + (new - means) / (met + 1).astype(dtype)[:, None]
            if "probability" in self.what:
                k = self.means.index("probability")
                more = more + (new[:, k] - means[:, k]) * (new[:, k] - moved[:, k])
            means = moved
        last = found["loss"].astype(dtype) if "loss" in self.what else last
        values = jnp.concatenate([means, more[:, None], last[:, None]], 1)
        made = state._replace(
            counts=put(state.counts, _counted(counts, found, epoch)), values=put(state.values, values)
        )
        if self.ring and "loss" in self.what:
            inside = jnp.where(place < self.count, met % self.ring, 0)
            fits = jnp.clip(found["loss"], -LARGEST, LARGEST)
            fits = jnp.where(jnp.isfinite(found["loss"]), fits, found["loss"]).astype(jnp.float16)
            made = made._replace(ring=state.ring.at[place, inside].set(fits, mode="drop"))
        for k, meeting in enumerate(self.at):
            here = jnp.where(met == meeting, place, self.count)
            kept = [found.get(name, jnp.full(len(met), jnp.nan, dtype)).astype(dtype) for name in ("el2n", "grand")]
            made = made._replace(at=made.at.at[here, k].set(jnp.stack(kept, 1), mode="drop"))
        return made

    def _statistics(self, state: State, counts: dict[str, np.ndarray]) -> Statistics:
        met = counts["met"]
        blank = np.full(self.count, np.nan)
        held = np.asarray(state.values, np.float64)
        means = {name: np.where(met > 0, held[:, k], np.nan) for k, name in enumerate(self.means)}
        right = "correct" in self.what
        whole = lambda name: counts[name] if right else np.full(self.count, NEVER)  # noqa: E731  # used four times
        variance = held[:, SPREAD] / np.maximum(met, 1)
        at = np.asarray(state.at, np.float64) if self.at else np.zeros((self.count, 0, 2))
        ring = np.asarray(state.ring, np.float64) if self.ring else np.zeros((self.count, 0))
        order = (met[:, None] + np.arange(self.ring)[None]) % max(self.ring, 1)  # the oldest stands where the next goes
        return Statistics(
            met=met, margin=means.get("margin", blank), probability=means.get("probability", blank),
            variance=np.where((met > 0) & ("probability" in self.what), variance, np.nan),
            loss=means.get("loss", blank), last_loss=held[:, LAST],
            el2n=means.get("el2n", blank), el2n_squared=means.get("el2n_squared", blank),
            grand=means.get("grand", blank), correct=whole("correct"),
            forgotten=whole("forgotten"), first=whole("first"), learned=whole("wrong"), repeated=counts["repeated"],
            lost=counts["lost"],
            at={"el2n": at[:, :, 0], "grand": at[:, :, 1]}, chosen=self.at,
            losses=np.take_along_axis(ring, order, axis=1) if self.ring else ring,
            tokens=self._of_tokens().finish(state.tokens, "count") if self.tokens else None,
        )  # fmt: skip


def _wide(numbers: Any) -> Any:
    """In 32 bits at least: in 8 no number of examples or classes fits. Wider ones stay, and are not cut into range."""
    numbers = jnp.asarray(numbers)
    return numbers.astype(jnp.promote_types(numbers.dtype, jnp.int32))


def _check_kinds(ids: Any, mask: Any, labels: Any, counted: Any) -> None:
    """Raises ShapeError."""
    integer = lambda x: jnp.issubdtype(jnp.asarray(x).dtype, jnp.integer)  # noqa: E731  # one line, used twice
    if jnp.ndim(ids) != 1 or not integer(ids):
        raise ShapeError(f"ids {jnp.asarray(ids).dtype} of shape {list(jnp.shape(ids))} arrived; integers [B] fit")
    if mask is not None and (jnp.shape(mask) != jnp.shape(ids) or jnp.asarray(mask).dtype != bool):
        raise ShapeError(f"a mask {jnp.asarray(mask).dtype} of shape {list(jnp.shape(mask))} arrived for {len(ids)} "
                         "ids; booleans [B] fit (weights > 0)")  # fmt: skip
    if labels is not None and not integer(labels):
        raise ShapeError(f"labels of type {jnp.asarray(labels).dtype} arrived; integers, the numbers of classes, fit")
    if (
        counted is not None
        and labels is not None
        and (jnp.shape(counted) != jnp.shape(labels) or jnp.asarray(counted).dtype != bool)
    ):
        raise ShapeError(f"counted {jnp.asarray(counted).dtype} of shape {list(jnp.shape(counted))} arrived with "
                         f"labels {list(jnp.shape(labels))}; booleans of that shape fit (weights > 0)")  # fmt: skip


def _check_classes(counts: dict[str, np.ndarray]) -> None:
    """Raises DataError."""
    met, classes = counts["met"] > 0, counts["classes"]
    if not met.any():
        raise DataError(f"none of the {len(met)} examples was met: are their ids 0..{len(met) - 1}, and all masked?")
    outside = np.flatnonzero(classes == OUTSIDE)
    if len(outside):
        raise DataError(
            f"{len(outside)} examples had a label outside 0..C-1 of their C logits, first id {outside[0]}: leave rows "
            "without a class out by mask=, or mend the labels"
        )
    known = np.unique(classes[classes > 0])
    if len(known) > 1 or (classes == MIXED).any():
        at = int(np.flatnonzero((classes == MIXED) | ((classes > 0) & (classes != classes[classes != 0][0])))[0])
        raise DataError(f"logits of several numbers of classes arrived ({', '.join(map(str, known))}), first seen at "
                        f"id {at}; one number of classes was wanted")  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1))  # outside of a step's program it would be compiled at each call
def _scattered(its: Collector, distinct: bool, state: State, place: Any, found: dict[str, Any], epoch: Any) -> State:
    """One meeting of each row after the other: most batches hold an id once, and take one round."""
    if distinct:
        return its._met(state, place, found, epoch)
    turn = turns(place)
    last = jnp.max(jnp.where(place < its.count, turn, 0))

    def round_(carry: tuple[Any, State]) -> tuple[Any, State]:
        number, now = carry
        here = jnp.where(turn == number, place, its.count)
        return number + 1, its._met(now, here, found, epoch)

    state = its._met(state, jnp.where(turn == 0, place, its.count), found, epoch)
    return jax.lax.while_loop(lambda carry: carry[0] <= last, round_, (jnp.int32(1), state))[1]


def turns(place: Any) -> Any:
    """How often each row's place stood before in the batch, `[B]`."""
    order = jnp.argsort(place, stable=True)
    held = place[order]
    number = jnp.arange(len(place), dtype=jnp.int32)
    fresh = jnp.concatenate([jnp.ones(1, bool), held[1:] != held[:-1]])
    since = jax.lax.cummax(jnp.where(fresh, number, 0))
    return jnp.zeros(len(place), jnp.int32).at[order].set(number - since)


def _counted(counts: Any, found: dict[str, Any], epoch: Any) -> Any:
    """The counts `[B, 10]` after a meeting."""
    met, correct, right, forgotten, first, wrong, before, repeated, lost, classes = jnp.moveaxis(counts, 1, 0)
    now = found["correct"].astype(jnp.int32) if "correct" in found else jnp.zeros_like(met)
    odd = sum(~jnp.isfinite(found[name]) for name in MEANS if name in found)
    given = found.get("classes", jnp.zeros_like(met))
    joined = jnp.where(given == 0, classes, jnp.where((classes == 0) | (classes == given), given, MIXED))
    joined = jnp.where((classes == OUTSIDE) | (given == OUTSIDE), OUTSIDE, joined)
    epoch = jnp.broadcast_to(jnp.asarray(epoch, jnp.int32), met.shape)
    return jnp.stack([
        met + 1, correct + now, now, forgotten + right * (1 - now), jnp.where((first < 0) & (now > 0), met, first),
        jnp.where(now > 0, wrong, met + 1), epoch, repeated + ((epoch >= 0) & (before == epoch)),
        lost + (odd > 0), joined.astype(jnp.int32),
    ], 1)  # fmt: skip


def stacked(statistics: Sequence[Statistics]) -> dict[str, np.ndarray]:
    """Of several seeds, each statistic `[S, N]`."""
    names = [name for name in Statistics._fields if name not in ("at", "chosen", "losses", "tokens")]
    return {name: np.stack([getattr(each, name) for each in statistics]) for name in names}
