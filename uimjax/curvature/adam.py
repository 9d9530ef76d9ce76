"""The metric that Adam trained in: the diagonal `sqrt(v_hat) + eps` of its second moments, from an Optax state.

`H^-1 g` is then the update that Adam would take for g alone, without momentum, as LESS compares training rows with a
validation gradient (Xia et al. 2024, arXiv 2402.04333).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from uimjax.curvature import blocks
from uimjax.curvature.blocks import Laid
from uimjax.curvature.rotated import Rotated
from uimjax.errors import MismatchError, NonFiniteError, UsageError


@dataclass(frozen=True)
class Adam:
    """A choice; `beta2` undoes the bias of a young average, `1 / (1 - beta2^count)`."""

    eps: float = 1e-8
    beta2: float = 0.999

    def __post_init__(self):
        if not self.eps > 0 or not 0 <= self.beta2 < 1:
            raise UsageError(f"eps {self.eps} should be above 0 and beta2 {self.beta2} in [0, 1)")

    def __str__(self) -> str:
        return "adam"


def metric(choice: Adam, laid: Laid, state: Any) -> Rotated:
    """`sqrt(v_hat)` by block, `eps` its damping; `state` is an optimizer's state that holds Adam's moments somewhere
    (`nu`, `count`), or the second moments themselves in the parameters' structure (then taken as they are).

    Raises:
        UsageError: no state, or one without second moments. MismatchError: those of other parameters.
        NonFiniteError: moments below zero or not finite.
    """
    nu, count = _moments(state)
    leaves = jax.tree_util.tree_flatten_with_path(nu)[0]
    flat = {jax.tree_util.keystr(path, simple=True, separator="/") or "params": x for path, x in leaves}
    shapes = {leaf.path: leaf.shape for leaf in laid.sites.used}
    odd = [path for path, shape in shapes.items() if path not in flat or tuple(flat[path].shape) != shape]
    if odd:
        raise MismatchError(
            f"the optimizer's second moments have no {odd[0]} of shape {list(shapes[odd[0]])}: they belong to another "
            f"model, or these parameters were not trained; theirs are {sorted(flat)[:6]}"
        )
    scale = 1.0 if count is None else 1.0 / max(1.0 - choice.beta2 ** float(count), 1e-12)
    roots = {}
    for path in shapes:
        value = jnp.asarray(flat[path], jnp.float32)
        if not bool((jnp.isfinite(value) & (value >= 0)).all()):
            raise NonFiniteError(f"the optimizer's second moments of {path} are negative or not finite")
        roots[path] = jnp.sqrt(scale * value)[None]
    plain = Laid(laid.sites, ())
    values = {path: block[0] for path, block in blocks.together(plain, roots).items()}
    return Rotated(dict.fromkeys(values, (None, None)), values, dict.fromkeys(values, choice.eps))


def held(state: Any) -> bool:
    """Does an optimizer's state hold Adam's second moments somewhere?"""
    return _holding(state) is not None


def _moments(state: Any) -> tuple[Any, Any]:
    """(second moments, how many steps they average or None) of an Optax state, wherever it holds them."""
    if state is None:
        raise UsageError(
            "this method reads Adam's second moments: pass checkpoints that hold them, "
            "Checkpoint(params, rate, optimizer=opt_state)"
        )
    held = _holding(state)
    return (held.nu, getattr(held, "count", None)) if held is not None else (state, None)


def _holding(state: Any) -> Any:
    if hasattr(state, "nu"):
        return state
    if isinstance(state, (tuple, list)):
        found = [one for part in state if (one := _holding(part)) is not None]
        return found[0] if found else None
    if isinstance(state, dict):
        return _holding(list(state.values()))
    inner = getattr(state, "inner_state", None)
    return None if inner is None else _holding(inner)
