"""Small random networks of everything a parameter can meet: factors equal `vmap(grad)` in float64.

24 of them here; `UIMJAX_NIGHTLY=1` draws 300. What it ever found stands below as a test of its own name.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

from tests.programs import brute_force
from uimjax import factors as algebra
from uimjax.taps import capture, sites
from uimjax.task import Task

T, D = 3, 4
NIGHTLY = bool(os.environ.get("UIMJAX_NIGHTLY"))
COUNT = 300 if NIGHTLY else 24


@jax.custom_vjp
def _bent(x, w):
    return x @ w


_bent.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, 3.0 * r[0].T @ g))


@jax.custom_jvp
def _soft(w):
    return jnp.sin(w)


_soft.defjvp(lambda p, t: (_soft(p[0]), 0.5 * t[0]))


def _conv(h, w, stride, groups):
    out = lax.conv_general_dilated(h.T[None], w, (stride,), "SAME", feature_group_count=groups)[0].T
    return jnp.repeat(out, stride, 0)[:T]


def _scan(reverse, nested):
    def apply(p, h, _):
        def layer(h, w):
            return jnp.tanh(h @ w + p["b"][None]), h.sum()

        def body(h, w):
            return lax.scan(layer, h, w, reverse=reverse) if nested else layer(h, w)

        return lax.scan(body, h, p["w"], reverse=reverse)[0]

    return {"w": (2, 2, D, D) if nested else (3, D, D), "b": (D,)}, apply


def _carried(p, h, _):
    def body(carry, x):
        return jnp.tanh(carry @ p["w"] + x), carry

    return lax.scan(body, p["start"], h)[1]


def _moe(p, h, _):
    return jnp.einsum("te,edf,td->tf", jax.nn.softmax(h @ p["route"]), p["bank"], h)


def _normed(p, h, _):
    return h @ (p["v"] * (p["g"] / jnp.sqrt(jnp.sum(p["v"] ** 2, 0)))[None])


def _gated(p, h, _):
    gate, up = jnp.split(p["w"], 2, 1)
    return jax.nn.silu(h @ gate) * (h @ up)


def _lora(p, h, _):
    return h @ lax.stop_gradient(p["w"]) + h @ p["a"] @ p["b"]


def _branch(p, h, e):
    return lax.cond(e["x"].sum() > 0, lambda: h @ p["w"], lambda: h * p["b"][None])


# name -> (shapes of its parameters, apply(params, h [T, D], example) -> [T, D])
OPS = {
    "dense": ({"w": (D, D)}, lambda p, h, _: h @ p["w"]),
    "transposed": ({"w": (D, D)}, lambda p, h, _: jnp.einsum("td,ed->te", h, p["w"])),
    "left": ({"w": (T, T)}, lambda p, h, _: p["w"] @ h),
    "fused": ({"w": (D, 3 * D)}, lambda p, h, _: (h @ p["w"][:, :D]) * (h @ p["w"][:, 2 * D :])),
    "split": ({"w": (D, 2 * D)}, _gated),
    "overlapping": ({"w": (D, D)}, lambda p, h, _: h @ p["w"] + h[:, :3] @ p["w"][:3] + h[:, 1:] @ p["w"][1:]),
    "picked": ({"w": (3, D, D)}, lambda p, h, _: h @ p["w"][2] @ p["w"][0]),
    "bias": ({"b": (D,)}, lambda p, h, _: h + p["b"][None]),
    "biases": ({"b": (T + 2, D)}, lambda p, h, _: h - p["b"][1 : T + 1]),
    "scalar": ({"s": ()}, lambda p, h, _: h * p["s"]),
    "scale": ({"s": (1, D)}, lambda p, h, _: h * (1 + p["s"])),
    "divide": ({"s": (D,)}, lambda p, h, _: h / (2 + jnp.square(p["s"]))[None]),
    "embed": ({"e": (5, D)}, lambda p, h, e: h + p["e"][e["tokens"]]),
    "one_hot": ({"e": (5, D)}, lambda p, h, e: h + jax.nn.one_hot(e["tokens"], 5, dtype=h.dtype) @ p["e"]),
    "tied": ({"e": (5, D)}, lambda p, h, e: (h + p["e"][e["tokens"]]) @ p["e"].T @ p["e"] / 9),
    "heads": ({"w": (2, 2, 2)}, lambda p, h, _: jnp.einsum("tnd,nde->tne", h.reshape(T, 2, 2), p["w"]).reshape(T, D)),
    "moe": ({"route": (D, 3), "bank": (3, D, D)}, _moe),
    "lora": ({"w": (D, D), "a": (D, 2), "b": (2, D)}, _lora),
    "merged": ({"w": (D, D), "a": (D, 2), "b": (2, D)}, lambda p, h, _: h @ (p["w"] + p["a"] @ p["b"])),
    "concatenated": ({"a": (D, 1), "b": (D, 3)}, lambda p, h, _: h @ jnp.concatenate([p["a"], p["b"]], 1)),
    "normed": ({"v": (D, D), "g": (D,)}, _normed),
    "conv": ({"w": (D, D, 2)}, lambda p, h, _: _conv(h, p["w"], 1, 1)),
    "strided": ({"w": (D, 2, 3)}, lambda p, h, _: _conv(h, p["w"], 2, 2)),
    "depthwise": ({"w": (D, 1, 3)}, lambda p, h, _: _conv(h, p["w"], 1, D)),
    "custom_vjp": ({"w": (D, D)}, lambda p, h, _: _bent(h, p["w"])),
    "custom_jvp": ({"w": (D, D)}, lambda p, h, _: h @ _soft(p["w"])),
    "mapped": ({"w": (D, D), "b": (D,)}, lambda p, h, _: jax.vmap(lambda r: jnp.tanh(r @ p["w"] + p["b"]))(h)),
    "scan": _scan(False, False),
    "reversed": _scan(True, False),
    "nested": _scan(False, True),
    "carried": ({"w": (D, D), "start": (D,)}, _carried),
    "branch": ({"w": (D, D), "b": (D,)}, _branch),
    "outer": ({"a": (D,), "b": (D,)}, lambda p, h, _: h @ (p["a"][:, None] * p["b"][None])),
    "decay": ({"w": (D, D)}, lambda p, h, _: h @ p["w"] + 0.1 * jnp.sum(p["w"] ** 2)),
}  # fmt: skip
WRAPS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "residual": lambda f: lambda p, h, e: h + jnp.tanh(f(p, h, e)),
    "looped": lambda f: lambda p, h, e: lax.scan(lambda h, _: (jnp.tanh(f(p, h, e)), None), h, None, length=2)[0],
}
LAYER = st.tuples(st.sampled_from(sorted(OPS)), st.sampled_from(sorted(WRAPS)), st.booleans())


def program(layers, per_token, seed):
    """(loss, params, rows); a layer that is `shared` uses the parameters of an earlier one of its name."""
    rng = np.random.default_rng(seed)
    params, steps = {}, []
    for k, (name, wrap, shared) in enumerate(layers):
        shapes, apply = OPS[name]
        earlier = [key for key in params if key.split("-")[0] == name]
        key = earlier[0] if shared and earlier else f"{name}-{k}"
        if key not in params:
            params[key] = {n: jnp.asarray(rng.normal(size=s) * 0.5) for n, s in shapes.items()}
        steps.append((key, WRAPS[wrap](apply)))

    def loss(params, example):
        h = example["x"]
        for key, step in steps:
            h = jnp.tanh(step(params[key], h, example)) + 0.1 * h
        return jnp.sum(h * example["y"], 1) if per_token else jnp.sum(jnp.sin(h) * example["y"])

    rows = {
        "x": jnp.asarray(rng.normal(size=(3, T, D))),
        "y": jnp.asarray(rng.normal(size=(3, T, D))),
        "tokens": jnp.asarray(rng.integers(5, size=(3, T))),
    }
    return loss, params, rows


def made(found, params, rows):
    def program(params, rows):
        losses, factors = capture(found, params, rows)
        return losses, algebra.leaf_norms(found, factors), algebra.dense(found, factors)

    return jax.jit(program)(params, rows)


def check(layers, per_token=False, seed=0):
    with jax.enable_x64(True):
        loss, params, rows = program(layers, per_token, seed)
        found = sites(Task(loss), params, jax.tree.map(lambda x: x[0], rows))
        losses, squares, gradients = made(found, params, rows)
        want_losses, want = brute_force(loss, params, rows)
        np.testing.assert_allclose(losses, want_losses, rtol=1e-9, atol=1e-12)
        for path, leaf in jax.tree_util.tree_flatten_with_path(want)[0]:
            key = jax.tree_util.keystr(path, simple=True, separator="/")
            np.testing.assert_allclose(gradients[key], leaf, rtol=1e-8, atol=1e-11, err_msg=key)
            norms = np.sum(np.square(leaf).reshape(3, -1), 1)
            np.testing.assert_allclose(squares.get(key, np.zeros(3)), norms, rtol=1e-8, atol=1e-20, err_msg=key)


@settings(max_examples=COUNT, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(layers=st.lists(LAYER, min_size=1, max_size=4), per_token=st.booleans(), seed=st.integers(0, 99))
def test_factors_and_norms_of_random_programs_equal_vmap_grad(layers, per_token, seed):
    check(layers, per_token, seed)


@pytest.mark.skipif(not NIGHTLY, reason="nightly: UIMJAX_NIGHTLY is not set")
@pytest.mark.parametrize("name", sorted(OPS))
def test_every_way_a_parameter_meets_data(name):
    """Each once by itself, in a residual, and shared by two layers."""
    check([(name, "residual", False), (name, "plain", True)])
