"""Products with the Hessian and the Gauss-Newton matrix, and four inverses by them, against dense float64 algebra."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests import programs
from uimjax.curvature import lanczos, operator, products
from uimjax.curvature.operator import Operator
from uimjax.errors import BudgetError, MismatchError, NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.rows import Pass, example_spec
from uimjax.taps import sites
from uimjax.task import Task

pytestmark = pytest.mark.usefixtures("x64")
ROWS = 12


class Case(NamedTuple):
    """A small classifier, and its matrices by the book: `hessian` and `ggn` `[P, P]`, `v` `[Q, P]` to solve for."""

    task: Task
    params: dict
    data: dict
    hessian: np.ndarray
    ggn: np.ndarray
    v: np.ndarray

    @property
    def found(self):
        return sites(self.task, self.params, example_spec(self.data))

    def split(self, flat):
        """`[Q, P]` to `{path: [Q, *shape]}`, in the order that `ravel_pytree` flattens in."""
        leaves = jax.tree_util.tree_flatten_with_path(self.params)[0]
        parts = np.split(np.asarray(flat), np.cumsum([leaf.size for _, leaf in leaves])[:-1], 1)
        names = [jax.tree_util.keystr(path, simple=True, separator="/") or "params" for path, _ in leaves]
        return {n: x.reshape(-1, *leaf.shape) for n, x, (_, leaf) in zip(names, parts, leaves, strict=True)}

    def flat(self, parts):
        return np.concatenate([np.asarray(parts[p]).reshape(len(parts[p]), -1) for p in self.split(self.v)], 1)

    def solve(self, choice, damping, batch_size=5, v=None):
        gradients = self.split(self.v if v is None else v)
        x, info = operator.solve(
            choice, self.found, self.task, self.params, self.data, gradients, Pass(batch_size), damping
        )
        return self.flat(x), info


def logits(params, example):
    h = example["x"]
    for k, layer in enumerate(params["layers"]):
        h = h @ layer["w"] + layer["b"]
        h = jax.nn.relu(h) if k < 2 else h
    return h


@pytest.fixture(scope="module")
def case():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        loss, params, data = programs.mlp(rng, jnp.float64, batch=ROWS)
        start, back = ravel_pytree(params)

        @jax.jit
        def matrices(flat):
            def mean(flat):
                return jax.vmap(lambda row: loss(back(flat), row))(data).mean()

            def outputs(flat):
                return jax.vmap(lambda row: logits(back(flat), row))(data)

            j, p = jax.jacrev(outputs)(flat), jax.nn.softmax(outputs(flat))
            inner = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(p)
            return jax.hessian(mean)(flat), jnp.einsum("ncp,ncd,ndq->pq", j, inner, j) / ROWS

        task = Task(loss, outputs=logits, label=lambda e: e["y"])
        return Case(task, params, data, *map(np.asarray, matrices(start)), rng.normal(size=(3, start.size)))


@pytest.fixture(scope="module")
def small():
    """A softmax regression in single precision, whose Hessian and Gauss-Newton matrix are one and known in float64; the
    key of a row is part of its data."""

    def outputs(p, e):
        return (e["x"] * (1 + jax.random.key_data(e["key"])[1] % 2)) @ p["w"]

    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        data = {
            "x": rng.normal(size=(7, 5)).astype(np.float32),
            "y": rng.integers(3, size=7),
            "key": jax.random.split(jax.random.key(0), 7),
        }
        params = {"w": rng.normal(size=(5, 3)).astype(np.float32)}
        x = data["x"].astype(float) * (1 + np.asarray(jax.random.key_data(data["key"]))[:, 1:] % 2)
    p = np.exp(x @ params["w"])
    p /= p.sum(1, keepdims=True)
    inner = np.einsum("nc,cd->ncd", p, np.eye(3)) - p[:, :, None] * p[:, None, :]
    h = np.einsum("ni,ncd,nj->icjd", x, inner, x).reshape(15, 15) / 7
    loss = lambda p, e: programs.cross_entropy(outputs(p, e), e["y"])  # noqa: E731
    return Case(Task(loss, outputs=outputs, label=lambda e: e["y"]), params, data, h, h, rng.normal(size=(3, 15)))


def direct(h, damping, v):
    return np.linalg.solve(h + damping * np.eye(len(h)), v.T).T


@pytest.fixture(autouse=True)
def _one_shape(monkeypatch):
    """The matrix is formed by as many columns at once as there are queries, so that one program serves both."""
    monkeypatch.setattr(products, "COLUMNS", 3)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_products_equal_the_matrix_by_the_book(case, kind):
    h = products.matrix(kind, case.found, case.task, case.params, case.data, Pass(5))
    np.testing.assert_allclose(products.formed(h), getattr(case, kind), rtol=1e-9, atol=1e-12)


CHOICES = (
    Operator("dense", "ggn"),
    Operator("dense", "hessian"),
    Operator("cg", "hessian", iterations=400, tolerance=1e-9),
)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_solver_equals_the_direct_solve(case, choice):
    h = getattr(case, choice.matrix)
    values = np.linalg.eigvalsh(h)
    damping = 0.05 * values[-1] - min(values[0], 0)
    got, info = case.solve(choice, damping)
    np.testing.assert_allclose(got, direct(h, damping, case.v), rtol=1e-5, atol=1e-6 * np.abs(got).max())
    assert info["curvature"] == f"{choice.kind}({choice.matrix})"
    if choice.kind == "dense":
        assert info["negative"] == (values < -1e-12).sum()
        np.testing.assert_allclose([info["smallest"], info["largest"]], values[[0, -1]], rtol=1e-6, atol=1e-12)
    else:
        residual = np.linalg.norm(got @ h + damping * got - case.v, axis=1) / np.linalg.norm(case.v, axis=1)
        np.testing.assert_allclose(info["residual"], residual, rtol=1e-3, atol=1e-12)
        assert residual.max() < 1e-6


def test_preconditioned_gradients_reach_the_same_answer_in_fewer_products(case):
    h, damping = case.ggn, 1e-3
    basis, values = np.linalg.eigh(h + damping * np.eye(len(h)))[::-1]
    noisy = values * np.exp(0.3 * np.random.default_rng(0).normal(size=len(values)))  # near, as EK-FAC is
    shapes = [(path, x.shape[1:]) for path, x in case.split(case.v).items()]

    def near(inverse, v):
        flat = inverse @ jnp.concatenate([v[path].ravel() for path, _ in shapes])
        parts = jnp.split(flat, np.cumsum([int(np.prod(shape)) for _, shape in shapes])[:-1])
        return {path: x.reshape(shape) for (path, shape), x in zip(shapes, parts, strict=True)}

    help = operator.Precondition(near, jnp.asarray((basis / noisy) @ basis.T))
    few, many = (Operator("cg", iterations=count, tolerance=1e-9) for count in (12, 200))
    args = case.found, case.task, case.params, case.data, case.split(case.v), Pass(5), damping
    x, info = operator.solve(many, *args, help)
    np.testing.assert_allclose(
        case.flat(x), direct(h, damping, case.v), rtol=1e-5, atol=1e-7 * np.abs(case.v).max() / damping
    )
    assert info["residual"].max() < 1e-8
    assert operator.solve(few, *args, help)[1]["residual"].max() < 1e-5
    assert operator.solve(few, *args)[1]["residual"].min() > 1e-2
    with pytest.raises(UsageError, match="lissa takes no preconditioner"):
        operator.solve(Operator("lissa"), *args, help)


def test_lissa_equals_the_direct_solve(small):
    damping = 0.1 * np.linalg.eigvalsh(small.ggn)[-1]
    got, info = small.solve(Operator("lissa", iterations=200), damping)
    want = direct(small.ggn, damping, small.v)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    assert info["residual"].max() < 1e-5
    got, info = small.solve(Operator("lissa", iterations=4), damping)  # and says so where it has not arrived
    off = np.linalg.norm(got @ small.ggn + damping * got - small.v, axis=1) / np.linalg.norm(small.v, axis=1)
    np.testing.assert_allclose(info["residual"], off, rtol=1e-4)
    assert off.min() > 1e-2


def test_arnoldi_is_the_inverse_on_the_largest_eigenpairs(case):
    pytest.importorskip("matfree", reason="Arnoldi takes matfree, an extra")
    h, damping = case.hessian, 1e-3
    values, vectors = np.linalg.eigh(h)
    for rank in (10, len(h)):  # the Krylov space of all steps holds every eigenvector
        kept = [k for k in np.argsort(-values)[:rank] if values[k] > 1e-8 * values[-1]]
        u = vectors[:, kept]
        want = (case.v @ u / (values[kept] + damping)[None]) @ u.T
        got, info = case.solve(Operator("arnoldi", "hessian", iterations=len(h), rank=rank), damping)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
        np.testing.assert_allclose(info["eigenvalues"][:10], values[kept][:10], rtol=1e-8)
        np.testing.assert_allclose(info["captured"], ((case.v @ u) ** 2).sum(1) / (case.v**2).sum(1), rtol=1e-6)
        assert info["negative"] == (values < -1e-8 * values[-1]).sum() > 0
        assert info["error"] < 1e-8
    inside = case.v @ u @ u.T  # there the full rank is the direct solve
    got, _ = case.solve(Operator("arnoldi", "hessian", iterations=len(h), rank=len(h)), damping, v=inside)
    np.testing.assert_allclose(got, direct(h, damping, inside), rtol=1e-5, atol=1e-5 * np.abs(got).max())


def test_few_lanczos_steps_say_how_far_off_they_are(small):
    pytest.importorskip("matfree", reason="Arnoldi takes matfree, an extra")
    h = products.matrix("ggn", small.found, small.task, small.params, small.data, Pass(5))
    pairs = lanczos.eigenpairs(h, rank=4, steps=6)
    u = small.flat(pairs.vectors)
    np.testing.assert_allclose(u @ u.T, np.eye(4), atol=1e-5)
    off = np.linalg.norm(u @ small.ggn - pairs.values[:, None] * u, axis=1).max() / pairs.values[0]
    np.testing.assert_allclose(pairs.error, off, rtol=1e-2)
    assert off > 1e-4


def test_batch_size_padding_and_order_change_nothing(small):
    want = small.v @ small.ggn
    order = np.random.default_rng(1).permutation(7)
    turned = jax.tree.map(lambda x: x[order], small.data)
    for data, size in ((small.data, 99), (small.data, 5), (turned, 5)):  # all at once; 3 rows of padding
        h = products.matrix("ggn", small.found, small.task, small.params, data, Pass(size))
        np.testing.assert_allclose(small.flat(products.times(h, small.split(small.v))), want, rtol=1e-5, atol=1e-5)


def test_queries_are_solved_alone_whatever_their_number_and_size(small, monkeypatch):
    whole, info = small.solve(Operator(), 0.1)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, direct(small.ggn, 0.1, small.v), rtol=1e-3, atol=1e-4)
    assert 1e-9 < info["residual"].max() < 2e-5
    scales = np.array([1e-30, 1.0, 1e30])[:, None]
    got, _ = small.solve(Operator(), 0.1, v=small.v * scales)
    np.testing.assert_allclose(got / scales, whole, rtol=1e-3, atol=1e-4)
    nothing, info = small.solve(Operator(), 0.1, v=small.v * np.array([0.0, 1.0, 0.0])[:, None])
    assert not nothing[[0, 2]].any()
    assert not info["residual"][[0, 2]].any()
    np.testing.assert_allclose(nothing[1], whole[1], rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(products, "QUERIES", 3)
    seven, info = small.solve(Operator(), 0.1, v=np.concatenate([small.v, 2 * small.v, 3 * small.v])[:7])
    np.testing.assert_allclose(seven, np.concatenate([whole, 2 * whole, 3 * whole])[:7], rtol=1e-3, atol=1e-4)
    assert info["residual"].shape == (7,)


def test_parameters_that_are_excluded_stay_constant(case):
    task = Task(case.task.loss, outputs=logits, label=case.task.label, exclude=("*/1/*",))
    found = sites(task, case.params, example_spec(case.data))
    parts, paths = case.split(case.v), [leaf.path for leaf in found.leaves]
    index = case.split(np.arange(case.v.shape[1], dtype=float)[None])
    kept = np.concatenate([np.asarray(index[path]).ravel() for path in paths]).astype(int)
    h = case.ggn[np.ix_(kept, kept)]
    mine = {path: parts[path] for path in paths}
    x, _ = operator.solve(Operator("dense"), found, task, case.params, case.data, mine, Pass(5), 0.1)
    assert sorted(x) == sorted(paths)
    got = np.concatenate([np.asarray(x[path]).reshape(3, -1) for path in paths], 1)
    np.testing.assert_allclose(got, direct(h, 0.1, case.v[:, kept]), rtol=1e-8, atol=1e-10)
    with pytest.raises(UnknownNameError, match="attributed parameter 'layers/1/b'"):
        products.directions(found, parts)


def test_a_loss_of_tokens_with_outputs_of_any_size(rng):
    """`[T]` losses are summed; 20 outputs with a given nll; an integer and a parameter without use beside it; an
    activation with its own reverse rule and no forward mode."""

    @jax.custom_vjp
    def squash(x):
        return jnp.tanh(x)

    squash.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))
    params = {
        "w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=4)),
        "times": jnp.asarray(2),
        "idle": jnp.ones(3),
    }
    data = {"x": jnp.asarray(rng.normal(size=(6, 5, 3))), "y": jnp.asarray(rng.normal(size=(6, 5, 4)))}
    weight = np.array([1.0, 2.0, 0.5, 3.0])

    def outputs(p, e):
        return squash(e["x"] @ p["w"].astype(float) + p["b"][None]) * p["times"]

    def tokens(z, e):
        return (jnp.asarray(weight)[None] * jnp.square(z - e["y"])).sum(-1)

    task = Task(lambda p, e: tokens(outputs(p, e), e), outputs=outputs, nll=lambda z, e: tokens(z, e).sum())
    found = sites(task, params, example_spec(data))
    x, y = (np.asarray(data[k]) for k in "xy")
    w, b = (np.asarray(params[k], float) for k in "wb")
    t = np.tanh(x @ w + b)
    # z = 2 t, and dz_o / d(b, w)_o = 2 (1 - t^2) (1, x): a block an output, of nll'' = 2 weight
    slope = np.concatenate([np.ones((*x.shape[:2], 1)), x], 2)
    ggn = np.einsum("nto,ntj,ntk->ojk", 8 * weight * (1 - t**2) ** 2, slope, slope) / 6
    turned = np.einsum("nto,ntj,ntk->ojk", 2 * weight * (2 * t - y) * -4 * t * (1 - t**2), slope, slope) / 6
    for kind, want in (("ggn", ggn), ("hessian", ggn + turned)):
        h = products.formed(products.matrix(kind, found, task, params, data, Pass(4))).reshape(16, 16)
        assert [leaf.path for leaf in found.used] == ["b", "w"]
        place = np.concatenate([np.arange(4)[None], 4 + np.arange(12).reshape(3, 4)])  # of (b, w)_o for each o
        got = np.stack([h[np.ix_(place[:, o], place[:, o])] for o in range(4)])
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.abs(h).sum(), np.abs(want).sum(), rtol=1e-5)


def test_mean_eigenvalue(small):
    arguments = small.found, small.task, small.params, small.data, Pass(5)
    want = np.trace(small.ggn) / 15
    np.testing.assert_allclose(operator.mean_eigenvalue(Operator("dense"), *arguments), want, rtol=1e-5)
    got = operator.mean_eigenvalue(Operator("cg"), *arguments)
    apart = small.ggn - np.diag(np.diag(small.ggn))
    error = np.sqrt(2 * (apart**2).sum() / products.PROBES) / 15  # the standard error of Hutchinson's estimate
    assert abs(got - want) < 3 * error
    assert got == operator.mean_eigenvalue(Operator("cg"), *arguments)


@pytest.fixture(scope="module")
def saddle():
    """A loss of eight parameters whose mean Hessian is diagonal, one number of it negative."""
    with jax.enable_x64(True):
        values = np.array([3.0, 2.0, 1.5, 1.0, 0.5, 0.2, 0.1, -0.4])
        task = Task(lambda p, x: 0.5 * jnp.sum(jnp.asarray(values) * jnp.square(p)) * x)
        params, data, h = jnp.ones(8), jnp.asarray([0.5, 1.5, 1.0]), np.diag(values)
        return Case(task, params, data, h, h, np.random.default_rng(0).normal(size=(3, 8)))


def test_an_indefinite_hessian_is_named(case, saddle):
    assert np.linalg.eigvalsh(case.hessian)[0] < -1e-2
    for its, choice in (
        (case, Operator("cg", "hessian", iterations=200)),
        (saddle, Operator("dense", "hessian")),
        (saddle, Operator("lissa", "hessian", iterations=100)),
    ):
        with pytest.raises(NonFiniteError, match=r"hessian plus damping 0.001 is not positive definite.*matrix='ggn'"):
            its.solve(choice, 1e-3)
    with pytest.raises(NonFiniteError, match=r"by its eigenvalues \(.*found: -0.4\).*damping above 0.4"):
        saddle.solve(Operator("dense", "hessian"), 0.4)
    h = products.matrix("hessian", saddle.found, saddle.task, saddle.params, saddle.data, Pass(2))
    np.testing.assert_allclose(products.extremes(h), (3.0, -0.4), rtol=2e-2)


def test_lissa_says_what_makes_it_diverge(small):
    top = np.linalg.eigvalsh(small.ggn)[-1]
    with pytest.raises(NonFiniteError, match=r"LiSSA diverges on query 0 .*scale must be above half"):
        small.solve(Operator("lissa", scale=0.4 * top), 0.01 * top)
    with pytest.raises(NonFiniteError, match=r"a minibatch of 2 rows has larger eigenvalues"):
        small.solve(Operator("lissa", scale=0.6 * top, minibatch=2), 0.01 * top)


def test_lissa_by_minibatches_comes_close_and_follows_its_seed(small):
    damping = 2 * np.linalg.eigvalsh(small.ggn)[-1]
    want = direct(small.ggn, damping, small.v)
    one, info = small.solve(Operator("lissa", minibatch=2), damping)
    assert (np.linalg.norm(one - want, axis=1) < 0.15 * np.linalg.norm(want, axis=1)).all()
    assert 0 < info["residual"].max() < 0.3
    again, _ = small.solve(Operator("lissa", minibatch=2), damping)
    np.testing.assert_array_equal(again, one)
    other, _ = small.solve(Operator("lissa", minibatch=2, seed=1), damping)
    assert np.abs(other - one).max() > 1e-4


def test_nonsense_is_refused(case, monkeypatch):
    with pytest.raises(UnknownNameError, match="Did you mean 'lissa'"):
        Operator("lisa")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="Did you mean 'hessian'"):
        Operator("cg", "hessien")  # type: ignore[arg-type]
    for name, value in (("damping", 0.0), ("scale", -1.0), ("tolerance", np.nan), ("iterations", 0), ("minibatch", 0)):
        with pytest.raises(UsageError, match=f"{name} {value} should be"):
            Operator(**{name: value})
    with pytest.raises(UsageError, match="rank 32 eigenpairs cannot come from 20"):
        Operator("arnoldi", iterations=20)
    with pytest.raises(UsageError, match="damping_value -1"):
        case.solve(Operator(), -1.0)
    monkeypatch.setattr(products, "DENSE", 90)
    with pytest.raises(BudgetError, match=r"a dense ggn of 96 parameters.*at most 90.*Operator\('cg'\)"):
        case.solve(Operator("dense"), 1.0)
    monkeypatch.setitem(sys.modules, "matfree", None)
    lanczos._lanczos.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'uimjax\[solve\]'"):
        case.solve(Operator("arnoldi"), 1.0)


def test_tasks_and_gradients_that_do_not_fit_are_refused(case):
    def check(task, match, error=UsageError, kind="ggn"):
        with pytest.raises(error, match=match):
            products.matrix(
                kind, sites(task, case.params, example_spec(case.data)), task, case.params, case.data, Pass(5)
            )

    check(Task(case.task.loss), "needs the model's outputs.*matrix='hessian'")
    check(Task(case.task.loss, outputs=logits), "how do outputs become a loss")
    check(Task(case.task.loss, outputs=logits, nll=lambda z, _: z.sum()), "another loss's", MismatchError)
    packed = Task(case.task.loss, segments=lambda e: e["y"], documents=2)
    check(packed, "one document a row", kind="hessian")
    parts = case.split(case.v)
    with pytest.raises(ShapeError, match=r"gradients of layers/0/b are \[7\]; \[Q, 7\] was wanted"):
        products.directions(case.found, parts | {"layers/0/b": parts["layers/0/b"][0]})
    with pytest.raises(ShapeError, match=r"gradients of \[2, 3\] queries"):
        products.directions(case.found, parts | {"layers/0/b": parts["layers/0/b"][:2]})
    with pytest.raises(NonFiniteError, match=r"gradients to solve for: layers/0/b"):
        products.directions(case.found, parts | {"layers/0/b": parts["layers/0/b"] * np.nan})


def test_products_that_are_not_finite_are_no_indefinite_matrix(case, saddle):
    for its, kind in ((case, "cg"), (saddle, "dense"), (saddle, "lissa")):
        bad = its._replace(data=jax.tree.map(lambda x: x * np.nan if x.dtype == float else x, its.data))
        with pytest.raises(NonFiniteError, match="products with the hessian are NaN or infinite"):
            bad.solve(Operator(kind, "hessian"), 1.0)
