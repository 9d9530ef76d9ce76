"""Dense, sparse and truncated sketches: unbiased with the variance they state, generated the same however cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from tests import programs
from uimjax import mesh as meshes
from uimjax import sketch
from uimjax.curvature import statistics
from uimjax.curvature.blocks import Laid, blocks
from uimjax.errors import UnknownNameError, UsageError
from uimjax.sketch import dense, kronecker, sparse
from uimjax.taps import Direct, form, sites, to_matrices
from uimjax.task import Task

UNEQUAL = {"wide": (3, 40), "tall": (50, 2), "square": (9, 9), "vector": (23,), "table": (30, 4), "stack": (3, 4, 5)}


def unequal(rng, batch=4):
    """Sites of unequal shapes, a lookup and a slice among them."""
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in UNEQUAL.items()}

    def loss(p, e):
        h = jnp.tanh(e["x"] @ p["wide"])[:23] * p["vector"]
        h = jnp.tanh(e["long"] @ p["tall"]).sum() + h.sum()
        t = p["table"][e["ids"]]
        for k in range(3):
            h = h + jnp.sin(t @ p["stack"][k]).sum()
        return h * jnp.sum(jnp.tanh(e["nine"] @ p["square"]))

    rows = {
        "x": jnp.asarray(rng.normal(size=(batch, 3)), jnp.float32),
        "long": jnp.asarray(rng.normal(size=(batch, 50)), jnp.float32),
        "nine": jnp.asarray(rng.normal(size=(batch, 9)), jnp.float32),
        "ids": jnp.asarray(rng.integers(30, size=(batch, 6))),
    }
    found = sites(Task(loss), params, jax.tree.map(lambda x: x[0], rows))
    return found, params, rows, programs.captured(found, params, rows)[1]


def exact(found, factors):
    formed = jax.jit(functools.partial(sketch.rows, found, None))(None, factors)
    return np.asarray(formed, np.float64)


def over_seeds(found, factors, choice, seeds):
    """`[seeds, B, D]`: what the choice gives with other seeds, compiled once."""
    kind = {sketch.DenseSketch: dense, sketch.SparseSketch: sparse}[type(choice)]

    def one(seed):
        return kind.apply(choice, found, kind.draw(choice, found, jax.random.key(seed)), factors, found, 4)

    return np.asarray(jax.lax.map(one, jnp.arange(seeds)), np.float64)


def whole_columns(choice, found):
    """Column ranges of whole parameters, their stacks together."""
    each = iter(sketch.columns(found, choice))
    mine = [[next(each) for _ in range(leaf.layout.shape[0])] for leaf in found.used]
    return [(blocks[0][0], blocks[-1][1]) for blocks in mine]


def variance(x, y, width):
    """Of an inner product of two dense sketches, and of two count sketches."""
    return (x @ x * (y @ y) + (x @ y) ** 2 - 2 * np.sum(x**2 * y**2)) / width


def check_moments(products, want, stated):
    """The mean within 4.5 standard errors of the exact product, the variance within 25% of what is stated."""
    spread = products.std(0) / np.sqrt(len(products))
    assert (np.abs(products.mean(0) - want) <= 4.5 * spread + 1e-4 * np.abs(want).max()).all()
    np.testing.assert_allclose(products.var(0), stated, rtol=0.25)


def test_a_dense_sketch_is_unbiased_with_the_stated_variance(rng):
    found, _, _, factors = unequal(rng)
    rows = exact(found, factors)
    made = over_seeds(found, factors, uj.DenseSketch(24), 1500)
    products = np.einsum("sbk,sck->sbc", made, made)
    stated = np.array([[variance(x, y, 24) for y in rows] for x in rows])
    check_moments(products, rows @ rows.T, stated)


@pytest.mark.parametrize("hashes", [1, 2])
def test_a_sparse_sketch_is_unbiased_with_the_stated_variance(rng, hashes):
    """Each parameter by itself, without a mask; one that fits is exact."""
    found, _, _, factors = unequal(rng)
    choice = uj.SparseSketch(16, 0, hashes)
    made = over_seeds(found, factors, choice, 1500)
    start, whole = 0, exact(found, factors)
    for leaf, (first, last) in zip(found.used, whole_columns(choice, found), strict=True):
        n, part = leaf.layout.shape[0], made[:, :, first:last]
        rows = whole[:, start : start + leaf.size].reshape(4, *leaf.shape)
        start += leaf.size
        rows = np.asarray(to_matrices(jnp.asarray(rows), leaf.layout)).reshape(4, n, -1)
        products = np.einsum("sbk,sck->sbc", part, part)
        want = np.einsum("bnd,cnd->bc", rows, rows)
        if rows.shape[2] <= 16:
            np.testing.assert_allclose(products, np.broadcast_to(want, products.shape), rtol=1e-4, atol=1e-5)
        else:
            stated = np.array([[sum(variance(x[k], y[k], 16) for k in range(n)) for y in rows] for x in rows])
            check_moments(products, want, stated)


def test_a_masked_sparse_sketch_is_unbiased(rng):
    """The mask's own variance: sampling without replacement on both sides, worked out for a wide matrix."""
    found, _, _, factors = unequal(rng)
    choice = uj.SparseSketch(10_000, 5)  # so wide that only the mask is random
    made = over_seeds(found, factors, choice, 3000)
    whole, start = exact(found, factors), 0
    for leaf, (first, last) in zip(found.used, whole_columns(choice, found), strict=True):
        part = made[:, :, first:last]
        products = np.einsum("sbk,sck->sbc", part, part)
        rows = whole[:, start : start + leaf.size]
        start += leaf.size
        want = rows @ rows.T
        spread = products.std(0) / np.sqrt(len(products))
        assert (np.abs(products.mean(0) - want) <= 4.5 * spread + 1e-4 * np.abs(want).max()).all(), leaf.path
        if leaf.path == "square":
            z = (rows[0] * rows[1]).reshape(9, 9)
            p, both = 5 / 9, 5 * 4 / (9 * 8)
            squares, by_row, by_col = (z**2).sum(), (z.sum(1) ** 2).sum(), (z.sum(0) ** 2).sum()
            rest = z.sum() ** 2 - by_row - by_col + squares
            second = p * p * squares + p * both * (by_row + by_col - 2 * squares) + both**2 * rest
            np.testing.assert_allclose(products[:, 0, 1].var(), second / p**4 - z.sum() ** 2, rtol=0.2)


def test_signs_are_the_same_however_they_are_cut_and_placed(rng):
    """To the bit: R of one row, of a block, of all rows; drawn on eight devices, each its part."""
    found, *_ = unequal(rng)
    choice = uj.DenseSketch(40, seed=3)
    key, mesh = jax.random.key(choice.seed), meshes.make_mesh(8)
    for leaf in found.used:
        n, rows, _ = leaf.layout.shape
        signs = jax.jit(functools.partial(dense._signs, choice, leaf, key), static_argnums=2)
        whole = np.asarray(signs(n - 1, 0, rows))
        assert (np.abs(whole) == np.float32(1 / np.sqrt(np.float32(40)))).all()
        for height in (1, 7):
            for start in range(0, rows, height):
                part = np.asarray(signs(n - 1, start, height))
                stop = min(start + height, rows)
                np.testing.assert_array_equal(part[: stop - start], whole[start:stop])
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(meshes.DATA))
        every = functools.partial(dense._signs, choice, leaf, key, n - 1, 0, -(-rows // 8) * 8)
        spread = jax.jit(every, out_shardings=place)()
        assert len(spread.sharding.device_set) == 8
        np.testing.assert_array_equal(np.asarray(spread)[:rows], whole)
        if n > 1:
            assert (np.asarray(signs(0, 0, rows)) != whole).any(), "stack entries are independent"


@pytest.mark.parametrize("choice", [uj.DenseSketch(40), uj.SparseSketch(16, 3), uj.Sketch(2)], ids=str)
def test_blocks_batches_and_devices_change_nothing(rng, monkeypatch, choice):
    found, params, rows, factors = unequal(rng, batch=8)
    program = jax.jit(functools.partial(sketch.rows, found, choice))
    whole = np.asarray(program(sketch.drawn(found, choice), factors))
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * np.abs(whole).max()}
    monkeypatch.setattr(dense, "BLOCK_BYTES", 4 * 40 * 40 * 2)
    small = jax.jit(functools.partial(sketch.rows, found, choice))(sketch.drawn(found, choice), factors)
    np.testing.assert_allclose(small, whole, **tolerance)
    ids = np.array([6, 1, 2])
    part = programs.captured(found, params, jax.tree.map(lambda x: x[ids], rows))[1]
    np.testing.assert_allclose(program(sketch.drawn(found, choice), part), whole[ids], **tolerance)
    placed = meshes.shard_batch(meshes.make_mesh(8), rows)
    spread = programs.captured(found, params, placed)[1]
    np.testing.assert_allclose(program(sketch.drawn(found, choice), spread), whole, **tolerance)


def test_collect_and_an_index_take_every_kind(rng, tmp_path):
    loss, params, rows = programs.mlp(rng, jnp.float32, batch=12)
    task = Task(loss)
    data = jax.tree.map(np.asarray, rows)
    measure = uj.Measurement("f", lambda p, e: -loss(p, e))
    for number, choice in enumerate((uj.DenseSketch(64), uj.SparseSketch(16, 5), uj.Sketch(3))):
        folder = tmp_path / str(number)
        index = uj.build_index(task, params, data, folder, sketch=choice, batch_size=4)
        assert index.sketch == choice == uj.open_index(folder).sketch
        rows_of = np.asarray(uj.collect(task, params, rows, "sketch", sketch=choice)["sketch"])
        scored = uj.score(task, params, data, measure, data, uj.Method("mine", choice), each=True).values
        asked = -rows_of  # f is minus the loss
        unit, query = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows_of, asked))
        np.testing.assert_allclose(scored, -unit @ query.T, rtol=1e-3, atol=1e-4)
        traced = uj.trace(folder, task, params, data, measure, data, k=12)
        assert str(choice) in traced.method
    old = {"rank": 4, "distribution": "gaussian", "seed": 2, "version": 1}
    assert sketch.from_record(old) == uj.Sketch(4, "gaussian", 2)
    with pytest.raises(UnknownNameError, match="kind of sketch"):
        sketch.from_record({"kind": "densee", "width": 3})


@pytest.mark.parametrize("choice", [uj.DenseSketch(4096), uj.SparseSketch(64, 0), uj.Sketch(64), None], ids=str)
def test_what_training_does_not_use_is_no_part_of_a_query(rng, choice):
    """A measurement touches `w` and `u`, the training loss `w` alone: the columns are those of `w`."""
    params = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "u": jnp.asarray(rng.normal(size=4), jnp.float32)}
    rows = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    found = sites(Task(lambda p, x: jnp.sum(jnp.tanh(x @ p["w"]))), params, rows[0])
    query = Task(lambda p, x: jnp.sum(jnp.tanh(x @ p["w"]) * p["u"]))
    asked = sites(query, params, rows[0], like=found)
    factors = programs.captured(asked, params, rows)[1]
    got = sketch.rows(asked, choice, sketch.drawn(found, choice), factors, found)
    want = programs.brute_force(query.loss, params, rows)[1]["w"].reshape(5, -1)
    np.testing.assert_allclose((np.asarray(got) ** 2).sum(1), (np.asarray(want) ** 2).sum(1), rtol=0.1)


def test_half_precision_factors_are_sketched_in_single(rng):
    half = jnp.bfloat16
    params = {"w": jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)}
    task = Task(lambda p, x: jnp.sum(jnp.tanh(x.astype(half) @ p["w"].astype(half)).astype(jnp.float32)))
    rows = jnp.asarray(rng.normal(size=(4, 200, 6)), jnp.float32)
    found = sites(task, params, rows[0])
    factors = programs.captured(found, params, rows)[1]
    formed = {"w": (Direct(form(found.leaves[0], factors["w"])),)}
    for choice in (uj.DenseSketch(64), uj.SparseSketch(8, 3), uj.Sketch(2)):
        one, other = (sketch.rows(found, choice, sketch.drawn(found, choice), f) for f in (factors, formed))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=str(choice))


# ---------------------------------------------------------------- truncations


def kernel_shapes(sides):
    return [side.shape for side in sides]


def test_principal_components_lose_the_least(rng):
    """Exact at full rank; at rank p what is lost of either side is the sum of its further eigenvalues."""
    loss, params, rows = programs.decoder(rng, jnp.float32)
    task = Task(loss, exclude=("embed", "position"))
    found = sites(task, params, jax.tree.map(lambda x: x[0], rows))
    factors = programs.captured(found, params, rows)[1]
    sums = statistics.covariances(blocks(Laid(found, ()), factors))
    for rank in (2, 100):
        drawn = sketch.principal(found, uj.Sketch(rank), sums)
        got = kronecker.project(found, drawn, factors)
        for leaf in found.used:
            for side, second in zip(drawn[leaf.path], sums[leaf.path][:2], strict=True):
                if side is not None:
                    kept = np.einsum("nip,nij,njp->n", side, second, side)
                    top = np.linalg.eigvalsh(np.asarray(second, np.float64))[:, -side.shape[2] :].sum(1)
                    np.testing.assert_allclose(kept, top, rtol=1e-4)
        widths = {path: block.shape[2:] for path, block in got.items()}
        assert widths["blocks/qkv"] == ((2, 2) if rank == 2 else (8, 24))
    whole = exact(found, factors)
    inner = sum(np.einsum("bnpq,cnpq->bc", block, block) for block in got.values())
    np.testing.assert_allclose(inner, whole @ whole.T, rtol=1e-3, atol=1e-4)
    long = {"w": jnp.ones((3, 70)), "b": jnp.ones(70)}
    biased = sites(Task(lambda p, x: jnp.sum(jnp.tanh(x @ p["w"] + p["b"]))), long, jnp.ones(3))
    made = programs.captured(biased, long, jnp.ones((4, 3)))[1]
    kept = sketch.principal(biased, uj.Sketch(2), statistics.covariances(blocks(Laid(biased, ()), made)))
    assert kept["b"] == (None, None), "vectors have no covariance, and stay whole"
    assert kernel_shapes(kept["w"]) == [(1, 3, 2), (1, 70, 2)]
    every = sites(Task(loss), params, jax.tree.map(lambda x: x[0], rows))
    sums = statistics.covariances(blocks(Laid(every, ()), programs.captured(every, params, rows)[1]))
    with pytest.raises(UsageError, match="embed is looked up, so its 11 rows have no principal components"):
        sketch.principal(every, uj.Sketch(2), sums)


def test_low_rank_blocks_are_the_nearest_and_say_what_they_lose(rng):
    found, _, _, factors = unequal(rng)
    drawn = sketch.drawn(found, uj.Sketch(6))
    projected = kronecker.project(found, drawn, factors)
    for rank in (1, 2, 99):
        made, lost = sketch.low_rank(projected, rank)
        off, whole = 0.0, 0.0
        for path, (u, v) in made.items():
            assert u.shape[-1] <= rank
            back = np.einsum("bnpc,bnqc->bnpq", u, v)
            values = np.linalg.svd(np.asarray(projected[path], np.float64), compute_uv=False)
            error = np.square(back - projected[path]).sum((1, 2, 3))
            np.testing.assert_allclose(
                error, np.square(values[..., rank:]).sum((1, 2)), rtol=1e-3, atol=1e-6 * values.max() ** 2
            )
            off, whole = off + error, whole + np.square(values).sum((1, 2))
        np.testing.assert_allclose(lost, off / whole, rtol=1e-3, atol=1e-6)
    with pytest.raises(UsageError, match="at least 1 singular pair"):
        sketch.low_rank(projected, 0)


def test_nonsense_is_refused():
    for make, words in [
        (lambda: uj.DenseSketch(0), "width 0"),
        (lambda: uj.SparseSketch(15, 4, 2), "divides into its hashes"),
        (lambda: uj.SparseSketch(16, -1), "mask of 0 or more"),
    ]:
        with pytest.raises(UsageError, match=words):
            make()
