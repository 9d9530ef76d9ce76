"""What one meeting tells of an example: its loss, margin, probability, whether it is right, and its error."""

from typing import Any

import jax
import jax.numpy as jnp

from uimjax.errors import ShapeError, UnknownNameError

MARGINS = ("logits", "probabilities")


def of_classes(logits: Any, labels: Any, margins: str = "logits") -> dict[str, Any]:
    """Signals of a batch of logits `[..., C]` and labels `[...]`, each `[...]` in the logits' precision, float32 at
    least:

    - `loss` = -log p_y (nats), p = softmax(z);
    - `margin` = z_y - max_{k != y} z_k of the logits, as AUM is defined (arXiv 2001.10528); of the probabilities with
      `margins="probabilities"`, which is another score;
    - `probability` p_y; `correct`: y is the largest logit (the first of equals);
    - `el2n` = |p - onehot(y)|_2 (arXiv 2107.07075), and its square `el2n_squared`.

    Labels outside 0..C-1 have no signal: whoever calls sorts them out.

    Raises:
        ShapeError: labels of another shape, or fewer than two classes. UnknownNameError: no such margin.
    """
    if margins not in MARGINS:
        raise UnknownNameError("kind of margin", margins, MARGINS)
    if logits.ndim < 1 or tuple(labels.shape) != tuple(logits.shape[:-1]):
        raise ShapeError(
            f"labels {list(labels.shape)} arrived with logits {list(logits.shape)}; [...] and [..., C] fit"
        )
    if logits.shape[-1] < 2:
        raise ShapeError(
            f"logits of shape {list(logits.shape)} arrived; two classes at least were wanted (of one logit z: [0, z])"
        )
    z = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    at = labels[..., None].astype(jnp.int32)
    log_p = z - jax.nn.logsumexp(z, axis=-1, keepdims=True)
    p = jnp.exp(log_p)
    mine, p_y = (jnp.take_along_axis(x, at, axis=-1)[..., 0] for x in (log_p, p))
    places = jnp.arange(z.shape[-1], dtype=jnp.int32).reshape((1,) * (z.ndim - 1) + (-1,))
    others = jnp.where(places == at, -jnp.inf, z if margins == "logits" else p)
    own = jnp.take_along_axis(z, at, axis=-1)[..., 0] if margins == "logits" else p_y
    wrong = jnp.where(places == at, 0.0, p)
    square = jnp.sum(wrong * wrong, axis=-1) + jnp.sum(wrong, axis=-1) ** 2  # 1 - p_y would be 0 once it is learned
    return {
        "loss": -mine, "margin": own - jnp.max(others, axis=-1), "probability": p_y,
        "correct": jnp.argmax(z, axis=-1) == labels, "el2n": jnp.sqrt(square),
        "el2n_squared": square,
    }  # fmt: skip


def of_sequences(signals: dict[str, Any], counted: Any) -> dict[str, Any]:
    """Signals of sequences `[B]` from those of their tokens `[B, T]`: means over the tokens that are `counted` `[B, T]`
    (of `loss`: the sum), and `correct` where every one of them is: the greedy continuation is the text."""
    names = [name for name in signals if name != "correct"]
    kept = [signals[name] for name in names] + [~signals["correct"], jnp.ones_like(counted)]
    kept = [jnp.where(counted, values, 0).astype(signals["loss"].dtype) for values in kept]
    *sums, wrong, count = jnp.sum(jnp.stack(kept), axis=-1)  # one pass: a small step on a GPU pays by the kernel
    found = {
        name: total if name == "loss" else total / jnp.maximum(count, 1)
        for name, total in zip(names, sums, strict=True)
    }
    return found | {"correct": (wrong == 0) & (count > 0)}
