"""Orbax checkpoints of every shape that people keep, into the parameters of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as older
import pytest
from flax import linen, nnx
from orbax.checkpoint import v1

import uimjax as uj
from uimjax import checkpoint, training
from uimjax.errors import CorruptError, MismatchError, MissingFileError, ShapeError, UsageError
from uimjax.models.blocks import Shape
from uimjax.models.decoder import Decoder, build, build_decoder
from uimjax.models.own import language_model


@pytest.fixture(scope="module")
def model():
    return build_decoder(Shape(vocabulary=11, length=6, layers=2, width=8, heads=2), 3)


def same(one, two):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, two))


def blank(params):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


def standard(path, tree):
    saver = older.StandardCheckpointer()
    saver.save(path, tree)
    saver.wait_until_finished()


def managed(path, tree):
    with older.CheckpointManager(path) as manager:
        for step in (3, 12):
            it = tree if step == 12 else jax.tree.map(jnp.zeros_like, tree)
            manager.save(step, args=older.args.StandardSave({"params": it, "step": jnp.int32(step)}))
        manager.wait_until_finished()


def padded(path, tree):
    v1.save(path / "00000100", {"params": nnx.to_pure_dict(tree)})


def whole_state(path, tree):
    pure = nnx.to_pure_dict(tree)
    moments = {"mu": zeros(tree), "nu": zeros(tree), "count": jnp.int32(3)}
    v1.save(path, {"state": {"params": pure, "opt_state": moments}, "step": jnp.int32(3)})


WAYS = {
    "a state": lambda path, p: standard(path, p),
    "a dictionary": lambda path, p: standard(path, nnx.to_pure_dict(p)),
    "of version 1": lambda path, p: v1.save(path, {"params": nnx.to_pure_dict(p), "optimizer": {"nu": jnp.ones(3)}}),
    "in a training state": lambda path, p: v1.save(path, {"state": {"params": nnx.to_pure_dict(p)}, "step": 1.0}),
    "in a state with moments": lambda path, p: whole_state(path, p),
    "a step with zeros before it": lambda path, p: padded(path, p),
    "a manager's newest": lambda path, p: managed(path, nnx.to_pure_dict(p)),
    "beside averages": lambda path, p: v1.save(path, {"params": nnx.to_pure_dict(p), "ema": zeros(p)}),
}


def zeros(params):
    return nnx.to_pure_dict(jax.tree.map(jnp.zeros_like, params))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_parameters_are_found_wherever_they_stand(way, model, tmp_path):
    WAYS[way](tmp_path / "kept", model[1])
    assert same(checkpoint.read_tree(tmp_path / "kept", blank(model[1])), model[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_device_reads_its_part(model, tmp_path):
    standard(tmp_path / "kept", model[1])
    mesh = uj.make_mesh(data=2, model=4)
    from uimjax.mesh import split

    found = checkpoint.read_tree(tmp_path / "kept", blank(model[1]), place=lambda shape: split(mesh, shape))
    assert same(jax.device_get(found), jax.device_get(model[1]))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(found))


def test_a_training_of_our_own_at_any_of_its_steps(model, tmp_path):
    task, params = model
    rng = np.random.default_rng(0)
    rows = {"tokens": rng.integers(11, size=(8, 6)).astype(np.int32), "counted": np.ones((8, 6), np.float32)}
    recipe = uj.Recipe(epochs=2, batch_size=4)
    fitted = training.fit(task, params, rows, recipe, folder=tmp_path, save_every=1, snapshots=(1,))
    assert checkpoint.steps_in(tmp_path) == [1, 2]
    assert same(checkpoint.read_tree(tmp_path, blank(params)), fitted.params)
    low = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    found = checkpoint.read_tree(tmp_path, low)
    assert same(found, jax.tree.map(lambda x: x.astype(jnp.bfloat16), fitted.params)), "checked as stored, then cast"
    first = training.snapshot(tmp_path, params, 1)
    assert same(checkpoint.read_tree(tmp_path, blank(params), 1), first)
    assert same(checkpoint.read_tree(tmp_path / "snapshots", blank(params)), first)
    run = uj.read_run(tmp_path, params, lambda step: 0.1 / step, moments=True)
    assert [(its.rate, its.steps) for its in run] == [(0.1, 1), (0.05, 1)]
    assert [its.adaptive for its in uj.read_run(tmp_path, params)] == [True, True]
    assert [its.adaptive for its in uj.read_run(tmp_path, params, adaptive=False)] == [False, False]
    assert same(run[1].params, fitted.params)
    assert same(run[0].params, first)
    scored = uj.score(task, run, rows, uj.Measurement("f", lambda p, r: task.loss(p, r).sum()), rows, "less", each=True)
    assert scored.values.shape == (8, 8)
    assert "2 checkpoints" in scored.method
    state = training.started(params, recipe, 8)
    adam = checkpoint.load(tmp_path, state, 2)[1].optimizer
    nu = next(its.nu for its in jax.tree.leaves(adam, is_leaf=lambda x: hasattr(x, "nu")) if hasattr(its, "nu"))
    assert same(run[1].optimizer, nu)
    assert len(uj.read_run(tmp_path, params, steps=(2,))) == 1
    with pytest.raises(UsageError, match="above 0 was wanted"):
        uj.read_run(tmp_path, params, lambda _: 0.0)
    with pytest.raises(MismatchError, match="nothing of these parameters under 'nu'"):
        uj.read_run(tmp_path / "snapshots", params, moments=True)
    with pytest.raises(UsageError, match="is one checkpoint, and a series was wanted"):
        uj.read_run(tmp_path / "2", params)
    with pytest.raises(MissingFileError, match="no step 5; its steps are 1, 2"):
        checkpoint.read_tree(tmp_path, blank(params), 5)
    kept = next(tmp_path.glob("digests-2.json"))
    other = tmp_path / "digests-1.json"
    kept.write_bytes(other.read_bytes())
    with pytest.raises(CorruptError, match="is not what was saved"):
        checkpoint.read_tree(tmp_path, blank(params), 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_models_are_refused(model, tmp_path):
    _, params = model
    v1.save(tmp_path / "twice", {"a": {"x": nnx.to_pure_dict(params)}, "b": {"x": nnx.to_pure_dict(params)}})
    with pytest.raises(MismatchError, match=r"several times, under 'a\.x\.', 'b\.x\.'"):
        checkpoint.read_tree(tmp_path / "twice", blank(params))
    standard(tmp_path / "one", params)
    _, wider = build_decoder(Shape(vocabulary=12, length=6, layers=2, width=8, heads=2), 3)
    with pytest.raises(ShapeError, match=r"embedding is \[11, 8\], the model's \[12, 8\]"):
        checkpoint.read_tree(tmp_path / "one", blank(wider))
    _, flatter = build_decoder(Shape(vocabulary=11, length=6, layers=1, width=8, heads=2), 3)
    with pytest.raises(MismatchError, match=r"arrays more than this one, first blocks\.1\."):
        checkpoint.read_tree(tmp_path / "one", blank(flatter))
    _, deeper = build_decoder(Shape(vocabulary=11, length=6, layers=3, width=8, heads=2), 3)
    with pytest.raises(MismatchError, match=r"it has no blocks\.2\.\S+ \(it has blocks\.1\."):
        checkpoint.read_tree(tmp_path / "one", blank(deeper))
    with pytest.raises(MissingFileError, match="is not a folder"):
        checkpoint.read_tree(tmp_path / "none", blank(params))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="holds no Orbax checkpoint"):
        checkpoint.read_tree(tmp_path / "empty", blank(params))


# ---------------------------------------------------------------- models of the reader's own


class Batched(nnx.Module):
    """A decoder that takes `[B, T]`, as many do."""

    def __init__(self, rngs):
        self.inner = Decoder(Shape(vocabulary=11, length=6, layers=1, width=8, heads=2), rngs)

    def __call__(self, tokens):
        return jnp.stack([self.inner(row) for row in tokens])


class Linen(linen.Module):
    batched: bool = False

    @linen.compact
    def __call__(self, tokens):
        assert tokens.ndim == 1 + self.batched
        x = linen.Embed(11, 8)(tokens)
        return linen.Dense(11)(jnp.tanh(jnp.cumsum(x, -2)))


def example(rng):
    return {"tokens": jnp.asarray(rng.integers(11, size=6), jnp.int32), "counted": jnp.ones(6)}


def test_an_nnx_model_of_rows_or_of_batches(rng):
    row, module = example(rng), Batched(nnx.Rngs(0))
    its, plain = language_model(module), build(module.inner)
    inner = nnx.state(module.inner, nnx.Param)
    np.testing.assert_allclose(its.task.loss(its.params, row), plain[0].loss(inner, row), rtol=1e-6)
    one = language_model(module.inner)
    np.testing.assert_array_equal(one.task.loss(one.params, row), plain[0].loss(inner, row))


@pytest.mark.parametrize("batched", [False, True])
def test_a_linen_model_gives_shapes_and_scores(rng, batched):
    module = Linen(batched)
    its, row = language_model(module), example(rng)
    assert {type(leaf) for leaf in jax.tree.leaves(its.params)} == {jax.ShapeDtypeStruct}
    tokens = row["tokens"][None] if batched else row["tokens"]
    params = module.init(jax.random.key(0), tokens)["params"]
    logits = module.apply({"params": params}, tokens)
    logp = jax.nn.log_softmax(logits[0] if batched else logits)
    want = -logp[np.arange(5), row["tokens"][1:]]
    np.testing.assert_allclose(its.task.loss(params, row)[1:], want, rtol=1e-5)
    rows = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), row)
    assert uj.gradient_norms(its.task, params, rows).shape == (2,)


class Odd(nnx.Module):
    def __call__(self, tokens):
        return tokens * 1.0


def test_models_of_something_else_are_refused():
    with pytest.raises(UsageError, match=r"dict arrived; a flax\.nnx\.Module or flax\.linen\.Module"):
        language_model({})
    with pytest.raises(ShapeError, match=r"tokens \[T\] to logits \[T, V\] was wanted"):
        language_model(Odd())
    with pytest.raises(UsageError, match="state that is no parameter"):
        language_model(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
