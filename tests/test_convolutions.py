"""Convolutions in the fast layout: the same numbers, and no other layout left in the body of a loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from uimjax import convolutions

LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("NCHW", "HWIO", "NHWC")]


def stacked(layout, stride=1, dilation=1, groups=1):
    """(loss of two layers in a loop, parameters, rows)."""
    rng = np.random.default_rng(0)

    def convolve(x, w, stride):
        return lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", rhs_dilation=(dilation, dilation), dimension_numbers=layout,
            feature_group_count=groups,
        )  # fmt: skip

    def kernel(inputs, outputs):
        shape = {"H": 3, "W": 3, "I": inputs // groups, "O": outputs}
        return jnp.asarray(rng.normal(size=[shape[axis] for axis in layout[1]]), jnp.float32)

    def loss(params, x):
        y = jnp.tanh(convolve(x, params[0], stride))
        return jnp.mean(
            jnp.square(jax.jit(convolve, static_argnums=2)(y, params[1], 1) if layout[0] == layout[2] else y)
        )

    size = {"N": 4, "H": 8, "W": 6, "C": 2}
    x = jnp.asarray(rng.normal(size=[size[axis] for axis in layout[0]]), jnp.float32)
    return loss, (kernel(2, 4), kernel(4, 4)), x


@pytest.mark.parametrize("layout", LAYOUTS, ids=" ".join)
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 1, 2)])
def test_derivatives_are_those_of_the_function_as_it_stands(layout, stride, dilation, groups):
    loss, params, x = stacked(layout, stride, dilation, groups)
    derivative = jax.value_and_grad(loss)
    plain, fast = derivative(params, x), convolutions.fast(derivative)(params, x)
    assert jax.tree.structure(plain) == jax.tree.structure(fast)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), plain, fast)


def test_inside_a_loop_no_other_layout_is_left_and_numbers_are_the_same():
    loss, params, x = stacked(LAYOUTS[0])

    def descend(derivative):
        def step(params, _):
            value, gradient = derivative(params, x)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value

        return jax.jit(lambda params: lax.scan(step, params, None, length=3))

    def layouts(program):
        return set(re.findall(r"dim_labels=(\w+->\w+)", program.lower(params).compile().as_text()))

    plain, fast = descend(jax.value_and_grad(loss)), descend(convolutions.fast(jax.value_and_grad(loss)))
    assert layouts(fast) == {"b01f_01io->b01f"}
    assert layouts(plain) > layouts(fast), "the compiler does it by itself: this module can go"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), plain(params), fast(params))


def test_loops_within_are_entered_and_differentiated_again():
    loss, params, x = stacked(LAYOUTS[0])

    def long(params, x):
        return lax.scan(lambda total, row: (total + loss(params, row[None]), None), 0.0, x)[0]

    plain, fast = jax.grad(long), convolutions.fast(jax.grad(long))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), plain(params, x), fast(params, x))
    text = jax.jit(fast).lower(params, x).compile().as_text()
    assert set(re.findall(r"dim_labels=(\w+->\w+)", text)) == {"b01f_01io->b01f"}
    squares = lambda derivative: jax.grad(lambda p: sum(jnp.sum(g**2) for g in derivative(p, x)))  # noqa: E731
    twice = squares(plain)(params), squares(fast)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *twice)


def test_what_does_not_convolve_is_traced_once_and_other_devices_do_as_before(monkeypatch):
    called = []

    def fun(x):
        called.append(x)
        return {"a": x + 1}

    assert convolutions.fast(fun)(1.0) == {"a": 2.0}
    assert len(called) == 1
    loss, params, x = stacked(LAYOUTS[0])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    traced = jax.make_jaxpr(convolutions.fast(jax.grad(loss)))(params, x)
    assert str(traced) == str(jax.make_jaxpr(jax.grad(loss))(params, x))
