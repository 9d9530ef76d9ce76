"""Invariances, selection of kinds, and everything the taps refuse."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from tests import programs
from uimjax import factors as algebra
from uimjax import mesh as meshes
from uimjax.errors import BudgetError, CoverageError, ShapeError, TapError, UsageError
from uimjax.models.blocks import Shape
from uimjax.models.decoder import build_decoder
from uimjax.onepass import collect
from uimjax.sketch import Sketch
from uimjax.taps import capture, check_budget, sites, verify
from uimjax.task import Task


def found_for(loss, params, batch):
    task = Task(loss)
    return task, sites(task, params, jax.tree.map(lambda x: x[0], batch))


def gradients(found, params, batch):
    return jax.jit(lambda p, b: algebra.dense(found, capture(found, p, b)[1]))(params, batch)


def test_a_row_does_not_depend_on_its_batch_mates(rng):
    loss, params, batch = programs.decoder(rng, jnp.float32, batch=6)
    _, found = found_for(loss, params, batch)
    whole = gradients(found, params, batch)
    order = np.array([4, 1, 5])
    some = gradients(found, params, jax.tree.map(lambda x: x[order], batch))
    for path, value in whole.items():
        np.testing.assert_allclose(some[path], value[order], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("name", "data", "model"),
    [("mlp", *sizes) for sizes in ((2, 1), (4, 1), (8, 1), (4, 2), (2, 4))]
    + [("decoder_scanned", *sizes) for sizes in ((4, 2), (1, 8))],
)
def test_the_devices_of_either_axis_change_nothing(rng, name, data, model):
    loss, params, batch = {"mlp": programs.mlp, "decoder_scanned": programs.decoder}[name](rng, jnp.float32, batch=8)
    task = Task(loss)
    mesh = meshes.make_mesh(data, model=model)
    held, placed = meshes.shard_params(mesh, params), meshes.shard_batch(mesh, batch)
    split = [leaf for leaf in jax.tree.leaves(held) if not leaf.sharding.is_fully_replicated]
    assert bool(split) == (model > 1 and (name, model) != ("mlp", 8))
    outputs = ("loss", "norm", "leaf_norms", "sketch", "gradients")
    got, want = (collect(task, p, b, outputs, sketch=Sketch(3)) for p, b in ((held, placed), (params, batch)))
    for one, other in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * float(np.abs(other).max()))
    assert len(got["loss"].sharding.device_set) == data * model


def test_differentiating_inside_shard_map_sums_over_devices():
    """The trap that the mesh module warns of, pinned: per-example gradients of a replicated value come back added."""
    mesh = meshes.make_mesh(2)
    spec = jax.sharding.PartitionSpec

    def inside(w, x):
        return jax.grad(lambda w: jnp.sum(w * x))(w)[None]

    x = jnp.asarray([1.0, 10.0])
    got = jax.shard_map(inside, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec("data"))(jnp.float32(2.0), x)
    np.testing.assert_allclose(got, [11.0, 11.0])


def test_kinds_and_layouts_are_recognised(rng):
    loss, params, batch = programs.decoder(rng, jnp.float32)
    _, found = found_for(loss, params, batch)
    kinds = {leaf.path: {site.kind for site in leaf.sites} for leaf in found.leaves}
    assert kinds["embed"] == {"embed", "dense"}
    assert kinds["position"] == {"embed"}
    assert kinds["blocks/qkv"] == kinds["blocks/out"] == kinds["blocks/mlp"] == {"dense"}
    assert len(next(leaf for leaf in found.leaves if leaf.path == "blocks/up").sites) == 2
    assert kinds["blocks/qkv_b"] == {"bias"}
    assert kinds["blocks/scale"] == kinds["temperature"] == {"scale"}
    assert next(leaf for leaf in found.leaves if leaf.path == "blocks/qkv").layout.shape == (3, 8, 24)
    assert next(leaf for leaf in found.leaves if leaf.path == "blocks/out").layout.shape == (3, 8, 8)
    assert "coverage 100%" in str(found)
    assert "blocks/qkv" in str(found)


def test_parts_of_parameters_stay_factored(rng):
    """Slices, splits, layers of an unrolled stack, branches: no per-example gradient of a matrix is formed."""
    for name, direct in (("slices", {"position", "shifts", "strided"}), ("decoder_unrolled", None), ("switches", None)):
        loss, params, batch = programs.ALL[name](rng, jnp.float32)
        _, found = found_for(loss, params, batch)
        factors = jax.eval_shape(functools.partial(capture, found), params, batch)[1]
        formed = {path for path, uses in factors.items() if any(type(f).__name__ == "Direct" for f in uses)}
        if direct is not None:
            assert formed - {"transposed"} == direct  # two uses of `transposed` lie in it in two ways: one is formed
        matrices = {leaf.path for leaf in found.leaves if len(leaf.shape) > 1 and leaf.size > 8}
        allowed = (direct or set()) | {"transposed", "normed", "blocks/qkv_b", "blocks/scale"}
        assert not formed & (matrices - allowed), name


def test_no_weight_gradient_is_built(rng):
    """The compiled pass holds no array of a weight's shape with the batch in front."""
    loss, params, batch = programs.mlp(rng, jnp.float32, batch=5)
    _, found = found_for(loss, params, batch)
    text = str(jax.make_jaxpr(functools.partial(capture, found))(params, batch))
    assert "f32[5,6,7]" not in text
    assert "f32[6,7] = dot_general" not in text


def test_parameters_are_chosen_by_patterns_of_their_paths(rng):
    loss, params, batch = programs.oddities(rng, jnp.float32)
    every = programs.brute_force(loss, params, batch)[1]
    for choice, kept in [
        ({"include": ("v", "s*")}, {"v", "shared", "start", "stopped"}),
        ({"exclude": ["*o*", "divide"]}, {"v", "length", "shared", "start"}),
    ]:
        task = Task(loss, **choice)
        found = sites(task, params, jax.tree.map(lambda x: x[0], batch))
        assert {leaf.path for leaf in found.leaves} == kept
        got = gradients(found, params, batch)
        assert set(got) == kept, "nothing is said of the others"
        for path in kept:
            np.testing.assert_allclose(got[path], every[path], rtol=2e-4, atol=1e-6, err_msg=path)
        verify(task, found, params, batch)
        size = {k: v.size for k, v in params.items() if k != "count"}
        assert found.coverage == pytest.approx(sum(size[k] for k in kept) / sum(size.values()))
        assert "excluded" in str(found)
        assert f"coverage {found.coverage:.0%}" in str(found)
    query = sites(Task(lambda p, e: loss(p, e) * 2), params, jax.tree.map(lambda x: x[0], batch), like=found)
    assert [leaf.path for leaf in query.leaves] == [leaf.path for leaf in found.leaves]
    for choice, words in [
        ({"include": ("lenght",)}, "matches no float parameter; did you mean 'length'"),
        ({"include": ("count",)}, "'count' matches no float parameter"),
        ({"exclude": ("*",)}, "leave no parameter"),
        ({"include": "v"}, "is a string; a tuple of patterns was wanted"),
    ]:
        with pytest.raises(UsageError, match=words):
            sites(Task(loss, **choice), params, jax.tree.map(lambda x: x[0], batch))


def test_constants_that_a_loss_closes_over_are_listed(rng):
    table = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
    _, found = found_for(lambda p, e: jnp.sum(e @ table * p), jnp.float32(2.0), jnp.ones((2, 3)))
    assert found.closed == (((3, 2), "float32"),)
    assert "closed over (no gradient): float32[3, 2]" in str(found)


def test_a_parameter_in_a_while_loop_is_refused():
    def loss(w, x):
        return lax.while_loop(lambda c: jnp.sum(c) < 10, lambda c: c * w + 1, x).sum()

    with pytest.raises(TapError, match="while loop at .*no reverse-mode derivative"):
        sites(Task(loss), jnp.float32(1.0), jnp.ones(2))


def test_a_loss_without_the_example_is_refused():
    with pytest.raises(TapError, match="does not depend on the example"):
        sites(Task(lambda w, _: jnp.sum(w**2)), jnp.ones(3), jnp.ones(2))


def test_a_loss_of_two_axes_is_refused():
    with pytest.raises(ShapeError, match=r"a float scalar, or \[T\]"):
        sites(Task(lambda w, x: x * w), jnp.float32(1.0), jnp.ones((2, 2)))


def test_direct_gradients_beyond_the_budget_are_refused_by_name():
    def loss(p, x):
        return jnp.sum(jnp.maximum(p["big"], x))

    task = Task(loss)
    found = sites(task, {"big": jnp.ones((64, 64))}, jnp.ones((64, 64)))
    check_budget(found, 4, budget=1 << 20)
    with pytest.raises(BudgetError, match=r"big \[64, 64\] meets data at .*Use a batch of at most 64"):
        check_budget(found, 1000, budget=1 << 20)


def test_batch_loss_that_couples_examples_is_refused(rng):
    loss, params, batch = programs.mlp(rng, jnp.float32)

    def summed(params, batch):
        return jax.vmap(lambda r: loss(params, r))(batch).sum()

    def coupled(params, batch):
        normed = {**batch, "x": batch["x"] - batch["x"].mean(0, keepdims=True)}
        return jax.vmap(lambda r: loss(params, r))(normed).sum()

    found = sites(Task(loss), params, jax.tree.map(lambda x: x[0], batch))
    verify(Task(loss, batch_loss=summed), found, params, batch)
    with pytest.raises(CoverageError, match="Examples are coupled"):
        verify(Task(loss, batch_loss=coupled), found, params, batch)


def test_a_wrong_gradient_is_caught_and_the_leaf_named(rng):
    """`verify` compares with the loss itself: sites followed for another loss do not pass."""
    loss, params, batch = programs.mlp(rng, jnp.float32)

    def other(params, example):
        return loss(params, example) + 0.3 * jnp.sum(params["layers"][1]["w"] * example["x"][0])

    found = sites(Task(other), params, jax.tree.map(lambda x: x[0], batch))
    with pytest.raises(CoverageError, match="layers/1/w do not add up to jax.grad"):
        verify(Task(loss), found, params, batch)


def test_one_compilation_serves_a_stream(rng):
    """Ragged ends are padded, so the loss is traced no further after the first batch."""
    from uimjax import rows
    from uimjax.interpret import base

    traces = []
    loss, params, batch = programs.mlp(rng, jnp.float32, batch=21)

    def counted(params, example):
        traces.append(1)
        return loss(params, example)

    task = Task(counted)
    found = sites(task, params, jax.tree.map(lambda x: x[0], batch))
    program = base.row_program(found, found, None)
    data = jax.tree.map(np.asarray, batch)
    sizes = [program(params, b.rows, None)[1].shape[0] for b in rows.batches(data, 8)]
    assert sizes == [8, 8, 8]
    assert len(traces) == 1
    assert program._cache_size() == 1


@pytest.mark.parametrize("name", ["mlp"])
def test_dead_code_checks_survive_optimised_python(name):
    """Nothing the engine promises hangs on an `assert` (python -O)."""
    code = f"""
import jax, jax.numpy as jnp, numpy as np
from tests import programs
from uimjax import taps
from uimjax.task import Task
loss, params, batch = programs.ALL[{name!r}](np.random.default_rng(0), jnp.float32)
task = Task(loss)
found = taps.sites(task, params, jax.tree.map(lambda x: x[0], batch))
taps.verify(task, found, params, batch)
print("proven")
"""
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "proven", done.stderr


def test_constants_inside_a_jit_count(rng):
    """Two losses that differ only in a constant of an inner program are two tasks, and both constants are listed."""
    from uimjax.interpret.index import task_digest

    table = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)
    digests = set()
    for k in (1.0, 2.0):
        inner = jax.jit(lambda w, x, c=table * k: jnp.sum(jnp.tanh(x @ w) * c))
        found = sites(Task(inner), jnp.ones((4, 2)), jnp.ones((3, 4)))
        assert found.closed == (((3, 2), "float32"),)
        digests.add(task_digest(found))
    assert len(digests) == 2


@pytest.mark.parametrize("kind", [jax.custom_vjp, jax.custom_jvp])
def test_a_functions_own_derivative_counts(kind):
    """Two losses that differ only in how a custom function is differentiated are two tasks."""
    from uimjax.interpret.index import task_digest

    def digest(slope):
        @kind
        def rounded(x):
            return jnp.round(x)

        if kind is jax.custom_vjp:
            rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (slope * g,))
        else:
            rounded.defjvp(lambda x, t: (rounded(*x), slope * t[0]))
        return task_digest(sites(Task(lambda w, x: jnp.sum(rounded(x @ w) ** 2)), jnp.ones((3, 2)), jnp.ones(3)))

    assert digest(1.0) == digest(1.0) != digest(2.0)


def test_what_python_computes_has_no_digest():
    from uimjax import programs

    for call in (jax.pure_callback, jax.experimental.io_callback):
        made = jax.make_jaxpr(lambda x, call=call: call(lambda x: 2 * x, x, x))(jnp.ones(3))
        with pytest.raises(UsageError, match=rf"jax.{call.__name__} has no digest.*leave the folder out"):
            programs.digest(made, [])


def test_mixed_precision_passes(rng):
    loss, params, batch = programs.mlp(rng, jnp.float32)

    def mixed(params, example):
        half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
        return loss(half, {**example, "x": example["x"].astype(jnp.bfloat16)}).astype(jnp.float32)

    task, found = found_for(mixed, params, batch)
    verify(task, found, params, batch)
    got = gradients(found, params, batch)
    want = jax.vmap(lambda row: jax.grad(loss)(params, row))(batch)["layers"][0]["w"]
    assert np.linalg.norm(got["layers/0/w"] - want) < 0.05 * np.linalg.norm(want)


def test_half_precision_is_summed_in_single(rng):
    """4,096 products of 1 in bfloat16 would stop at 256, where adding 1 rounds away; a decoder's error is small."""
    half = jnp.bfloat16

    def loss(w, x):
        return jnp.sum((x.astype(half) @ w["dense"].astype(half)).astype(jnp.float32)) + jnp.sum(
            w["table"].astype(half)[jnp.zeros(4096, jnp.int32)].astype(jnp.float32)
        )

    w = {"dense": jnp.ones((2, 3)), "table": jnp.ones((5, 2))}
    rows = jnp.ones((2, 4096, 2))
    found = sites(Task(loss), w, rows[0])
    got = gradients(found, w, rows)
    np.testing.assert_array_equal(got["dense"], np.full((2, 2, 3), 4096.0))
    np.testing.assert_array_equal(got["table"][:, 0], np.full((2, 2), 4096.0))

    single, params = build_decoder(Shape(17, 12, 1, 16, 2), 0)
    batch = {"tokens": jnp.asarray(rng.integers(17, size=(3, 12))), "counted": jnp.ones((3, 12))}

    def mixed(p, e):
        return single.loss(jax.tree.map(lambda x: x.astype(half), p), e).astype(jnp.float32)

    coarse, fine = (collect(Task(f), params, batch, ("norm", "gradients")) for f in (mixed, single.loss))
    np.testing.assert_allclose(coarse["norm"], fine["norm"], rtol=0.02)
    for path, want in fine["gradients"].items():
        error = np.linalg.norm(coarse["gradients"][path] - want) / np.linalg.norm(want)
        assert 0 < error < 0.05, (path, error)


def test_a_shard_map_inside_the_loss(rng):
    """Matrices split over a model axis by hand: exact, formed for those parameters alone."""
    mesh = meshes.make_mesh(1, model=4)
    spec = jax.sharding.PartitionSpec

    def loss(p, x):
        h = jnp.tanh(x @ p["in"])
        up = jax.shard_map(
            lambda h, w, s: jnp.tanh(h @ w) * s,
            mesh=mesh,
            in_specs=(spec(), spec(None, meshes.MODEL), spec(meshes.MODEL)),
            out_specs=spec(meshes.MODEL),
        )
        down = jax.shard_map(
            lambda h, w: lax.psum(h @ w, meshes.MODEL),
            mesh=mesh,
            in_specs=(spec(meshes.MODEL), spec(meshes.MODEL, None)),
            out_specs=spec(),
        )
        return jnp.sum(jnp.square(down(up(h, p["up"], p["scale"]), p["down"])))

    shapes = {"in": (3, 8), "up": (8, 8), "scale": (8,), "down": (8, 5)}
    params = {name: jnp.asarray(rng.normal(size=shape) * 0.5, jnp.float32) for name, shape in shapes.items()}
    batch = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    got = collect(Task(loss), params, batch, "gradients")["gradients"]
    for path, want in programs.brute_force(loss, params, batch)[1].items():
        np.testing.assert_allclose(got[path], want, rtol=1e-4, atol=1e-5, err_msg=path)


def test_batch_norm_in_training_mode_and_expert_capacity_are_refused(rng):
    """Both couple the examples of a batch: the loss that was trained differs from the sum over single examples."""
    norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(norm, nnx.Param, ...)

    def normed(params, batch, evaluate):
        model = nnx.merge(graph, params, rest, copy=True)
        return jnp.square(model(batch, use_running_average=evaluate) - 1.0)

    def routed(params, batch, capacity):
        full = jnp.cumsum(batch[:, 0] > 0) > capacity
        return jnp.where(full[:, None], 0.0, batch * params["w"][None])

    batch = jnp.asarray(np.abs(rng.normal(size=(4, 4))), jnp.float32)
    for params, trained, single in [  # noqa: B020  # each with parameters of its own
        (params, lambda p, b: normed(p, b, False).sum(), lambda p, e: normed(p, e[None], True).sum()),
        ({"w": jnp.ones(4)}, lambda p, b: routed(p, b, 2).sum(), lambda p, e: routed(p, e[None], 2).sum()),
    ]:
        with pytest.raises(CoverageError, match="Examples are coupled"):
            collect(Task(single, batch_loss=trained), params, batch)
        collect(Task(single), params, batch)


def test_a_derived_value_makes_only_its_own_parameters_direct(rng):
    params = {"w": jnp.ones((6, 5)), "s": jnp.ones(9), "idle": jnp.ones((2, 2))}
    task = Task(lambda p, x: jnp.sum(jnp.tanh(x @ p["w"]) * p["s"][::2]))
    found = sites(task, params, jnp.ones(6))
    batch = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    verify(task, found, params, batch)
    _, factors = capture(found, params, batch)
    assert [type(f).__name__ for f in factors["w"]] == ["Dense"]
    assert [type(f).__name__ for f in factors["s"]] == ["Direct"]
    assert factors["idle"] == ()
    assert (algebra.dense(found, factors)["idle"] == np.zeros((3, 2, 2))).all()
    with pytest.raises(BudgetError, match="a value derived from parameters"):
        check_budget(found, 100, budget=1000)


def test_complex_parameters_and_values_are_refused():
    with pytest.raises(TapError, match="w is complex"):
        sites(Task(lambda p, x: jnp.abs(jnp.sum(x * p["w"]))), {"w": jnp.ones(3, jnp.complex64)}, jnp.ones(3))
    with pytest.raises(TapError, match="a parameter becomes complex at"):
        sites(Task(lambda w, x: jnp.abs(jnp.sum(jnp.fft.rfft(w) * jnp.fft.rfft(x)))), jnp.ones(8), jnp.ones(8))


def test_a_batch_loss_of_nan_is_refused(rng):
    loss, params, batch = programs.mlp(rng, jnp.float32)
    task = Task(loss, batch_loss=lambda p, _: jnp.nan * p["layers"][0]["b"][0])
    found = sites(task, params, jax.tree.map(lambda x: x[0], batch))
    with pytest.raises(CoverageError, match="batch_loss gives nan on the first 4"):
        verify(task, found, params, batch)


def test_a_loss_without_parameters_is_refused():
    with pytest.raises(TapError, match="no float parameter has a gradient"):
        sites(Task(lambda w, x: jnp.sum(x) + 0.0 * jnp.sum(lax.stop_gradient(w))), jnp.ones(2), jnp.ones(2))
