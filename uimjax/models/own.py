"""Language models of the reader's own, Flax NNX or Linen: whatever maps tokens to the logits of the next."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from uimjax.errors import ShapeError, UsageError
from uimjax.models.decoder import build, language_task
from uimjax.task import Task

PROBED = 8  # tokens that a model is tried on; nothing is computed


class Own(NamedTuple):
    """A task of rows `{"tokens", "counted"}`, and the parameters: numbers of an NNX module, shapes of a Linen one."""

    task: Task
    params: Any


def language_model(module: Any) -> Own:
    """Of a module that takes tokens `[T]`, or batches `[B, T]`, to logits `[T, V]` or `[B, T, V]`.

    Raises:
        UsageError: no module of Flax, or state that is no parameter. ShapeError: it takes or gives something else.
    """
    if isinstance(module, nnx.Module):
        task, params = build(module)
        assert task.outputs is not None
        graph = nnx.split(module, nnx.Param, ...)[0]
        call = lambda params, tokens: nnx.merge(graph, params, copy=True)(tokens)  # noqa: E731  # one line
        return Own(task if _single(call, params) else language_task(_first(call)), params)
    linen = _linen()
    if linen is None or not isinstance(module, linen.Module):
        raise UsageError(f"{type(module).__name__} arrived; a flax.nnx.Module or flax.linen.Module was wanted")
    params = _shapes(module)
    call = functools.partial(_applied, module)
    return Own(language_task(_plain(call) if _single(call, params) else _first(call)), params)


def _linen() -> Any:
    try:
        from flax import linen
    except ImportError:
        return None
    return linen


def _shapes(module: Any) -> Any:
    """Of a Linen module's parameters."""
    failed: list[str] = []
    for shape in ((PROBED,), (1, PROBED)):
        try:
            made = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.int32))
        except Exception as error:  # it is the reader's own code
            failed.append(f"{list(shape)}: {type(error).__name__}: {error}")
            continue
        if rest := sorted(set(made) - {"params"}):
            raise UsageError(f"the module has {', '.join(rest)} beside its params; build it for evaluation")
        return made["params"]
    raise ShapeError(f"{type(module).__name__} takes neither tokens [T] nor [B, T]. {' '.join(failed)}")


def _applied(module: Any, params: Any, tokens: Any) -> Any:
    return module.apply({"params": params}, tokens)


def _single(call: Any, params: Any) -> bool:
    """Does it take one row? A batch of one is tried where it does not. Raises ShapeError."""
    failed: list[str] = []
    for shape in ((PROBED,), (1, PROBED)):
        try:
            found = jax.eval_shape(call, params, jax.ShapeDtypeStruct(shape, jnp.int32))
        except Exception as error:  # it is the reader's own code
            failed.append(f"{list(shape)}: {type(error).__name__}: {error}")
            continue
        if getattr(found, "ndim", 0) == len(shape) + 1 and found.shape[: len(shape)] == shape:
            return len(shape) == 1
        failed.append(f"{list(shape)} gives {found}")
    raise ShapeError(f"a model of tokens [T] to logits [T, V] was wanted, or of batches of them. {' '.join(failed)}")


def _plain(call: Any) -> Any:
    return lambda params, example: call(params, example["tokens"])


def _first(call: Any) -> Any:
    return lambda params, example: call(params, example["tokens"][None])[0]
