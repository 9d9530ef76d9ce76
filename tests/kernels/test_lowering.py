"""Kernels are lowered for the chips that this machine lacks: what Pallas refuses is seen before it is run there."""

import jax
import jax.numpy as jnp
import pytest

from uimjax_kernels import gram_square, project, topk_dot
from uimjax_kernels.gram_square.api import _TABLE as GRAM
from uimjax_kernels.project.api import _TABLE as PROJECT
from uimjax_kernels.topk_dot.api import _TABLE as TOPK

PLATFORMS = {"pallas_gpu": "cuda", "pallas_tpu": "tpu"}


def spec(shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


def scored(name, blocks):
    def call(queries, rows, scale, blocks=None):
        return topk_dot(queries, rows, scale, 20, blocks, implementation=name)

    rows, scale = spec((1000, 512), jnp.int8), spec((1000,), jnp.float32)
    return call, (spec((64, 512), jnp.float32), rows, scale, *([spec((1000, 4), jnp.float32)] if blocks else []))


def calls():
    for name in TOPK:
        yield name, "topk_dot", *scored(name, False)
        yield name, "topk_dot of blocks", *scored(name, True)
    a, g = spec((8, 100, 768)), spec((8, 100, 300))
    for name in GRAM:
        yield name, "gram_square", lambda *x, name=name: gram_square(*x, implementation=name), (a, g)
    for name in PROJECT:
        inputs = spec((20, 5000), jnp.float32), spec((2,), jnp.uint32)
        yield name, "project", lambda *x, name=name: project(*x, 2048, implementation=name), inputs


@pytest.mark.parametrize(
    ("name", "op", "call", "inputs"),
    [pytest.param(*it, id=f"{it[0]}-{it[1]}") for it in calls() if it[0] in PLATFORMS],
)
def test_lowers(name, op, call, inputs, monkeypatch):  # noqa: ARG001  (op names the case)
    monkeypatch.setattr(jax, "default_backend", lambda: {"pallas_gpu": "gpu", "pallas_tpu": "tpu"}[name])
    made = jax.jit(call).trace(*inputs).lower(lowering_platforms=(PLATFORMS[name],)).as_text()
    assert any(target in made for target in ("triton", "tpu_custom_call")), "a kernel, not a loop of the interpreter"
