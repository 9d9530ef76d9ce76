"""One decoder-only transformer (Flax NNX), one document `[T]` at a time, and the task that trains it.

Positions learned or rotary (arXiv 2104.09864), LayerNorm or RMSNorm, GELU or SwiGLU, heads that share keys and values
or not (GQA, arXiv 2305.13245), output tied to the embedding or not. Attention is written out: the library's own casts
its softmax to float32 on some versions, which a float64 oracle would see.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from uimjax.errors import UsageError
from uimjax.task import Task


@dataclass(frozen=True)
class Shape:
    """A decoder's choices. `kv_heads` 0: as many as `heads`; `hidden` 0: 4 x width (GELU), 8/3 x width (SwiGLU)."""

    vocabulary: int
    length: int = 64
    layers: int = 2
    width: int = 128
    heads: int = 4
    kv_heads: int = 0
    hidden: int = 0
    positions: Literal["learned", "rotary"] = "rotary"
    norm: Literal["layer", "rms"] = "rms"
    mlp: Literal["gelu", "swiglu"] = "swiglu"
    tied: bool = True

    def __post_init__(self):
        if min(self.vocabulary, self.length, self.layers, self.width, self.heads) < 1:
            raise UsageError(f"vocabulary, length, layers, width and heads of a decoder should be positive: {self}")
        if self.width % self.heads:
            raise UsageError(f"width {self.width} does not divide over {self.heads} heads; choose a multiple")
        if self.heads % self.groups:
            raise UsageError(f"{self.heads} heads cannot share {self.groups} key-value heads evenly")
        if self.positions == "rotary" and (self.width // self.heads) % 2:
            raise UsageError(f"rotary positions turn pairs: {self.width // self.heads} numbers a head is odd")

    @property
    def groups(self) -> int:
        return self.kv_heads or self.heads

    @property
    def between(self) -> int:
        return self.hidden or (4 * self.width if self.mlp == "gelu" else -(-8 * self.width // 3))


def _norm(shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
    return (nnx.RMSNorm if shape.norm == "rms" else nnx.LayerNorm)(shape.width, rngs=rngs)


def places(tokens: Any, segments: Any = None) -> Any:
    """`[T]`: the position of each token in its own document; `segments` `[T]` tell documents of one row apart."""
    time = jnp.arange(tokens.shape[0])
    if segments is None:
        return time
    starts = jnp.concatenate([jnp.ones(1, bool), segments[1:] != segments[:-1]])
    return time - jax.lax.cummax(jnp.where(starts, time, 0))


def rotate(x: Any, place: Any, base: float = 10000.0) -> Any:
    """Turn the pairs `(x[..., k], x[..., k + D/2])` of `[T, H, D]` by the angle `place / base^(2k/D)`."""
    half = x.shape[-1] // 2
    angle = place[:, None] / base ** (jnp.arange(half)[None, :] / half)
    cos, sin = (f(angle).astype(x.dtype)[:, None, :] for f in (jnp.cos, jnp.sin))
    one, two = x[..., :half], x[..., half:]
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], -1)


class Attention(nnx.Module):
    """Causal self-attention; `groups` key-value heads are each shared by `heads / groups` query heads."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.shape = shape
        per = shape.width // shape.heads
        plain = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.query = plain(shape.width, shape.heads * per)
        self.key_value = plain(shape.width, 2 * shape.groups * per)
        self.out = plain(shape.heads * per, shape.width)

    def __call__(self, x: Any, place: Any, seen: Any) -> Any:
        shape, time = self.shape, x.shape[0]
        per, groups = shape.width // shape.heads, shape.groups
        q = self.query(x).reshape(time, shape.heads, per)
        both = self.key_value(x).reshape(time, 2, groups, per)
        k, v = both[:, 0], both[:, 1]
        if shape.positions == "rotary":
            q, k = rotate(q, place), rotate(k, place)
        q = q.reshape(time, groups, shape.heads // groups, per)
        logits = jnp.einsum("tghd,sgd->ghts", q, k) / jnp.sqrt(per).astype(x.dtype)
        logits = jnp.where(seen[None, None], logits, -jnp.inf)
        mixed = jnp.einsum("ghts,sgd->tghd", jax.nn.softmax(logits, axis=-1), v)
        return self.out(mixed.reshape(time, -1))


class Feedforward(nnx.Module):
    """GELU, or SwiGLU (arXiv 2002.05202)."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.gated = shape.mlp == "swiglu"
        plain = functools.partial(nnx.Linear, use_bias=not self.gated, rngs=rngs)
        self.up = plain(shape.width, shape.between * (2 if self.gated else 1))
        self.down = plain(shape.between, shape.width)

    def __call__(self, x: Any) -> Any:
        x = self.up(x)
        if self.gated:
            gate, x = jnp.split(x, 2, axis=-1)
            return self.down(nnx.silu(gate) * x)
        return self.down(nnx.gelu(x))


class Block(nnx.Module):
    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.before, self.attention = _norm(shape, rngs), Attention(shape, rngs)
        self.between, self.feedforward = _norm(shape, rngs), Feedforward(shape, rngs)

    def __call__(self, x: Any, place: Any, seen: Any) -> Any:
        x = x + self.attention(self.before(x), place, seen)  # pyright: ignore[reportCallIssue]  # a norm, which is callable
        return x + self.feedforward(self.between(x))  # pyright: ignore[reportCallIssue]


class Decoder(nnx.Module):
    """Tokens `[T]` to the logits `[T, V]` of the token AFTER each; `features` `[T, D]` are the last layer's.

    With `segments` `[T]`, documents packed in one row: positions start anew in each, and none sees another.
    """

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.shape = shape
        small = nnx.initializers.normal(0.02)
        self.embedding = nnx.Param(small(rngs.params(), (shape.vocabulary, shape.width), jnp.float32))
        if shape.positions == "learned":
            self.position = nnx.Param(small(rngs.params(), (shape.length, shape.width), jnp.float32))
        self.blocks = nnx.List([Block(shape, rngs) for _ in range(shape.layers)])
        self.last = _norm(shape, rngs)
        if not shape.tied:
            self.head = nnx.Linear(shape.width, shape.vocabulary, use_bias=False, rngs=rngs)

    def features(self, tokens: Any, segments: Any = None) -> Any:
        x, place = self.embedding[...][tokens], places(tokens, segments)
        seen = jnp.tril(jnp.ones((tokens.shape[0], tokens.shape[0]), bool))
        if segments is not None:
            seen = seen & (segments[:, None] == segments[None, :])
        if self.shape.positions == "learned":
            x = x + (self.position[: tokens.shape[0]] if segments is None else self.position[...][place])
        for block in self.blocks:
            x = block(x, place, seen)
        return self.last(x)  # pyright: ignore[reportCallIssue]  # a norm, which is callable

    def __call__(self, tokens: Any, segments: Any = None) -> Any:
        found = self.features(tokens, segments)
        return found @ self.embedding[...].T if self.shape.tied else self.head(found)


def build_decoder(shape: Shape, seed: int) -> tuple[Task, Any]:
    """(task, parameters). The task is one object per shape, so that compiled programs are shared."""
    return build(Decoder(shape, nnx.Rngs(seed)))


def build(model: nnx.Module) -> tuple[Task, Any]:
    """(task, parameters) of any module that maps tokens `[T]` to the logits `[T, V]` of the token after each.

    Raises:
        UsageError: something else arrived, or state that is no parameter (switch dropout and batch norm off first).
    """
    if not isinstance(model, nnx.Module):
        raise UsageError(f"{type(model).__name__} arrived; a flax.nnx.Module of tokens [T] was wanted")
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise UsageError(
            "the model has state that is no parameter; build it for evaluation (deterministic, no dropout)"
        )
    try:
        return _task_cached(graph), params
    except TypeError:  # a graph with something unhashable in it: no shared programs
        return decoder_task(graph), params


@functools.lru_cache(maxsize=16)
def _task_cached(graph: Any) -> Task:
    return decoder_task(graph)


def decoder_task(graph: Any) -> Task:
    """The task of one row `{"tokens": [T] int32, "counted": [T] float32}` for an NNX graph of a `Decoder`; rows of
    packed documents also hold `"segments"` `[T]` (`packed`).

    `loss` `[T]`, nats: entry t is -log p(token t | the tokens before), times `counted[t]`; entry 0 is 0. `outputs` are
    the logits `[T, V]`; `features` the mean over counted positions of the model's `features` (else logits), `[D]`.
    """

    def model(params: Any) -> Any:
        return nnx.merge(graph, params, copy=True)

    def outputs(params: Any, example: Any) -> Any:
        return model(params)(example["tokens"], **_segments(example))

    def loss(params: Any, example: Any) -> Any:
        tokens, counted = example["tokens"], example["counted"]
        logits = outputs(params, example)  # kept whole: cutting off the last row copies them forwards and backwards
        found = jnp.take_along_axis(logits, jnp.roll(tokens, -1)[:, None], axis=-1)[:, 0]
        nll = jax.nn.logsumexp(logits, axis=-1) - found
        counted = counted[1:]
        if "segments" in example:  # the first token of a document is predicted by nothing
            counted = counted * (example["segments"][1:] == example["segments"][:-1])
        return jnp.concatenate([jnp.zeros(1, nll.dtype), nll[:-1] * counted])

    def features(params: Any, example: Any) -> Any:
        found, weight = model(params), example["counted"][:, None]
        represent = found.features if callable(getattr(found, "features", None)) else found
        each = represent(example["tokens"], **_segments(example))
        return (each * weight).sum(0) / jnp.maximum(weight.sum(), 1.0)

    return Task(loss=loss, outputs=outputs, features=features)


def _segments(example: Any) -> dict[str, Any]:
    return {"segments": example["segments"]} if "segments" in example else {}


def packed(task: Task, documents: int) -> Task:
    """The same task for rows of up to `documents` documents each, told apart by their `"segments"` (`rows.pack`)."""
    return dataclasses.replace(task, segments=_row_segments, documents=documents)


def _row_segments(example: Any) -> Any:
    return example["segments"]
