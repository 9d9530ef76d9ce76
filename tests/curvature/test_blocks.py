"""Which bias stands behind which matrix, and blocks against gradients formed one by one in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import programs
from uimjax.curvature import blocks
from uimjax.taps import sites
from uimjax.task import Task

pytestmark = pytest.mark.usefixtures("x64")


def laid_out(loss, params, rows, like=None):
    """(the blocks of a loss, the factors of its rows)."""
    found = sites(Task(loss), params, jax.tree.map(lambda x: x[0], rows), like=like and like.sites)
    factors = programs.captured(found, params, rows)[1]
    return blocks.lay_out(found, factors, like), factors


def formed(laid, factors):
    return jax.jit(lambda f: {b.path: blocks.formed(b) for b in blocks.blocks(laid, f)})(factors)


def brute(loss, params, rows):
    found = jax.tree_util.tree_flatten_with_path(programs.brute_force(loss, params, rows)[1])[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(g) for path, g in found}


def put_together(g, bias, matrix, side, shape):
    """A matrix's gradients `[B, n, I, O]` with the bias's as the last row (side 0) or column (side 1), in numpy."""
    n, i, o = shape
    matrix = g[matrix].reshape(-1, n, i - (side == 0), o - (side == 1))
    bias = g[bias].reshape(-1, n, *((1, o) if side == 0 else (i, 1)))
    return np.concatenate([matrix, bias], 2 + side)


def joined(laid):
    return {join.bias: (join.matrix, join.side, join.shape) for join in laid.joins}


def draw(rng, **shapes):
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def scanned(rng, _dtype):
    """A stack of layers with biases and norms between a tied embedding's two uses."""
    params = draw(rng, embed=(5, 3), w=(2, 3, 3), b=(2, 3), scale=(2, 3), shift=(2, 3))

    def loss(p, tokens):
        def layer(h, its):
            w, b, scale, shift = its
            return jnp.tanh(h @ w + b[None]) * scale[None] + shift[None], None

        h = jax.lax.scan(layer, p["embed"][tokens], [p[k] for k in ("w", "b", "scale", "shift")])[0]
        return jnp.sum(jnp.tanh(h @ p["embed"].T) ** 2)

    return loss, params, jnp.asarray(rng.integers(5, size=(3, 4)))


def transposed(rng, _dtype):
    """A weight [O, I], as PyTorch keeps it: there the bias is a further column."""
    params, rows = draw(rng, w=(5, 3), b=(5,)), jnp.asarray(rng.normal(size=(4, 6, 3)))
    return lambda p, x: jnp.sum(jnp.tanh(x @ p["w"].T + p["b"][None]) ** 2), params, rows


JOINS = {
    "mlp": {f"layers/{k}/b": (f"layers/{k}/w", 0, (1, i + 1, o)) for k, (i, o) in enumerate([(6, 7), (7, 4), (4, 3)])},
    "nnx_cnn": {
        "one/bias/value": ("one/kernel/value", 0, (1, 3 * 3 * 2 + 1, 4)),
        "head/bias/value": ("head/kernel/value", 0, (1, 7, 3)),
    },
    "transposed": {"b": ("w", 1, (1, 5, 4))},
    "scanned": {"b": ("w", 0, (2, 4, 3))},
}


@pytest.mark.parametrize("name", JOINS)
def test_a_bias_is_found_behind_its_matrix_and_their_block_is_the_gradients_put_together(name, rng):
    """And no other: a norm's scale and bias, filters in groups and a tied embedding stay alone."""
    loss, params, rows = {"transposed": transposed, "scanned": scanned, **programs.ALL}[name](rng, jnp.float64)
    laid, factors = laid_out(loss, params, rows)
    assert joined(laid) == JOINS[name]
    assert all(join.factored for join in laid.joins)
    got, want = formed(laid, factors), brute(loss, params, rows)
    assert blocks.shapes(laid) == {path: x.shape[1:] for path, x in got.items()}
    assert sum(x[0].size for x in got.values()) == sum(g[0].size for g in want.values())
    for bias, (matrix, side, shape) in JOINS[name].items():
        assert bias not in got
        np.testing.assert_allclose(got[matrix], put_together(want, bias, matrix, side, shape), rtol=1e-9, atol=1e-13)
    back = blocks.split(laid, got)
    assert back.keys() == want.keys()
    for path, g in want.items():
        np.testing.assert_allclose(back[path], g, rtol=1e-9, atol=1e-13, err_msg=path)


def test_together_and_split_are_inverses_to_the_bit(rng):
    laid, _ = laid_out(*scanned(rng, jnp.float64))
    g = {leaf.path: jnp.asarray(rng.normal(size=(2, *leaf.shape))) for leaf in laid.sites.leaves}
    there = blocks.together(laid, g)
    assert {path: x.shape[1:] for path, x in there.items()} == blocks.shapes(laid)
    back = blocks.split(laid, there)
    assert back.keys() == g.keys()
    for path in g:
        np.testing.assert_array_equal(back[path], g[path], err_msg=path)
    alone = blocks.split(laid, blocks.together(laid, {"b": g["b"]}))
    np.testing.assert_array_equal(alone["b"], g["b"])
    assert not alone["w"].any()


def twice(p, e):
    return jnp.sum((jnp.tanh(e["x"] @ p["w"] + p["b"]) * p["b"] - e["y"]) ** 2)


def after(p, e):
    return jnp.sum((jnp.tanh(e["x"] @ p["w"]) + p["b"] - e["y"]) ** 2)


def at_one_position(p, e):
    h = jnp.stack([e["x"], 2 * e["x"]]) @ p["w"]
    return jnp.sum(jnp.tanh(h.at[0].add(p["b"])) ** 2)


def tied(p, e):
    """The matrix is looked up as well as multiplied with."""
    return jnp.sum(jnp.tanh(jnp.tanh(p["w"][e["k"]] @ p["w"].T) + p["b"]) ** 2) + jnp.sum(p["w"][e["k"]] @ p["w"].T)


def normed(p, e):
    h = e["x"] - e["x"].mean()
    return jnp.sum(jnp.tanh(h * p["scale"] + p["b"]) ** 2)


def masked(p, e):
    """On some rows the bias counts once, and its gradient is the sum it should be; on others twice, or not at all."""
    return jnp.sum((jnp.tanh(e["x"] @ p["w"] + e["k"] * p["b"]) - e["y"]) ** 2)


def test_which_bias_is_behind_a_matrix_follows_from_the_program_and_rows_may_be_silent(rng):
    params = draw(rng, w=(3, 3), b=(3,))
    rows = {"x": jnp.asarray(rng.normal(size=(4, 3))), "y": jnp.zeros((4, 3)), "k": jnp.array([1, 1, 0, 2])}
    laid, factors = laid_out(masked, params, rows)
    assert laid.joins == ()
    np.testing.assert_allclose(
        blocks.split(laid, formed(laid, factors))["b"], brute(masked, params, rows)["b"], rtol=1e-9, atol=1e-13
    )

    def quiet(p, e):  # the first rows have no gradient at all
        return e["k"] * jnp.sum(jnp.tanh(e["x"] @ p["w"] + p["b"]) ** 2)

    assert joined(laid_out(quiet, params, rows | {"k": jnp.array([0, 0, 1, 2])})[0]) == {"b": ("w", 0, (1, 4, 3))}
    some = blocks.some(laid.sites, {"k": np.arange(100)})["k"]
    assert len(some) == blocks.SEEN
    assert some[0] == 0
    assert some[-1] == 99


def test_a_coarse_type_rounds_and_is_joined_all_the_same(rng):
    def loss(p, e):
        return jnp.sum(jnp.tanh(e["x"] @ p["w"] + p["b"][None]).astype(jnp.float32) ** 2)

    half = {name: x.astype(jnp.bfloat16) for name, x in draw(rng, w=(3, 4), b=(4,)).items()}
    rows = {"x": jnp.asarray(rng.normal(size=(4, 9, 3)), jnp.bfloat16)}
    assert joined(laid_out(loss, half, rows)[0]) == {"b": ("w", 0, (1, 4, 4))}


@pytest.mark.parametrize("loss", [twice, after, at_one_position, tied, normed], ids=lambda f: f.__name__)
def test_a_bias_whose_gradient_is_not_the_sum_over_positions_stays_alone(loss, rng):
    params = draw(rng, w=(3, 3), b=(3,))
    params = {"scale": params["w"][0], "b": params["b"]} if loss is normed else params
    rows = {
        "x": jnp.asarray(rng.normal(size=(4, 3))),
        "y": jnp.asarray(rng.normal(size=(4, 3))),
        "k": jnp.arange(4) % 3,
    }
    laid, factors = laid_out(loss, params, rows)
    assert laid.joins == ()
    got, want = blocks.split(laid, formed(laid, factors)), brute(loss, params, rows)
    for path in params:
        np.testing.assert_allclose(got[path], want[path], rtol=1e-9, atol=1e-13)


def dense(p, e):
    return jnp.sum((jnp.tanh(e["x"] @ p["w"] + p["b"]) - e["y"]) ** 2)


def only_the_bias(p, e):
    return jnp.sum(jnp.tanh(p["b"]) * e["y"])


def only_the_matrix(p, e):
    return jnp.sum(jnp.tanh(e["x"] @ p["w"]))


@pytest.mark.parametrize("asked", [dense, only_the_bias, only_the_matrix, after, twice], ids=lambda f: f.__name__)
def test_a_query_is_laid_out_in_the_blocks_of_the_loss(asked, rng):
    """Whatever it touches of a block; the rest of its gradient there is 0."""
    params = draw(rng, w=(3, 2), b=(2,))
    rows = {"x": jnp.asarray(rng.normal(size=(4, 3))), "y": jnp.asarray(rng.normal(size=(4, 2)))}
    laid, _ = laid_out(dense, params, rows)
    mine, factors = laid_out(asked, params, rows, like=laid)
    assert joined(mine) == {"b": ("w", 0, (1, 4, 2))}
    assert mine.joins[0].factored == (asked is dense)
    want = brute(asked, params, rows)
    ((path, got),) = formed(mine, factors).items()
    assert path == "w"
    np.testing.assert_allclose(got, put_together(want, "b", "w", 0, (1, 4, 2)), rtol=1e-9, atol=1e-13)
    if asked is only_the_bias:
        assert not got[:, :, :3].any()
    if asked is only_the_matrix:
        assert not got[:, :, 3].any()


def test_one_bias_belongs_to_one_matrix(rng):
    """Two matrices with one bias behind their sum, and two biases behind one matrix: each stands in one block."""
    params = draw(rng, one=(3, 2), two=(3, 2), b=(2,), c=(2,))
    rows = jnp.asarray(rng.normal(size=(4, 3)))
    shared, double = (
        lambda p, x: jnp.sum(jnp.tanh(x @ p["one"] + (2 * x) @ p["two"] + p["b"] + p["c"]) ** 2),
        lambda p, x: jnp.sum(jnp.tanh(x @ p["one"] + p["b"] + p["c"]) ** 2 + p["two"][0] * x[0]),
    )
    for loss, count in ((shared, 2), (double, 1)):
        laid, factors = laid_out(loss, params, rows)
        assert len(laid.joins) == len(set(joined(laid))) == len({j.matrix for j in laid.joins}) == count
        got, want = blocks.split(laid, formed(laid, factors)), brute(loss, params, rows)
        for path in params:
            np.testing.assert_allclose(got[path], want[path], rtol=1e-9, atol=1e-13)
