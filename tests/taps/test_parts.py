"""Rows taken apart: packed documents equal the documents alone, positions and tokens equal their definitions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import uimjax as uj
from tests import programs
from uimjax import factors as algebra
from uimjax import mesh as meshes
from uimjax import sketch as sk
from uimjax.errors import CoverageError, ShapeError, TapError, UnknownNameError, UsageError
from uimjax.models.blocks import Shape
from uimjax.models.decoder import build_decoder, packed
from uimjax.rows import pack
from uimjax.taps import Direct, axes_of, each_example, expand, form, sites

LENGTHS = [4, 4, 2, 12, 2]


def relative(got, want):
    return np.linalg.norm(np.asarray(got, np.float64) - want) / max(np.linalg.norm(want), 1e-12)


def documents_of(rng, vocabulary=17):
    return [rng.integers(vocabulary, size=n).astype(np.int32) for n in LENGTHS]


def rows_of(documents, length=14, per_row=3):
    made = pack(documents, length, per_row)
    rows = {
        "tokens": jnp.asarray(made.rows),
        "segments": jnp.asarray(made.segments),
        "counted": jnp.ones(made.segments.shape, jnp.float32),
    }
    return rows, made.ids


def alone(task, params, document, dtype):
    """(loss, gradient by path) of one document by itself, unpadded."""
    row = {"tokens": jnp.asarray(document), "counted": jnp.ones(len(document), dtype)}
    value, grads = jax.jit(jax.value_and_grad(lambda p, row: task.loss(p, row).sum()))(params, row)
    named = jax.tree_util.tree_flatten_with_path(grads)[0]
    return float(value), {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(g) for p, g in named}


def packed_and_alone(shape, rng, dtype):
    """Yields each document's (gradients, loss, norm, sketch) from the packed pass, and (loss, gradients) alone."""
    task, params = build_decoder(shape, 0)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    documents = documents_of(rng)
    rows, ids = rows_of(documents)
    rows["counted"] = rows["counted"].astype(dtype)
    wanted = ("gradients", "loss", "norm", "sketch")
    found = uj.collect(packed(task, 3), params, rows, wanted, sketch=uj.Sketch(3))
    places = {int(document): k for k, document in enumerate(ids.ravel()) if document >= 0}
    assert sorted(places) == list(range(len(documents)))
    for leaf in jax.tree.leaves(found):
        assert not np.asarray(leaf)[ids.ravel() < 0].any(), "no document, no gradient"
    seen = sites(task, params, {"tokens": jnp.zeros(14, jnp.int32), "counted": jnp.zeros(14, dtype)})
    drawn = sk.drawn(seen, uj.Sketch(3))
    for number, document in enumerate(documents):
        mine = jax.tree.map(lambda x, at=places[number]: np.asarray(x[at]), found)
        value, want = alone(task, params, document, dtype)
        formed = {path: (Direct(jnp.asarray(g)[None]),) for path, g in want.items()}
        yield mine, value, want, np.asarray(sk.rows(seen, uj.Sketch(3), drawn, formed))[0]


def flat(gradients):
    return np.concatenate([np.asarray(gradients[path], np.float64).ravel() for path in sorted(gradients)])


def test_packed_documents_have_the_gradients_of_the_documents_alone(rng):
    """float32, 1e-6 of each document's gradient."""
    for mine, value, want, sketched in packed_and_alone(Shape(17, 14, 1, 16, 2), rng, jnp.float32):
        np.testing.assert_allclose(mine["loss"], value, rtol=1e-6)
        assert relative(flat(mine["gradients"]), flat(want)) < 1e-6
        np.testing.assert_allclose(mine["norm"], np.linalg.norm(flat(want)), rtol=1e-5)
        assert relative(mine["sketch"], sketched) < 1e-5


@pytest.mark.usefixtures("x64")
def test_packed_documents_agree_parameter_by_parameter(rng):
    shape = Shape(17, 14, 1, 16, 2, kv_heads=1, positions="learned", norm="layer", mlp="gelu", tied=False)
    for mine, value, want, sketched in packed_and_alone(shape, rng, jnp.float64):
        np.testing.assert_allclose(mine["loss"], value, rtol=1e-10)
        for path, gradient in want.items():
            np.testing.assert_allclose(mine["gradients"][path], gradient, rtol=1e-8, atol=1e-12, err_msg=path)
        np.testing.assert_allclose(mine["sketch"], sketched, rtol=1e-5, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_every_kind_of_use_packs(rng):
    """Also derived values, tables of positions, weights at every step of a scan over time, uses without a factor."""
    d, t, vocabulary = 6, 14, 17
    params = {
        "table": jnp.asarray(rng.normal(size=(vocabulary, d)), jnp.float64),
        "w": jnp.asarray(rng.normal(size=(d, d)), jnp.float64),
        "scale": jnp.ones(d),
        "heads": jnp.asarray(rng.normal(size=(2, d // 2, d)), jnp.float64),
        "unit": jnp.asarray(rng.normal(size=(d, d)), jnp.float64),
        "stack": jnp.asarray(rng.normal(size=(3, d, d)), jnp.float64) * 0.3,
        "times": jnp.asarray(rng.normal(size=(t, d)), jnp.float64),
        "square": jnp.asarray(rng.normal(size=(d,)), jnp.float64),
        "apart": jnp.asarray(rng.normal(size=(2, d, d)), jnp.float64),
    }

    def loss(params, row):
        h = params["table"][row["tokens"]]
        h = h + jnp.tanh(h @ params["w"]) * params["scale"][None] + h @ params["w"].T
        h = h + jnp.einsum("thc,hcd->td", h.reshape(-1, 2, d // 2), params["heads"])
        h = h @ (params["unit"] / jnp.linalg.norm(params["unit"]))
        h, _ = lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), h, params["stack"])
        h = h + params["times"][: h.shape[0]] + jnp.sin(params["square"][None] * h)
        h = h + jnp.einsum("ti,kio,to->ti", h, params["apart"], h)
        _, h = lax.scan(lambda c, x: (c, jnp.tanh(x @ params["w"])), jnp.zeros(d), h, reverse=True)
        return h.sum(-1)

    rows, ids = rows_of(documents_of(rng))
    task = uj.Task(loss, segments=lambda row: row["segments"], documents=3)
    got = uj.per_example_gradients(task, params, rows)
    one = jax.jit(jax.grad(lambda p, row, mine: jnp.where(mine, loss(p, row), 0).sum()))
    for k in range(ids.size):
        row = jax.tree.map(lambda x, k=k: x[k // 3], rows)
        want = one(params, row, row["segments"] == k % 3 + 1)
        for path, gradient in want.items():
            np.testing.assert_allclose(got[path][k], gradient, rtol=1e-9, atol=1e-12, err_msg=path)
    found = sites(task, params, jax.tree.map(lambda x: x[0], rows))
    axes = axes_of(task, found, params, rows)
    whole = {leaf.path for leaf in found.leaves for site in leaf.sites if axes.sites[site.number] is None}
    assert whole <= {"unit", "apart"}, "all other uses run over the sequence"


def test_owned_factors_agree_with_repeated_ones(rng, monkeypatch):
    """Norms by Gram matrices within a document, inner products and pools, with owners and without."""
    task, params = build_decoder(Shape(17, length=14, width=16, heads=2, layers=1), 0)
    rows, _ = rows_of(documents_of(rng))
    together = packed(task, 3)
    found = sites(together, params, jax.tree.map(lambda x: x[0], rows))
    _, factors = jax.jit(functools.partial(each_example, together, found))(params, rows)
    repeated = {path: tuple(expand(f) for f in uses) for path, uses in factors.items()}
    want = algebra.norm(found, repeated)
    for cost in (-1, 10**9):
        monkeypatch.setattr(algebra, "_gram_cost", lambda *_, cost=cost: cost)
        norm = jax.jit(lambda x: algebra.norm(found, x))(factors)
        np.testing.assert_allclose(norm, want, rtol=1e-5, atol=1e-6)
    both = jax.jit(lambda x: algebra.inner(found, x, x))
    inner = both(repeated)
    np.testing.assert_allclose(both(factors), inner, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.sqrt(np.diag(inner)), want, rtol=1e-4, atol=1e-5)
    pooled, single = algebra.dense(found, algebra.pool(factors, 3)), algebra.dense(found, repeated)
    for path, value in single.items():
        np.testing.assert_allclose(pooled[path], value.reshape(-1, 3, *value.shape[1:]).sum(1), rtol=1e-4, atol=1e-5)
    assert form(found.leaves[0], factors[found.leaves[0].path]).shape[0] == rows["tokens"].shape[0] * 3


def test_packed_rows_on_several_devices(rng):
    task, params = build_decoder(Shape(17, length=14, width=16, heads=2, layers=1), 0)
    rows, _ = rows_of(documents_of(rng) * 2)
    assert rows["tokens"].shape[0] == 4
    mesh = meshes.make_mesh(4, model=2)
    wanted = ("loss", "norm", "sketch")
    one = uj.collect(packed(task, 3), params, rows, wanted, sketch=uj.Sketch(3))
    held, placed = meshes.shard_params(mesh, params), meshes.shard_batch(mesh, rows)
    other = uj.collect(packed(task, 3), held, placed, wanted, sketch=uj.Sketch(3))
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(np.abs(a).max()))


# ---------------------------------------------------------------- documents that see each other


def test_documents_that_see_each_other_are_refused(rng):
    task, params = build_decoder(Shape(17, length=14, width=16, heads=2, layers=1), 0)
    rows, _ = rows_of(documents_of(rng))

    def unmasked(params, row):
        return task.loss(params, {"tokens": row["tokens"], "counted": row["counted"]})

    leaking = uj.Task(unmasked, segments=lambda row: row["segments"], documents=3)
    with pytest.raises(
        CoverageError, match=r"a gradient through the positions of another.*attention.* at .*blocks\.py"
    ):
        uj.gradient_norms(leaking, params, rows)


def test_a_discrete_coupling_is_refused(rng):
    """The third token with id 0 in a row is dropped, as by an expert that is full: no gradient runs between them."""

    def loss(params, row):
        keep = jnp.cumsum(row["tokens"] % 3 == 0) % 3 != 0
        return jnp.where(keep, (params["table"][row["tokens"]] ** 2).sum(-1), 0.0)

    params = {"table": jnp.asarray(rng.normal(size=(17, 4)), jnp.float32)}
    rows, _ = rows_of(documents_of(rng))
    task = uj.Task(loss, segments=lambda row: row["segments"], documents=3)
    with pytest.raises(CoverageError, match="no gradient runs between them: something discrete"):
        uj.gradient_norms(task, params, rows)


def test_documents_that_only_later_rows_hold_together_are_refused(rng):
    """The first rows hold one document each, so they cannot show it; nor does one such batch settle the matter."""

    def loss(params, row):
        h = jnp.tanh(row["x"] @ params["w"])
        return jnp.square(h + h.mean(0, keepdims=True)).sum(-1)

    params = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
    segments = jnp.asarray([[1] * 8] * 5 + [[1] * 4 + [2] * 4] * 2)
    rows = {"x": jnp.asarray(rng.normal(size=(7, 8, 3)), jnp.float32), "s": segments}
    task = uj.Task(loss, segments=lambda row: row["s"], documents=2)
    uj.gradient_norms(task, params, jax.tree.map(lambda x: x[:5], rows))
    for some in (rows, jax.tree.map(lambda x: x[5:], rows)):
        with pytest.raises(CoverageError, match="through the positions of another"):
            uj.gradient_norms(task, params, some)


def test_arrays_that_are_no_content_are_left_alone(rng):
    """Positions in an array of their own, from which the mask is made; a vector of the row as long as the sequence; a
    feature axis as long; tokens with their targets in one array; an infinite loss on padding."""
    t, width = 8, 8
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 2, 3, 3, 3]])
    starts = jnp.concatenate([jnp.ones((3, 1), bool), segments[:, 1:] != segments[:, :-1]], 1)
    first = jax.lax.cummax(jnp.where(starts, jnp.arange(t)[None], 0), axis=1)
    rows = {
        "x": jnp.asarray(rng.normal(size=(3, t + 1, width)), jnp.float32),
        "place": jnp.arange(t)[None] - first,
        "s": segments,
        "vector": jnp.asarray(rng.normal(size=(3, t)), jnp.float32),
    }
    params = {"w": jnp.asarray(rng.normal(size=(width, width)) * 0.3, jnp.float32), "c": jnp.ones(t)}

    def loss(params, row):
        h = jnp.tanh(row["x"] @ params["w"])
        document = jnp.cumsum(row["place"] == 0)
        seen = document[:, None] == document[None]
        mixed = jax.nn.softmax(jnp.where(seen, h[:-1] @ h[:-1].T, -jnp.inf)) @ h[:-1]
        each = jnp.square(mixed).sum(-1) * (params["c"] * row["vector"]).sum()
        return jnp.where(row["s"] > 0, each, jnp.inf)

    got = uj.collect(uj.Task(loss, segments=lambda row: row["s"], documents=3), params, rows, ("loss", "gradients"))
    one = jax.jit(jax.grad(lambda p, row, mine: jnp.where(mine, loss(p, row), 0).sum()))
    for k in range(9):
        row = jax.tree.map(lambda x, k=k: x[k // 3], rows)
        mine = row["s"] == k % 3 + 1
        want = one(params, row, mine)
        np.testing.assert_allclose(got["loss"][k], jnp.where(mine, loss(params, row), 0).sum(), rtol=1e-5)
        for path, gradient in want.items():
            scale = np.abs(gradient).max()
            np.testing.assert_allclose(got["gradients"][path][k], gradient, rtol=1e-4, atol=1e-5 * scale, err_msg=path)


# ---------------------------------------------------------------- positions and tokens


def per_position(rng, dtype):
    """A decoder-like loss, and its twin in which every position has parameters of its own."""
    t, d, vocabulary = 5, 4, 7
    params = {
        "table": jnp.asarray(0.4 * rng.normal(size=(vocabulary, d)), dtype),
        "q": jnp.asarray(0.4 * rng.normal(size=(d, d)), dtype),
        "scale": jnp.asarray(0.4 * rng.normal(size=(d,)), dtype),
        "kernel": jnp.asarray(0.4 * rng.normal(size=(3, d, d)), dtype),
        "stack": jnp.asarray(0.4 * rng.normal(size=(2, d, d)), dtype),
    }
    seen = jnp.tril(jnp.ones((t, t), bool))

    def finish(h, q):
        mixed = jax.nn.softmax(jnp.where(seen[: h.shape[0], : h.shape[0]], q @ h.T, -1e9)) @ h
        return jnp.square(h + mixed).sum(-1)

    def loss(params, tokens):
        h = params["table"][tokens] * params["scale"][None]
        padded = jnp.pad(h, ((2, 0), (0, 0)))
        numbers = ("NWC", "WIO", "NWC")
        h = h + lax.conv_general_dilated(padded[None], params["kernel"], (1,), "VALID", dimension_numbers=numbers)[0]
        h, _ = lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), h, params["stack"])
        return finish(h, h @ params["q"] + (h @ params["table"].T) @ params["table"])

    def own(each, tokens):
        h = jax.vmap(lambda p, token: p["table"][token] * p["scale"])(each, tokens)
        padded = jnp.pad(h, ((2, 0), (0, 0)))
        windows = jnp.stack([padded[k : k + t] for k in range(3)], 1)
        h = h + jnp.einsum("tki,tkio->to", windows, each["kernel"])
        for k in range(2):
            h = h + jnp.tanh(jnp.einsum("ti,tio->to", h, each["stack"][:, k]))
        back = jnp.einsum("tv,tvi->ti", jnp.einsum("ti,tvi->tv", h, each["table"]), each["table"])
        return finish(h, jnp.einsum("ti,tio->to", h, each["q"]) + back)

    return loss, own, params, jnp.asarray(rng.integers(vocabulary, size=(3, t)))


@pytest.mark.usefixtures("x64")
def test_positions_and_tokens_equal_their_definitions(rng):
    loss, own, params, rows = per_position(rng, jnp.float64)
    task = uj.Task(loss)
    wanted = ("loss", "gradients", "norm", "sketch")
    through = uj.collect(task, params, rows, wanted, per="position", sketch=uj.Sketch(2))
    of = uj.collect(task, params, rows, wanted, per="token", sketch=uj.Sketch(2))
    whole = uj.collect(task, params, rows, ("loss", "gradients", "sketch"), sketch=uj.Sketch(2))
    each = jax.tree.map(lambda x: jnp.broadcast_to(x, (5, *x.shape)), params)
    for b, row in enumerate(rows):
        np.testing.assert_allclose(loss(params, row), own(each, row), rtol=1e-10)
        mine = jax.jit(jax.grad(lambda p, row: own(p, row).sum()))(each, row)
        jacobian = jax.jit(jax.jacrev(loss))(params, row)
        for path in params:
            np.testing.assert_allclose(through["gradients"][path][b], mine[path], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(of["gradients"][path][b], jacobian[path], rtol=1e-9, atol=1e-12)
        for got, want in ((through, mine), (of, jacobian)):
            flat = np.concatenate([np.asarray(x).reshape(5, -1) for x in want.values()], 1)
            np.testing.assert_allclose(got["norm"][b], np.linalg.norm(flat, axis=1), rtol=1e-9)
            np.testing.assert_allclose(got["loss"][b], loss(params, row), rtol=1e-10)
    for got in (through, of):
        np.testing.assert_allclose(got["sketch"].sum(1), whole["sketch"], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(got["gradients"]["q"].sum(1), whole["gradients"]["q"], rtol=1e-9)
    assert np.abs(through["gradients"]["stack"] - of["gradients"]["stack"]).max() > 1e-3, "they are two things"


def test_padding_is_no_position_and_no_token(rng):
    """Of packed rows, both ways add up to the documents' gradients; what follows the last document counts nowhere."""
    task, params = build_decoder(Shape(17, 14, 1, 16, 2), 0)
    rows, _ = rows_of(documents_of(rng))
    together = packed(task, 3)
    whole = uj.collect(together, params, rows, ("loss", "gradients"))

    def unmasked(params, row):
        return task.loss(params, row) + jnp.where(row["segments"] == 0, 5.0, 0.0) * params["last"]["scale"][...].sum()

    padded = dataclasses.replace(together, loss=unmasked)
    for per in ("position", "token"):
        apart = uj.collect(padded, params, rows, ("loss", "gradients"), per=per)
        np.testing.assert_allclose(apart["loss"].sum(1), whole["loss"].reshape(-1, 3).sum(1), rtol=1e-5)
        for path, value in whole["gradients"].items():
            want = value.reshape(-1, 3, *value.shape[1:]).sum(1)
            np.testing.assert_allclose(apart["gradients"][path].sum(1), want, rtol=1e-4, atol=1e-5, err_msg=path)


def test_an_axis_of_the_features_is_not_the_sequence(rng):
    """As long as the sequence by chance: a mean over positions scaled by features has no positions."""
    rows, params = {"x": jnp.asarray(rng.normal(size=(2, 8, 8)), jnp.float32)}, {"s": jnp.ones(8)}
    task = uj.Task(lambda p, row: row["x"] @ jnp.tanh(row["x"].mean(0) * p["s"]))
    with pytest.raises(TapError, match="does not run over the 8 positions"):
        uj.collect(task, params, rows, "norm", per="position")
    got = uj.collect(task, params, rows, "gradients", per="token")["gradients"]["s"]
    want = jax.vmap(lambda row: jax.jacrev(lambda p: task.loss(p, row))(params)["s"])(rows)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_more_tokens_than_a_chunk(rng):
    loss, params, _ = programs.mlp(rng, jnp.float32)
    rows = {"x": jnp.asarray(rng.normal(size=(2, 37, 6)), jnp.float32), "y": jnp.zeros((2, 37), jnp.int32)}

    def each(params, row):
        return jax.vmap(lambda x, y: loss(params, {"x": x, "y": y}))(row["x"], row["y"])

    got = uj.collect(uj.Task(each), params, rows, ("gradients",), per="token")["gradients"]["layers/0/w"]
    want = jax.vmap(lambda row: jax.jacrev(lambda p: each(p, row))(params)["layers"][0]["w"])(rows)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- refusals


def test_what_has_no_answer_is_refused(rng):
    task, params = build_decoder(Shape(17, length=14, width=16, heads=2, layers=1), 0)
    rows, _ = rows_of(documents_of(rng))
    together = packed(task, 3)
    with pytest.raises(ShapeError, match=r"segments hold numbers from 0 to 3; 0 \(padding\) to 2.*documents=3"):
        uj.gradient_norms(packed(task, 2), params, rows)
    bad = {**rows, "segments": rows["segments"].astype(jnp.float32)}
    with pytest.raises(ShapeError, match=r"segments returned float32\[14\] and the loss \[14\]"):
        uj.gradient_norms(together, params, bad)
    uj.gradient_norms(together, params, rows)
    with pytest.raises(ShapeError, match="segments hold numbers"):  # also after the loss was proven
        uj.gradient_norms(together, params, {**rows, "segments": rows["segments"] + 1})
    with pytest.raises(UsageError, match="belong together"):
        uj.Task(task.loss, documents=3)
    with pytest.raises(UsageError, match="tracing takes one document a row"):
        uj.build_index(together, params, rows, "nowhere")
    with pytest.raises(UnknownNameError, match="Did you mean 'token'"):
        uj.collect(task, params, rows, per="tokens")
    with pytest.raises(UsageError, match="per='token' gives loss, norm"):
        uj.collect(task, params, rows, ("factors",), per="token")
    scalar = dataclasses.replace(task, loss=lambda p, e: task.loss(p, e).sum())
    for per in ("position", "token"):
        with pytest.raises(ShapeError, match="one entry a token"):
            uj.collect(scalar, params, rows, per=per)

    def fixed(params, row):
        return (params["w"] * row["x"].reshape(14, 2)).sum(-1)

    w = {"w": jnp.ones((14, 2))}
    with pytest.raises(TapError, match="cannot be followed at another length than 14"):
        uj.collect(uj.Task(fixed), w, {"x": jnp.ones((2, 14, 2))}, per="position")
    assert uj.collect(uj.Task(fixed), w, {"x": jnp.ones((2, 14, 2))}, per="token")["norm"].shape == (2, 14)

    def direct(params, row):
        return row["x"].sum(-1) * jnp.tanh(row["x"].mean(0) @ params["w"]).sum()

    with pytest.raises(TapError, match=r"does not run over the 14 positions.*exclude=\('w',\)"):
        uj.collect(uj.Task(direct), {"w": jnp.ones((3, 3))}, {"x": jnp.ones((2, 14, 3))}, per="position")


def test_packing(rng):
    documents = [{"tokens": rng.integers(9, size=n), "weight": rng.normal(size=(n, 2))} for n in LENGTHS]
    made = pack(documents, 14, 3)
    assert sorted(made.ids[made.ids >= 0]) == list(range(len(LENGTHS)))
    for row, members in enumerate(made.ids):
        for k, document in enumerate(members):
            mine = made.segments[row] == k + 1
            want = documents[document] if document >= 0 else {"tokens": np.zeros(0), "weight": np.zeros((0, 2))}
            for name, value in want.items():
                np.testing.assert_array_equal(made.rows[name][row][mine], value)
        assert not made.rows["tokens"][row][made.segments[row] == 0].any()
    for wrong, words in [
        ([np.zeros(15)], r"document 0 has 15 positions and a row 14.*Cut it"),
        ([np.zeros(3), np.zeros(0)], "document 1 has 0 positions.*Drop it"),
        ([np.arange(3), np.zeros(3)], r"document 1 holds .*float64.* and the first one .*int64"),
        ([np.zeros((3, 3)), np.ones((2, 1))], "all need the same arrays"),
        ([{"a": np.zeros(3)}, {"b": np.zeros(3)}], "all need the same arrays"),
        ([{"a": np.zeros(3), "b": np.zeros(4)}], "document 0: its arrays"),
        ([], "no documents"),
    ]:
        with pytest.raises(ShapeError, match=words):
            pack(wrong, 14, 3)
