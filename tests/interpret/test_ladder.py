"""Methods over checkpoints and by solves, through `uj.score`, against formulas in float64 on formed gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import uimjax as uj
from tests.interpret.test_methods import brute, made
from uimjax.curvature import Adam, Harmonic, Kronecker, Operator, Source, projected
from uimjax.errors import MismatchError, NonFiniteError, UnknownNameError, UsageError
from uimjax.interpret import methods
from uimjax.interpret.base import Method
from uimjax.interpret.trajectory import Checkpoint


def regression(rng, rows=14, width=5):
    """A linear model with squared loss: its Gauss-Newton matrix is the second moment of the inputs."""
    data = {"x": rng.normal(size=(rows, width)), "y": rng.normal(size=rows)}
    task = uj.Task(
        lambda w, e: 0.5 * jnp.square(e["x"] @ w - e["y"]).sum(),
        outputs=lambda w, e: e["x"] @ w,
        nll=lambda z, e: 0.5 * jnp.square(z - e["y"]).sum(),
    )
    return task, jnp.asarray(rng.normal(size=(width, 1))), data


def gradients(w, rows):
    return rows["x"] * (rows["x"] @ np.asarray(w) - rows["y"][:, None])


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.usefixtures("x64")
def test_source_equals_its_formula_where_the_curvature_is_exact(rng, each):
    task, w, data = regression(rng)
    queries = jax.tree.map(lambda x: x[:3], data)
    run = [Checkpoint(w + 0.3 * k, rate, steps) for k, (rate, steps) in enumerate([(0.1, 4), (0.2, 3), (0.05, 7)])]
    method = Method("s", curvature=Kronecker("ekfac", Source("ggn")), normalize="none", checkpoints="segments")
    got = uj.score(task, run, data, uj.Measurement("nll", task.loss), queries, method, each=each, batch_size=5)
    values, q = np.linalg.eigh(data["x"].T @ data["x"] / len(data["x"]))
    v = gradients(run[-1].params, queries)
    v = v if each else v.mean(0, keepdims=True)
    want = 0.0
    for its in reversed(run):  # three checkpoints, three segments of one each
        time = its.rate * its.steps
        taken = q @ np.diag((1 - np.exp(-time * values)) / values) @ q.T
        want = want - gradients(its.params, data) @ taken @ v.T
        v = v @ (q @ np.diag(np.exp(-time * values)) @ q.T)
    np.testing.assert_allclose(got.values, want, rtol=2e-4, atol=1e-5 * np.abs(want).max())


@pytest.mark.usefixtures("x64")
def test_one_long_segment_is_influence(rng):
    task, w, data = regression(rng)
    queries = jax.tree.map(lambda x: x[:3], data)
    method = Method("s", curvature=Kronecker("kfac", Source("ggn")), normalize="none", checkpoints="segments")
    got = uj.score(
        task, [Checkpoint(w, 1.0, 10**6)], data, uj.Measurement("nll", task.loss), queries, method, each=True
    ).values
    h = data["x"].T @ data["x"] / len(data["x"])
    want = -gradients(w, data) @ np.linalg.solve(h, gradients(w, queries).T)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


@pytest.mark.usefixtures("x64")
def test_checkpoints_are_summed_by_learning_rate_averaged_or_the_last(rng):
    task, params, data, measurement, queries = made(rng)
    other = jax.tree.map(lambda x: x * 1.3, params)
    run = [Checkpoint(params, 0.3), Checkpoint(other, 0.1)]
    g, q = ([brute(task.loss, p, rows) for p in (params, other)] for rows in (data, queries))
    products = [-x @ y.T for x, y in zip(g, q, strict=True)]
    ask = (data, measurement, queries)
    summed = uj.score(task, run, *ask, "tracin", each=True)
    np.testing.assert_allclose(summed.values, (3 * products[0] + products[1]) / 4, rtol=1e-4, atol=1e-6)
    assert "2 checkpoints" in summed.method
    mean = uj.score(task, run, *ask, Method("m", normalize="none", checkpoints="mean"), each=True)
    np.testing.assert_allclose(mean.values, (products[0] + products[1]) / 2, rtol=1e-4, atol=1e-6)
    last = uj.score(task, run, *ask, "grad_dot", each=True)
    np.testing.assert_allclose(last.values, products[1], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_less_is_the_cosine_with_adams_update(rng):
    task, params, data, measurement, queries = made(rng)
    optimizer = optax.adamw(1e-3)
    state = optimizer.init(params)
    for k in range(3):
        gradient = jax.grad(lambda p, k=k: task.loss(p, jax.tree.map(lambda x: x[k], data)))(params)
        _, state = optimizer.update(gradient, state, params)
    nu = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(state[0].nu)]) / (1 - 0.999**3)
    g, q = brute(task.loss, params, data), brute(task.loss, params, queries)
    update = g / (np.sqrt(nu) + 1e-8)
    update, q = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (update, q))
    got = uj.score(
        task, [Checkpoint(params, optimizer=state)], data, measurement, queries, "less", each=True, batch_size=7
    )
    np.testing.assert_allclose(got.values, -update @ q.T, rtol=1e-3, atol=1e-4)
    with pytest.raises(UsageError, match="pass checkpoints that hold them"):
        uj.score(task, params, data, measurement, queries, "less")
    with pytest.raises(MismatchError, match="second moments have no"):
        uj.score(task, [Checkpoint(params, optimizer={"w": jnp.ones(3)})], data, measurement, queries, "less")
    bad = jax.tree.map(lambda x: -jnp.ones_like(x), params)
    with pytest.raises(NonFiniteError, match="second moments of .* are negative"):
        uj.score(task, [Checkpoint(params, optimizer=bad)], data, measurement, queries, "less")


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.usefixtures("x64")
def test_solved_curvatures_equal_dense_algebra(rng, each):
    task, params, data, measurement, queries = made(rng)
    g, q = brute(task.loss, params, data), brute(task.loss, params, queries)
    q = q if each else q.mean(0, keepdims=True)
    flat, tree = jax.flatten_util.ravel_pytree(params)

    def outputs(x, row):
        return task.outputs(tree(x), row)

    jac = jax.jit(jax.vmap(jax.jacrev(outputs), (None, 0)))(flat, data)  # [N, C, P]
    p = jax.nn.softmax(jax.vmap(outputs, (None, 0))(flat, data))
    h = np.einsum("nc,ncp,ncq->pq", p, jac, jac) - np.einsum(
        "np,nq->pq", *(np.einsum("nc,ncp->np", p, jac) for _ in range(2))
    )
    h = h / len(g)
    damping = 0.5 * np.trace(h) / len(h)
    want = -g @ np.linalg.solve(h + damping * np.eye(len(h)), q.T)
    for kind in ("dense", "cg"):
        method = Method(kind, curvature=Operator(kind, damping=0.5, tolerance=1e-8, iterations=300), normalize="none")
        got = uj.score(task, params, data, measurement, queries, method, each=each, batch_size=7)
        rtol = 1e-3 if kind == "dense" else 5e-2  # the mean eigenvalue of cg is an estimate by random signs
        np.testing.assert_allclose(got.values, want, rtol=rtol, atol=rtol * np.abs(want).max())
        assert got.unit.startswith("nats")
        assert len(got.how["solves"]) == 1
    sizes = [leaf.size for leaf in uj.sites(task, params, jax.tree.map(lambda x: x[0], data)).leaves]
    start, want = 0, 0.0
    for size in sizes:
        block, v = g[:, start : start + size], q[:, start : start + size]
        floor = 0.1 * (block**2).sum() / len(g) / size
        mean = np.mean([np.linalg.inv(floor * np.eye(size) + np.outer(x, x)) for x in block], 0)
        want, start = want - block @ mean @ v.T, start + size
    got = uj.score(task, params, data, measurement, queries, "datainf", each=each, batch_size=7)
    assert got.method == "datainf, damping 0.1 x mean eigenvalue of each parameter"
    np.testing.assert_allclose(got.values, want, rtol=1e-3, atol=1e-5 * np.abs(want).max())


def test_combinations_without_a_meaning_are_refused(rng):
    with pytest.raises(UsageError, match="would have to be solved for each of them|have to be solved"):
        Method("m", curvature=Operator("cg"), normalize="unit")
    with pytest.raises(UsageError, match="is measured on whole gradients, and rank-4 sketch leaves none"):
        Method("m", uj.Sketch(4), Kronecker("ekfac"), normalize="none")
    with pytest.raises(UsageError, match="segments .SOURCE. work on the eigenvalues"):
        Method("m", curvature=Harmonic(), normalize="none", checkpoints="segments")
    for unused in ({"damping": 0.1}, {"terms": 4}, {"query_rank": 8}):
        with pytest.raises(UsageError, match=f"keep every direction whole: leave {next(iter(unused))} out"):
            Method("m", curvature=Kronecker(**unused), normalize="none", checkpoints="segments")
    with pytest.raises(UnknownNameError, match="unknown way to use checkpoints 'summ'. Did you mean 'sum'"):
        Method("m", checkpoints="summ")
    with pytest.raises(UsageError, match="should be above 0"):
        Adam(eps=0.0)
    with pytest.raises(UsageError, match="should be above 0"):
        Harmonic(damping=0.0)
    task, w, data = regression(rng)
    run = [Checkpoint(w, 0.0, 3)]
    with pytest.raises(UsageError, match="SOURCE needs of each checkpoint its learning rate"):
        uj.score(task, run, data, uj.Measurement("nll", task.loss), data, "source")


@pytest.mark.usefixtures("x64")
def test_a_whole_projected_curvature_has_one_block(rng):
    task, params, data, measurement, queries = made(rng)
    g, q = brute(task.loss, params, data), brute(task.loss, params, queries)
    h = g.T @ g / len(g)
    h = h + 0.3 * np.trace(h) / len(h) * np.eye(len(h))
    method = Method("full", uj.Sketch(64), projected(0.3, whole=True), normalize="none")
    got = uj.score(task, params, data, measurement, queries, method, each=True)
    np.testing.assert_allclose(got.values, -g @ np.linalg.solve(h, q.T), rtol=1e-3, atol=1e-4)
    assert set(methods.BASELINES) >= {"bm25", "ngram", "representer", "rep_sim"}
