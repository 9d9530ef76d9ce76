"""Attention of one sequence `[T, D]`, written out: rotary positions and their stretchings, shared heads, windows.

The library's own casts its softmax to float32 on some versions, which a float64 oracle would see; here sums and softmax
are of at least float32 and never of less than what arrives.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from uimjax.errors import UsageError

Stretch = Literal["none", "linear", "llama3", "yarn"]


@dataclass(frozen=True)
class Rotary:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): pair k of a head turns by `place * base^(-2k/D)`.

    `share`: of a head's numbers that turn, the first ones. `stretch`, for sequences `factor` times as long as the
    `trained` ones: "linear" turns everything so much slower; "llama3" (Llama 3.1) only pairs whose wave is longer than
    `trained / low`, none shorter than `trained / high`, and those between in part; "yarn" (Peng et al. 2023, arXiv
    2309.00071) ramps over pairs that turn `low` to `high` times in the trained length, and scales what turns by
    `attention` (0: .1 ln(factor) + 1).
    """

    base: float = 10000.0
    share: float = 1.0
    stretch: Stretch = "none"
    factor: float = 1.0
    trained: int = 0
    low: float = 1.0
    high: float = 4.0
    attention: float = 0.0
    whole_pairs: bool = True  # yarn: the ramp begins and ends at whole pairs

    def __post_init__(self):
        if not (self.base > 1 and 0 < self.share <= 1 and self.factor > 0):
            raise UsageError(f"rotary positions want a base over 1, a share in (0, 1] and a factor over 0: {self}")
        if self.stretch in ("llama3", "yarn") and (self.trained < 1 or self.low == self.high):
            raise UsageError(f"{self.stretch} wants the trained length and two bounds that differ: {self}")

    def turning(self, head: int) -> int:
        """How many of a head's numbers turn."""
        return int(head * self.share)

    def speeds(self, head: int) -> tuple[np.ndarray, float]:
        """(radians a place `[turning / 2]`, what cosine and sine are multiplied by)."""
        size = self.turning(head)
        plain = self.base ** -(np.arange(0, size, 2) / size)
        if self.stretch == "none":
            return plain, 1.0
        if self.stretch == "linear":
            return plain / self.factor, 1.0
        if self.stretch == "llama3":
            turns = self.trained * plain / (2 * np.pi)
            kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
            return plain * (kept + (1 - kept) / self.factor), 1.0
        first, last = (self._pair(turns, size) for turns in (self.high, self.low))
        if self.whole_pairs:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, size - 1)
        slow = np.clip((np.arange(size // 2) - first) / max(last - first, 1e-3), 0, 1)
        return plain * (1 - slow + slow / self.factor), self.attention or 0.1 * math.log(max(self.factor, 1)) + 1

    def _pair(self, turns: float, size: int) -> float:
        """Which pair turns so often in the trained length."""
        return size * math.log(self.trained / (turns * 2 * np.pi)) / (2 * math.log(self.base))


def rotate(x: Any, place: Any, rotary: Rotary) -> Any:
    """Turn the pairs `(x[..., k], x[..., k + S/2])` of the first S numbers of each head of `[T, H, D]`."""
    size = rotary.turning(x.shape[-1])
    speeds, scale = rotary.speeds(x.shape[-1])
    wide = jnp.promote_types(x.dtype, jnp.float32)
    angle = place[:, None].astype(wide) * jnp.asarray(speeds, wide)[None, :]
    cos, sin = ((f(angle) * scale).astype(x.dtype)[:, None, :] for f in (jnp.cos, jnp.sin))
    one, two, rest = x[..., : size // 2], x[..., size // 2 : size], x[..., size:]
    turned = [one * cos - two * sin, two * cos + one * sin]
    return jnp.concatenate(turned if size == x.shape[-1] else [*turned, rest], -1)


def attend(q: Any, k: Any, v: Any, seen: Any) -> Any:
    """`[T, H, D]` of queries `[T, H, D]` and keys and values `[S, G, D]`, each shared by H/G heads (GQA, Ainslie et al.
    2023, arXiv 2305.13245); `seen` `[T, S]` bool."""
    time, heads, per = q.shape
    groups = k.shape[1]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q = jnp.moveaxis(q, 1, 0).reshape(groups, heads // groups * time, per)  # heads first: plain products of matrices
    k, v = jnp.moveaxis(k, 1, 0), jnp.moveaxis(v, 1, 0)
    logits = jnp.einsum("gtd,gsd->gts", q, k, preferred_element_type=wide) / jnp.sqrt(jnp.asarray(per, wide))
    hidden = jnp.tile(~seen, (heads // groups, 1))
    weights = jax.nn.softmax(jnp.where(hidden[None], -jnp.inf, logits), axis=-1).astype(v.dtype)
    return jnp.moveaxis(jnp.einsum("gts,gsd->gtd", weights, v).reshape(heads, time, per), 0, 1)


def places(tokens: Any, segments: Any = None) -> Any:
    """`[T]`: the position of each token in its own document; `segments` `[T]` tell documents of one row apart."""
    time = jnp.arange(tokens.shape[0])
    if segments is None:
        return time
    starts = jnp.concatenate([jnp.ones(1, bool), segments[1:] != segments[:-1]])
    return time - jax.lax.cummax(jnp.where(starts, time, 0))
