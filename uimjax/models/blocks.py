"""The layers of a transformer (Flax NNX), for one sequence `[T, D]` at a time.

Their choices cover GPT-2, GPT-NeoX, Llama, Mistral, Qwen 2 and 3, SmolLM 3, OLMo 2, BERT and ViT: see `Shape`.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uimjax.errors import UsageError
from uimjax.models.attention import Rotary, attend, rotate

ACTIVATIONS = {
    "gelu": functools.partial(nnx.gelu, approximate=True),
    "gelu_exact": functools.partial(nnx.gelu, approximate=False),
    "relu": nnx.relu,
    "swiglu": nnx.silu,
}


PARTS = ("query", "key", "value", "out", "gate", "up", "down")  # linear layers of a block


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters beside the linear layers `parts` of every block: `x W + scale (x A) B`, A `[I, rank]`, B
    `[rank, O]` (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int
    scale: float
    parts: tuple[str, ...]

    def __post_init__(self):
        if self.rank < 1 or not self.parts or set(self.parts) - set(PARTS):
            raise UsageError(f"adapters want a rank of 1 or more and parts of {', '.join(PARTS)}: {self}")


@dataclass(frozen=True)
class Shape:
    """The choices of a transformer. `kv_heads` 0: as many as `heads`; `head` 0: width / heads numbers each; `hidden` 0:
    4 x width, 8/3 x width with SwiGLU (arXiv 2002.05202).

    `order`: norms "before" attention and feedforward, on their results ("after", OLMo 2), on the sum with what they are
    added to ("sum", BERT), or both parts side by side on norms of their own ("parallel", GPT-NeoX). `query_norm`: RMS
    of queries and keys over each "head" (Qwen 3) or the "whole" (OLMo 2). `biases` of the projections "query" (keys and
    values too), "out" and "mlp"; None: of a feedforward without a gate. `windows`: how many positions each layer sees
    back to, its own counted; 0: all; (): all, in all layers. `unturned`: layers without rotary positions. `scanned`:
    layers stacked and compiled once. `remat`: a layer's activations are computed again on the way back. `lora`:
    adapters.
    """

    vocabulary: int
    length: int = 64
    layers: int = 2
    width: int = 128
    heads: int = 4
    kv_heads: int = 0
    hidden: int = 0
    positions: Literal["learned", "rotary"] = "rotary"
    norm: Literal["layer", "rms"] = "rms"
    mlp: Literal["gelu", "gelu_exact", "relu", "swiglu"] = "swiglu"
    tied: bool = True
    head: int = 0
    rotary: Rotary = Rotary()
    order: Literal["before", "after", "sum", "parallel"] = "before"
    query_norm: Literal["none", "head", "whole"] = "none"
    biases: tuple[str, ...] | None = None
    windows: tuple[int, ...] = ()
    unturned: tuple[int, ...] = ()
    epsilon: float = 1e-6
    scanned: bool = False
    remat: bool = False
    lora: Lora | None = None

    def __post_init__(self):
        if min(self.vocabulary, self.length, self.layers, self.width, self.heads) < 1:
            raise UsageError(f"vocabulary, length, layers, width and heads of a transformer should be positive: {self}")
        if not self.head and self.width % self.heads:
            raise UsageError(f"width {self.width} does not divide over {self.heads} heads; choose a multiple")
        if self.heads % self.groups:
            raise UsageError(f"{self.heads} heads cannot share {self.groups} key-value heads evenly")
        if self.positions == "rotary" and self.rotary.turning(self.per) % 2:
            raise UsageError(f"rotary positions turn pairs: {self.rotary.turning(self.per)} numbers a head is odd")
        if len(self.windows) not in (0, self.layers) or min(self.windows, default=0) < 0:
            raise UsageError(f"windows {self.windows}: none, or one for each of {self.layers} layers, was wanted")
        if not set(self.unturned) <= set(range(self.layers)):
            raise UsageError(f"layers {self.unturned} are to go without rotary positions and there are {self.layers}")

    @property
    def groups(self) -> int:
        return self.kv_heads or self.heads

    @property
    def per(self) -> int:
        return self.head or self.width // self.heads

    @property
    def between(self) -> int:
        return self.hidden or (-(-8 * self.width // 3) if self.mlp == "swiglu" else 4 * self.width)

    def biased(self, part: str) -> bool:
        return part in (("mlp",) if self.biases is None and self.mlp != "swiglu" else self.biases or ())


def norm(shape: Shape, rngs: nnx.Rngs, width: int = 0) -> nnx.Module:
    kind = nnx.RMSNorm if shape.norm == "rms" else nnx.LayerNorm
    return kind(width or shape.width, epsilon=shape.epsilon, use_fast_variance=False, rngs=rngs)


class Adapted(nnx.Linear):
    """A linear layer with an adapter, which changes nothing at first: B is 0."""

    def __init__(self, size: int, out: int, lora: Lora, *, use_bias: bool, rngs: nnx.Rngs):
        super().__init__(size, out, use_bias=use_bias, rngs=rngs)
        self.scale = lora.scale
        self.lora_a = nnx.Param(nnx.initializers.normal(lora.rank**-0.5)(rngs.params(), (size, lora.rank), jnp.float32))
        self.lora_b = nnx.Param(jnp.zeros((lora.rank, out), jnp.float32))

    def __call__(self, inputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # no other sharding
        plain = super().__call__(inputs)
        beside = (inputs @ self.lora_a[...]) @ self.lora_b[...]  # an adapter may have more digits than its base
        return plain + (self.scale * beside).astype(plain.dtype)


def linear(shape: Shape, part: str, size: int, out: int, use_bias: bool, rngs: nnx.Rngs) -> nnx.Linear:
    if shape.lora is not None and part in shape.lora.parts:
        return Adapted(size, out, shape.lora, use_bias=use_bias, rngs=rngs)
    return nnx.Linear(size, out, use_bias=use_bias, rngs=rngs)


class Attention(nnx.Module):
    """Self-attention; `groups` key-value heads are each shared by `heads / groups` query heads."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.shape, each, shared = shape, shape.heads * shape.per, shape.groups * shape.per
        made = {
            part: linear(shape, part, shape.width, size, shape.biased("query"), rngs)
            for part, size in (("query", each), ("key", shared), ("value", shared))
        }
        self.query, self.key, self.value = made["query"], made["key"], made["value"]
        self.out = linear(shape, "out", each, shape.width, shape.biased("out"), rngs)
        if shape.query_norm != "none":
            sizes = (shape.per, shape.per) if shape.query_norm == "head" else (each, shared)
            self.query_norm, self.key_norm = (norm(shape, rngs, size) for size in sizes)

    def __call__(self, x: Any, place: Any, seen: Any, turn: Any) -> Any:
        shape, time = self.shape, x.shape[0]
        q, k = self.query(x), self.key(x)
        if shape.query_norm == "whole":
            q, k = self.query_norm(q), self.key_norm(k)  # pyright: ignore[reportCallIssue]  # norms, which are callable
        q, k = q.reshape(time, shape.heads, shape.per), k.reshape(time, shape.groups, shape.per)
        if shape.query_norm == "head":
            q, k = self.query_norm(q), self.key_norm(k)  # pyright: ignore[reportCallIssue]
        if turn is not False:
            turned = rotate(q, place, shape.rotary), rotate(k, place, shape.rotary)
            q, k = turned if turn is True else jax.tree.map(lambda a, b: jnp.where(turn, a, b), turned, (q, k))
        v = self.value(x).reshape(time, shape.groups, shape.per)
        return self.out(attend(q, k, v, seen).reshape(time, -1))


class Feedforward(nnx.Module):
    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.kind = shape.mlp
        plain = functools.partial(linear, shape, use_bias=shape.biased("mlp"), rngs=rngs)
        if shape.mlp == "swiglu":
            self.gate = plain("gate", shape.width, shape.between)
        self.up = plain("up", shape.width, shape.between)
        self.down = plain("down", shape.between, shape.width)

    def __call__(self, x: Any) -> Any:
        act = ACTIVATIONS[self.kind]
        return self.down(act(self.gate(x)) * self.up(x) if self.kind == "swiglu" else act(self.up(x)))


class Block(nnx.Module):
    def __init__(self, shape: Shape, rngs: nnx.Rngs):
        self.order = shape.order
        self.before, self.attention = norm(shape, rngs), Attention(shape, rngs)
        self.between, self.feedforward = norm(shape, rngs), Feedforward(shape, rngs)

    def __call__(self, x: Any, place: Any, seen: Any, turn: Any) -> Any:
        one: Any = self.before
        two: Any = self.between  # norms, which are callable
        if self.order == "parallel":
            return x + self.attention(one(x), place, seen, turn) + self.feedforward(two(x))
        if self.order == "after":
            x = x + one(self.attention(x, place, seen, turn))
            return x + two(self.feedforward(x))
        if self.order == "sum":
            x = one(x + self.attention(x, place, seen, turn))
            return two(x + self.feedforward(x))
        x = x + self.attention(one(x), place, seen, turn)
        return x + self.feedforward(two(x))


def blocks(shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
    """The layers of a shape: a list, or one block whose parameters are those of all along a first axis."""
    each = [Block(shape, rngs) for _ in range(shape.layers)]
    if not shape.scanned:
        return nnx.List(each)
    graph, first = nnx.split(each[0])
    states = [first, *(nnx.split(block)[1] for block in each[1:])]
    return nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))


def run(shape: Shape, layers: Any, x: Any, place: Any, seen: Any) -> Any:
    """`[T, D]` through all `layers`; `place` `[T]`; `seen` `[T, T]`, what each position sees where no window is set."""
    time = jnp.arange(x.shape[0])
    windows = [size or len(time) for size in shape.windows or (0,) * shape.layers]
    turns = [shape.positions == "rotary" and k not in shape.unturned for k in range(shape.layers)]

    def layer(graph: Any, state: Any, x: Any, window: Any, turn: Any) -> Any:
        whole = isinstance(window, int) and window >= len(time)
        near = seen if whole else seen & (time[:, None] - time[None, :] < window)
        call = lambda state, x: nnx.merge(graph, state)(x, place, near, turn)  # noqa: E731
        return (jax.checkpoint(call) if shape.remat else call)(state, x)

    if not shape.scanned:
        for block, window, turn in zip(layers, windows, turns, strict=True):
            x = layer(*nnx.split(block), x, window, turn)
        return x
    graph, stack = nnx.split(layers)
    alike = len(set(zip(windows, turns, strict=True))) == 1

    def body(x: Any, its: Any) -> Any:
        state, choice = its
        return layer(graph, state, x, *(choice or (windows[0], turns[0]))), None

    return jax.lax.scan(body, x, (stack, () if alike else (np.array(windows), np.array(turns))))[0]
