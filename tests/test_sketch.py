"""Sketches: unbiased with the right scale for every shape, the same for any batch, and true to the formed gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests import programs
from uimjax import factors as algebra
from uimjax import sketch
from uimjax.errors import UsageError
from uimjax.sketch import kronecker as sk
from uimjax.taps import capture, sites, to_matrices
from uimjax.task import Task


def made(name, rng, dtype=jnp.float32, **kw):
    loss, params, batch = programs.ALL[name](rng, dtype, **kw)
    found = sites(Task(loss), params, jax.tree.map(lambda x: x[0], batch))
    return found, params, batch, programs.captured(found, params, batch)[1]


def sketched(found, factors, choice):
    return jax.jit(functools.partial(sketch.rows, found, choice))(sketch.drawn(found, choice), factors)


def project(found, drawn, factors):
    return jax.jit(lambda drawn, factors: sk.project(found, drawn, factors))(drawn, factors)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("name", ["mlp", "decoder_scanned", "nnx_cnn"])
def test_inner_products_are_unbiased_for_every_parameter(name, distribution, rng):
    """Over seeds, each parameter's sketched inner products average to the exact ones within 4 standard errors."""
    found, _, _, factors = made(name, rng)
    seeds = 300
    exact = {k: np.asarray(v, np.float64) for k, v in algebra.dense(found, factors).items() if v is not None}

    @jax.jit
    def one(seed):
        drawn = {}
        for leaf in found.used:
            drawn[leaf.path] = sk._leaf_matrices(sk.Sketch(2, distribution, 0), leaf, jax.random.key(seed))
        projected = sk.project(found, drawn, factors)
        return {k: jnp.einsum("bnpq,cnpq->bc", v, v) for k, v in projected.items()}

    got = jax.lax.map(one, jnp.arange(seeds))
    for path, gradient in exact.items():
        flat = gradient.reshape(gradient.shape[0], -1)
        want, values = flat @ flat.T, np.asarray(got[path], np.float64)
        spread = values.std(0) / np.sqrt(seeds)
        off = np.abs(values.mean(0) - want)
        scale = np.sqrt(np.outer(np.diag(want), np.diag(want)))
        assert (off <= 4.5 * spread + 1e-5 * scale + 1e-12).all(), (path, off / (spread + 1e-12))


def test_scale_does_not_depend_on_the_shape():
    """E |sketch|^2 / |g|^2 is 1 for wide, tall and short parameters alike."""
    for shape in ((400, 3), (3, 400), (60, 60), (1000,), (5,)):
        rng = np.random.default_rng(1)
        w = jnp.asarray(rng.normal(size=shape), jnp.float32)
        found = sites(Task(lambda w, x: jnp.sum(jnp.maximum(w, x))), w, w)
        factors = programs.captured(found, w, jnp.asarray(rng.normal(size=(16, *shape)), jnp.float32))[1]
        exact = algebra.norm(found, factors) ** 2

        def ratio(seed, found=found, factors=factors, exact=exact):
            (leaf,) = found.used
            drawn = {leaf.path: sk._leaf_matrices(sk.Sketch(8), leaf, jax.random.key(seed))}
            return jnp.mean(jnp.sum(sk.apply(sk.Sketch(8), found, drawn, factors, found, 16) ** 2, 1) / exact)

        ratios = np.asarray(jax.lax.map(ratio, jnp.arange(1500)), np.float64)
        error = ratios.std() / np.sqrt(len(ratios))
        assert error < 0.025
        assert abs(ratios.mean() - 1) < 4 * error + 1e-5, (shape, ratios.mean(), error)


@pytest.mark.usefixtures("x64")
def test_a_sketch_is_the_projection_of_the_formed_gradient(rng):
    """`P_I^T G P_O`, the gradient formed by `vmap(grad)`; both uses of the tied embedding add up."""
    loss, params, batch = programs.decoder(rng, jnp.float64)
    found = sites(Task(loss), params, jax.tree.map(lambda x: x[0], batch))
    factors = programs.captured(found, params, batch)[1]
    drawn = sk.draw(sk.Sketch(3), found, jax.random.key(0))
    got = project(found, drawn, factors)
    want = programs.brute_force(loss, params, batch)[1]
    rows, cols = drawn["embed"]
    np.testing.assert_allclose(
        got["embed"][:, 0], jnp.einsum("bvd,vp,dq->bpq", want["embed"], rows[0], cols[0]), rtol=1e-6
    )
    rows, cols = drawn["blocks/up"]
    np.testing.assert_allclose(
        got["blocks/up"], jnp.einsum("blio,lip,loq->blpq", want["blocks"]["up"], rows, cols), rtol=1e-6, atol=1e-12
    )


@pytest.mark.usefixtures("x64")
def test_the_sketch_of_slices_is_that_of_the_whole_parameter(rng):
    loss, params, batch = programs.slices(rng, jnp.float64)
    found = sites(Task(loss), params, jax.tree.map(lambda x: x[0], batch))
    drawn = sk.draw(sk.Sketch(3), found, jax.random.key(0))
    factors = programs.captured(found, params, batch)[1]
    got = project(found, drawn, factors)
    want = programs.brute_force(loss, params, batch)[1]
    for name in ("qkv", "gate_up", "table", "transposed", "overlap"):
        rows, cols = drawn[name]
        expected = jnp.einsum("bio,ip,oq->bpq", want[name], rows[0], cols[0])
        np.testing.assert_allclose(got[name][:, 0], expected, rtol=1e-6, atol=1e-12, err_msg=name)
    for name in ("stack", "fused"):
        expected = jnp.einsum("bnio,nip,noq->bnpq", want[name], *drawn[name])
        np.testing.assert_allclose(got[name], expected, rtol=1e-6, atol=1e-12, err_msg=name)
    wide = project(found, sk.draw(sk.Sketch(64), found, jax.random.key(0)), factors)
    np.testing.assert_allclose(wide["qkv"][:, 0], want["qkv"], rtol=1e-9, atol=1e-14, err_msg="kept whole")


NHWC = ("NHWC", "HWIO", "NHWC")
CONVOLUTIONS = {  # data shape, kernel shape, numbers, strides, padding, and other choices
    "strided": ((1, 9, 8, 3), (3, 2, 3, 5), NHWC, (2, 1), "SAME", {}),
    "dilated": ((2, 4, 9), (5, 4, 3), ("NCH", "OIH", "NCH"), (1,), [(1, 3)], {"rhs_dilation": (2,)}),
    "transposed": ((1, 5, 4, 3), (3, 3, 3, 5), NHWC, (1, 1), [(2, 1), (0, 2)], {"lhs_dilation": (2, 2)}),
    "odd axes": ((3, 6, 2, 7), (2, 4, 3, 3), ("CHNW", "WOHI", "HCWN"), (1, 2), "VALID", {}),
    "grouped": ((1, 9, 8, 4), (3, 2, 2, 6), NHWC, (1, 1), "SAME", {"feature_group_count": 2}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.usefixtures("x64")
def test_a_convolution_is_sketched_without_patches(name, rng):
    """By convolving with the projection as kernel (one group), whatever the layout, the scale, the transposition."""
    shape, kernel, numbers, strides, padding, more = CONVOLUTIONS[name]
    params = jnp.asarray(rng.normal(size=kernel[::-1]))

    def loss(w, x):
        kernel = w.T * 0.5
        return jnp.sum(
            jnp.sin(lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, **more))
        )

    batch = jnp.asarray(rng.normal(size=(3, *shape)))
    found = sites(Task(loss), params, batch[0])
    ((factor,),) = programs.captured(found, params, batch)[1].values()
    assert (factor.image is None) == (name == "grouped")
    drawn = sk.draw(sk.Sketch(2), found, jax.random.key(0))
    ((rows, cols),) = drawn.values()
    (leaf,) = found.used
    want = to_matrices(programs.brute_force(loss, params, batch)[1], leaf.layout)
    for side, spec in ((rows, "bnio,nip->bnpo"), (cols, "bnpo,noq->bnpq")):
        want = want if side is None else jnp.einsum(spec, want, side)
    ((path, got),) = project(found, drawn, programs.captured(found, params, batch)[1]).items()
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-10, err_msg=path)
    patches = f",{factor.a.shape[2]},{leaf.layout.shape[1]}]"
    for made, cut in ((lambda f: sk.project(found, drawn, f), name == "grouped"), (lambda f: f, True)):
        program = jax.jit(lambda w, x, made=made: made(capture(found, w, x)[1]))
        assert (patches in program.lower(params, batch).compile().as_text()) == cut, "patches are dead code"


def test_batch_split_and_row_order_change_nothing(rng):
    found, params, batch, factors = made("decoder_scanned", rng, batch=6)
    whole = sketched(found, factors, sk.Sketch(4))
    for ids in (np.array([0, 1]), np.array([5, 2, 3, 4])):
        part = programs.captured(found, params, {"tokens": batch["tokens"][ids]})[1]
        np.testing.assert_allclose(sketched(found, part, sk.Sketch(4)), whole[ids], rtol=1e-4, atol=1e-5)


def test_a_large_enough_sketch_is_exact(rng):
    found, _, _, factors = made("mlp", rng)
    rows = sketched(found, factors, sk.Sketch(64))
    np.testing.assert_allclose(rows @ rows.T, algebra.inner(found, factors, factors), rtol=1e-5, atol=1e-6)
    assert rows.shape[1] == sum(sk.widths(sk.Sketch(64), found).values())


def test_drawing_is_compiled_once_a_shape(rng):
    found, *_ = made("decoder_unrolled", rng)
    sk._side.clear_cache()
    drawn = sk.draw(sk.Sketch(5), found, jax.random.key(0))
    every = [x for pair in drawn.values() for x in pair if x is not None]
    assert sk._side._cache_size() == len({x.shape for x in every}) < len(every)


def test_stack_entries_get_independent_matrices(rng):
    found, *_ = made("decoder_scanned", rng)
    rows, _ = sk.draw(sk.Sketch(4), found, jax.random.key(0))["blocks/qkv"]
    assert rows.shape == (3, 8, 4)
    assert not np.allclose(rows[0], rows[1])
    again, _ = sk.draw(sk.Sketch(4), found, jax.random.key(0))["blocks/qkv"]
    np.testing.assert_array_equal(rows, again)


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="rank 0"):
        sk.Sketch(0)
    with pytest.raises(UsageError, match="unknown distribution 'cauchy'"):
        sk.Sketch(4, "cauchy")
