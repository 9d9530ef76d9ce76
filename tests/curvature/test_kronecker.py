"""K-FAC, EK-FAC and their sources of gradients against dense matrices by the book, in float64; where they are exact."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import programs
from uimjax import rows as row
from uimjax.curvature import blocks, kronecker, source
from uimjax.curvature.kronecker import Kronecker
from uimjax.curvature.source import Source
from uimjax.errors import MismatchError, NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.taps import sites
from uimjax.task import Task

pytestmark = pytest.mark.usefixtures("x64")
M = np.array([[2.0, 0.5, 0.0], [0.5, 4.0, 0.3], [0.0, 0.3, 1.0]])


def net(bend):
    """Two layers of a perceptron, of one example `[I]` or of every position of `[T, I]`."""

    def outputs(p, e):
        x = e["x"].reshape(-1, e["x"].shape[-1])
        z = bend(x @ p["w"] + p["b"][None]) @ p["v"] + p["c"][None]
        return z.reshape(*e["x"].shape[:-1], -1)

    return outputs


TANH, LINEAR = net(jnp.tanh), net(lambda h: h)


def label(e):
    return e["y"]


def softmax(outputs):
    def loss(p, e):
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs(p, e)), e["y"][..., None], -1).sum()

    return Task(loss, outputs=outputs, label=label)


def quadratic(z, e):
    """Half a quadratic form of the residual, whose matrix is M."""
    return 0.5 * jnp.sum(((z - e["t"]) @ jnp.asarray(M[: z.shape[-1], : z.shape[-1]])) * (z - e["t"]))


def squared(outputs, **more):
    return Task(lambda p, e: quadratic(outputs(p, e), e), outputs=outputs, nll=quadratic, **more)


@dataclass(frozen=True, eq=False)
class Case:
    task: Task
    params: dict
    data: dict

    @functools.cached_property
    def laid(self):
        found = sites(self.task, self.params, row.example_spec(self.data))
        return blocks.lay_out(found, programs.captured(found, self.params, jax.tree.map(lambda x: x[:2], self.data))[1])

    @functools.cache  # noqa: B019  # a case lives as long as its test
    def gradients(self, chosen):
        return source.gradients(chosen, self.task, self.laid, self.params, self.data)

    def measured(self, choice, batch_size=7, data=None):
        data = self.data if data is None else data
        made = self.gradients(choice.source)
        return kronecker.measure(choice, made, self.params, lambda: row.batches(data, batch_size))


def case(task, rng, rows=6, shape=(4,), hidden=5, classes=3):
    sizes = {"w": (shape[-1], hidden), "b": (hidden,), "v": (hidden, classes), "c": (classes,)}
    data = {
        "x": rng.normal(size=(rows, *shape)),
        "y": rng.integers(classes, size=(rows, *shape[:-1])),
        "t": rng.normal(size=(rows, *shape[:-1], classes)),
    }
    return Case(task, {k: jnp.asarray(rng.normal(size=s)) for k, s in sizes.items()}, data)


def drawn(its, chosen, ids=None):
    """The gradients of a source put in one row each, `[draws a row, B, P]`."""
    made, ids = its.gradients(chosen), np.arange(row.count(its.data)) if ids is None else ids
    formed = jax.jit(lambda p, r, i: [blocks.formed(b) for b in made.blocks(p, r, i)])
    formed = formed(its.params, row.take(its.data, ids), ids)
    flat = np.concatenate([np.asarray(x).reshape(len(x), -1) for x in formed], 1)
    return flat.reshape(len(ids), made.draws, -1).swapaxes(0, 1)


def by_hand(its):
    """(class probabilities `[N, T, C]`, Jacobian of the outputs `[N, T, C, P]` in the order of `drawn`), in numpy."""
    p, x = {k: np.asarray(v, float) for k, v in its.params.items()}, its.data["x"]
    x = np.pad(x.reshape(len(x), -1, x.shape[-1]), [(0, 0), (0, 0), (0, 1)], constant_values=1)
    h = x @ np.concatenate([p["w"], p["b"][None]])
    h, slope = (np.tanh(h), 1 - np.tanh(h) ** 2) if its.task.outputs is TANH else (h, np.ones_like(h))
    h = np.pad(h, [(0, 0), (0, 0), (0, 1)], constant_values=1)
    z = h @ np.concatenate([p["v"], p["c"][None]])
    share = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    upper = np.einsum("nth,cd->ntchd", h, np.eye(z.shape[-1]))
    lower = np.einsum("nti,hc,nth->ntcih", x, p["v"], slope)
    return share, np.concatenate([g.reshape(*z.shape, -1) for g in (upper, lower)], -1)


def fisher(its):
    """`E_x sum_c p_c grad log p_c grad log p_c^T`, summed over positions."""
    share, z = by_hand(its)
    g = z - np.einsum("ntc,ntcp->ntp", share, z)[:, :, None]
    return np.einsum("ntc,ntcp,ntcq->pq", share, g, g, optimize=True) / len(share)


def gauss_newton(its):
    """`E_x J^T M J`, summed over positions."""
    _, g = by_hand(its)
    return np.einsum("ntcp,cd,ntdq->pq", g, M[: g.shape[2], : g.shape[2]], g, optimize=True) / len(g)


def sizes(its):
    return {path: int(np.prod(shape)) for path, shape in blocks.shapes(its.laid).items()}


def diagonal_blocks(its, whole):
    out, start = {}, 0
    for path, size in sizes(its).items():
        out[path] = whole[start : start + size, start : start + size]
        start += size
    assert start == len(whole)
    return out


def dense(found, path):
    """The matrix that a curvature in its own basis stands for."""
    rows, cols = (np.eye(size)[None] if q is None else np.asarray(q, np.float64)
                  for q, size in zip(found.bases[path], found.values[path].shape[1:], strict=True))  # fmt: skip
    q = np.kron(rows[0], cols[0])
    return (q * np.asarray(found.values[path], np.float64)[0].reshape(1, -1)) @ q.T


def same(found, want, rtol=1e-6):
    assert found.values.keys() == want.keys()
    for path, block in want.items():
        np.testing.assert_allclose(dense(found, path), block, rtol=rtol, atol=rtol * np.abs(block).max(), err_msg=path)


# ---------------------------------------------------------------- sources


@pytest.fixture(scope="module")
def classifier():
    with jax.enable_x64(True):
        return case(softmax(TANH), np.random.default_rng(0), rows=7)


def test_the_exact_fisher_is_the_sum_over_all_classes(classifier, rng):
    for its, draws in ((classifier, 3), (case(softmax(TANH), rng, rows=2, shape=(2, 4)), 2 * 3)):
        g = drawn(its, Source())
        assert len(g) == draws
        np.testing.assert_allclose(np.einsum("kbp,kbq->pq", g, g) / g.shape[1], fisher(its), rtol=1e-9, atol=1e-12)


def test_margin_and_empirical_gradients_are_those_of_the_formula(classifier):
    (share, z), right = by_hand(classifier), np.eye(3)[classifier.data["y"]]
    share, z = share[:, 0], z[:, 0]
    wrong = 1 - (share * right).sum(1, keepdims=True)
    for kind, inner in (("margin", (right - share) / wrong), ("empirical", share - right)):
        (got,) = drawn(classifier, Source(kind))
        np.testing.assert_allclose(got, np.einsum("nc,ncp->np", inner, z), rtol=1e-9, atol=1e-12, err_msg=kind)


def test_the_margin_of_a_sequence_is_the_sum_of_its_tokens_margins(rng):
    its = case(softmax(net(jnp.tanh)), rng, shape=(3, 4))

    def margins(p, e):
        shares = jax.nn.softmax(net(jnp.tanh)(p, e))
        right = jnp.take_along_axis(shares, e["y"][:, None], -1)
        return jnp.log(right / (1 - right)).sum()

    want = jax.vmap(jax.grad(margins), (None, 0))(its.params, its.data)
    (got,) = drawn(its, Source("margin"))
    flat = np.concatenate([np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(want)], 1)
    np.testing.assert_allclose(np.sort(np.square(got).sum(1)), np.sort(np.square(flat).sum(1)), rtol=1e-9)

    def some(z, e):  # the loss leaves the first position out
        return -jnp.take_along_axis(jax.nn.log_softmax(z), e["y"][:, None], -1)[1:].sum()

    masked = Task(lambda p, e: some(TANH(p, e), e), outputs=TANH, nll=some, label=label)
    with pytest.raises(MismatchError, match="softmax cross-entropy of the outputs"):
        drawn(case(masked, rng, shape=(3, 4)), Source("margin"))


def normal(key, z, e):
    """Targets of the density `exp(-quadratic)`: normal with the precision M."""
    root = np.linalg.inv(np.linalg.cholesky(M))
    return {**e, "t": z + jax.random.normal(key, z.shape) @ jnp.asarray(root)}


@functools.cache
def many(own):
    """One row by 200 numbers, with more outputs than the Fisher matrix is summed over, and its drawn gradients."""
    task = squared(TANH, sample=normal) if own else softmax(TANH)
    its = case(task, np.random.default_rng(0), rows=1, shape=(6, 2), hidden=2)
    its = Case(its.task, its.params, row.take(its.data, np.zeros(200, int)))
    return its, drawn(its, Source())


@pytest.mark.parametrize("own", [False, True], ids=["softmax", "own sample"])
def test_drawn_labels_give_the_fisher_matrix_in_the_mean(own):
    """Every entry within five standard errors, and these are the right size (their mean square is about 1)."""
    its, g = many(own)
    want, g = gauss_newton(its) if own else fisher(its), 4 * g.reshape(3200, -1)
    outer = np.einsum("kp,kq->kpq", g, g)
    off = (outer.mean(0) - want) / (outer.std(0) / np.sqrt(len(g)))
    assert np.abs(off).max() < 5
    assert 0.3 < np.square(off).mean() < 2


def test_drawn_labels_follow_the_number_of_the_row_alone(rng):
    """Not its place in a batch, nor which batch that is."""
    (its, whole), order = many(False), rng.permutation(200)[:150]
    assert (np.abs(whole[1:] - whole[:-1]).max(2) > 0).mean() > 0.5  # no draw for all
    assert (np.abs(whole[:, 1:] - whole[:, :-1]).max(2) > 0).mean() > 0.5  # nor one for all rows
    made = its.gradients(Source())
    found = kronecker.measure(Kronecker("diagonal"), made, its.params, lambda: row.selected(its.data, order, 64))
    values = np.concatenate([np.ravel(x) for x in found.values.values()])
    np.testing.assert_allclose(values, np.square(whole[:, order]).sum(0).mean(0), rtol=1e-9)


# ---------------------------------------------------------------- the matrices


@pytest.mark.parametrize(
    ("make", "shape", "rows"),
    [
        (lambda: squared(LINEAR), (4,), 6),
        (lambda: squared(LINEAR), (4, 3), 5),
        (lambda: softmax(TANH), (4,), 1),
    ],
    ids=["deep linear network, squared loss", "its weights shared over positions", "a single datum"],
)
def test_where_theory_says_so_kfac_and_ekfac_are_the_gauss_newton_block(make, shape, rows, rng):
    """Martens & Grosse 2015; Eschenhagen et al. 2023 (arXiv 2311.00636), the expand setting."""
    its = case(make(), rng, rows=rows, shape=shape)
    by_class = its.task.nll is None
    want = diagonal_blocks(its, fisher(its) if by_class else gauss_newton(its))
    for kind in ("kfac", "ekfac"):
        same(its.measured(Kronecker(kind, Source("fisher" if by_class else "ggn"))), want)


def test_ekfac_and_the_diagonal_are_measured_in_their_basis(classifier):
    want = diagonal_blocks(classifier, fisher(classifier))
    ekfac, diagonal = (classifier.measured(Kronecker(kind)) for kind in ("ekfac", "diagonal"))
    for path, block in want.items():
        np.testing.assert_allclose(diagonal.values[path].ravel(), np.diag(block), rtol=1e-9, atol=1e-14)
        q = np.kron(*(x[0] for x in ekfac.bases[path]))
        np.testing.assert_allclose(q @ q.T, np.eye(len(q)), atol=1e-9)
        np.testing.assert_allclose(ekfac.values[path].ravel(), np.diag(q.T @ block @ q), rtol=1e-8, atol=1e-12)


def test_ekfac_has_the_trace_of_its_matrix_whatever_the_uses_of_a_parameter(rng):
    """A lookup tied to a product, a slice of a matrix used twice, a scale, a bias behind a nonlinearity."""

    def outputs(p, e):
        h = jnp.tanh(p["table"][e["x"]] @ p["w"][:3]) * p["scale"][None]
        h = jnp.tanh(h @ p["w"][1:]) + p["late"][None]
        return h @ p["table"].T

    shapes = {"table": (4, 3), "w": (4, 3), "scale": (3,), "late": (3,)}
    params = {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}
    its = Case(softmax(outputs), params, {k: rng.integers(4, size=(4, 2)) for k in "xy"})
    found = its.measured(Kronecker(source=Source("empirical")), batch_size=3)
    for path, g in programs.brute_force(its.task.loss, params, its.data)[1].items():
        np.testing.assert_allclose(found.values[path].sum(), np.square(g).sum() / 4, rtol=1e-9, err_msg=path)


def test_batches_their_padding_and_the_order_of_rows_change_nothing(classifier, rng):
    shuffled = row.take(classifier.data, rng.permutation(7))
    for kind in kronecker.KINDS:
        one = classifier.measured(Kronecker(kind))
        same(classifier.measured(Kronecker(kind), 3, shuffled), {path: dense(one, path) for path in one.values})


# ---------------------------------------------------------------- refusals


def test_a_task_that_lacks_what_a_source_needs_is_told_so(classifier, rng):
    its, wide = classifier, case(softmax(TANH), rng, shape=(5, 4), classes=4)
    z = TANH

    def refused(error, match, task, kind="fisher", made=its):
        with pytest.raises(error, match=match):
            source.pseudo_losses(Source(kind), task, made.params, made.data)

    for kind in ("fisher", "ggn", "margin"):
        refused(UsageError, rf"{kind} curvature needs .* give the task outputs", Task(its.task.loss), kind)
    refused(UsageError, "give the task nll", Task(its.task.loss, outputs=z))
    refused(MismatchError, r"and nll of the outputs \[", Task(its.task.loss, outputs=z, nll=quadratic))
    halved = Task(lambda p, e: its.task.loss(p, e) / 2, outputs=z, label=label)
    refused(MismatchError, r"the softmax cross-entropy of the outputs \[", halved)
    refused(ShapeError, r"\[5, 4\].*at most 16 numbers.*Source\('fisher'\)", wide.task, "ggn", wide)
    own = Task(wide.task.loss, outputs=z, label=label, nll=source.nll_of(wide.task))
    refused(UsageError, "give it sample", own, made=wide)
    refused(UsageError, "give the task label", squared(z), "margin")
    refused(ShapeError, r"logits \[C\] or \[T, C\]", Task(its.task.loss, outputs=lambda p, e: z(p, e)[None, None]))
    packed = Task(its.task.loss, outputs=z, label=label, segments=label, documents=2)
    refused(UsageError, "one document a row", packed)


def test_choices_that_nobody_knows_are_refused():
    with pytest.raises(UnknownNameError, match="unknown Kronecker curvature 'ekfacs'. Did you mean 'ekfac'"):
        Kronecker("ekfacs")
    with pytest.raises(UnknownNameError, match="source of a curvature 'empiric'. Did you mean 'empirical'"):
        Source("empiric")
    for damping in (0.0, -0.1, np.nan):
        with pytest.raises(UsageError, match="should be above 0, or None"):
            Kronecker(damping=damping)
    with pytest.raises(UsageError, match="-1 terms"):
        Kronecker(terms=-1)
    with pytest.raises(UsageError, match="0 samples a row"):
        Source(samples=0)


def test_statistics_that_are_not_finite_are_named(classifier):
    its, made = classifier, classifier.gradients(Source("empirical"))
    bad = {**its.data, "x": its.data["x"] * np.where(np.arange(7) == 4, np.inf, 1)[:, None]}
    for kind, what in (("ekfac", "covariances"), ("diagonal", "eigenvalues")):
        with pytest.raises(NonFiniteError, match=f"the {what} of [vw] are not finite.*gradient_norms"):
            kronecker.measure(Kronecker(kind), made, its.params, lambda: row.batches(bad, 7))
        with pytest.raises(NonFiniteError, match="a curvature of no rows"):
            kronecker.measure(Kronecker(kind), made, its.params, lambda: iter(()))
