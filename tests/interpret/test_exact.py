"""Scores by K-FAC, EK-FAC and diagonals against dense matrices in numpy: a small perceptron differentiated by hand."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xxhash

import uimjax as uj
from uimjax import rows as row
from uimjax.curvature import damping as rule
from uimjax.curvature import separable
from uimjax.curvature.kronecker import Kronecker
from uimjax.curvature.operator import Operator
from uimjax.curvature.source import Source
from uimjax.errors import NonFiniteError, ShapeError, UsageError
from uimjax.interpret import exact, rerank
from uimjax.interpret.base import Method
from uimjax.rows import Pass
from uimjax.sketch import Sketch
from uimjax.task import Measurement, Task

pytestmark = pytest.mark.usefixtures("x64")
N, Q = 20, 3
BLOCKS = ("one", "two")
EKFAC = Kronecker("ekfac", damping=0.1)


def outputs(p, e):
    """Of one example `[6]`, or of every position of `[T, 6]`."""
    h = jnp.tanh(e["x"].reshape(-1, 6) @ p["one"]["w"] + p["one"]["b"][None])
    return (h @ p["two"]["w"] + p["two"]["b"][None]).reshape(*e["x"].shape[:-1], 3)


def loss(p, e):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs(p, e)), e["y"][..., None], -1).sum()


TASK = Task(loss, outputs=outputs, label=lambda e: e["y"])
NLL = Measurement("nll", loss)


class Case(NamedTuple):
    params: dict
    data: dict
    queries: dict

    def score(self, method, measurement=NLL, data=None, queries=None, batch_size=8, **more):
        data, queries = self.data if data is None else data, self.queries if queries is None else queries
        return uj.score(TASK, self.params, data, measurement, queries, method, batch_size=batch_size, **more)


def made(shape):
    rng, sizes = np.random.default_rng(0), {"one": (6, 5), "two": (5, 3)}
    params = {name: {"w": rng.normal(size=s), "b": rng.normal(size=s[1])} for name, s in sizes.items()}
    rows = {"x": rng.normal(size=(N + Q, *shape)), "y": rng.integers(3, size=(N + Q, *shape[:-1]))}
    return Case(params, row.take(rows, np.arange(N)), row.take(rows, N + np.arange(Q)))


CASE, SHARED = made((6,)), made((4, 6))


# ---------------------------------------------------------------- by hand


class Gradients(NamedTuple):
    """Of each block `a` `[N, T, I]` (with a 1 for the bias) and, of several labels, `g` `[K, N, T, O]`, whose gradients
    count with `weight` `[K, N]`."""

    a: dict
    g: dict
    weight: np.ndarray

    def of(self, name):
        return np.einsum("nti,knto->knio", self.a[name], self.g[name])

    def flat(self):
        """`[K, N, P]`."""
        return np.concatenate([self.of(name).reshape(*self.weight.shape, -1) for name in BLOCKS], -1)


def one_more(x):
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)], constant_values=1)


def by_hand(case, rows, source="empirical"):
    """Of the true labels, or of each label by its probability (one position)."""
    w, v = (np.concatenate([case.params[name]["w"], case.params[name]["b"][None]]) for name in BLOCKS)
    x = one_more(rows["x"].reshape(len(rows["x"]), -1, 6))
    h = one_more(np.tanh(x @ w))
    share = np.exp(h @ v) / np.exp(h @ v).sum(-1, keepdims=True)
    if source == "empirical":
        labels, weight = np.eye(3)[rows["y"].reshape(len(x), -1)][None], np.ones((1, len(x)))
    else:
        labels, weight = np.eye(3)[:, None, None], share[:, 0].T
    upper = share[None] - labels
    return Gradients({"one": x, "two": h}, {"one": upper @ v[:-1].T * (1 - h**2)[None, ..., :-1], "two": upper}, weight)


def matrix(kind, case, source, rows=None):
    """The undamped curvature `[P, P]` of both blocks."""
    its, parts = by_hand(case, case.data if rows is None else rows, source), []
    count, length = its.a["one"].shape[:2]
    for name in BLOCKS:
        a, g = its.a[name], its.g[name]
        left = np.einsum("nti,ntj->ij", a, a) / (count * length)
        right = np.einsum("kn,knto,kntp->op", its.weight, g, g) / count
        one, two = (np.linalg.eigh(x)[1] if kind == "ekfac" else np.eye(len(x)) for x in (left, right))
        values = np.einsum("kn,knio->io", its.weight, (one.T @ its.of(name) @ two) ** 2) / count
        q = np.kron(one, two)
        parts.append(np.kron(left, right) if kind == "kfac" else (q * values.reshape(1, -1)) @ q.T)
    whole, start = np.zeros((sum(map(len, parts)),) * 2), len(parts[0])
    whole[:start, :start], whole[start:, start:] = parts
    return whole


def by_the_book(h, damping, normalize, g, q):
    """`- <H^-1 q, g>` `[N, Q]`, normalised; damping in units of the mean eigenvalue."""
    inverse = np.linalg.inv(h + damping * np.trace(h) / len(h) * np.eye(len(h)))
    row_norm, query_norm = (np.sqrt(np.einsum("np,pq,nq->n", x, inverse, x)) for x in (g, q))
    over = {
        "none": 1,
        "unit": row_norm[:, None] * query_norm[None],
        "self": row_norm[:, None],
        "update": np.linalg.norm(g @ inverse, axis=1)[:, None] * np.linalg.norm(q, axis=1)[None],
    }
    return -g @ inverse @ q.T / over[normalize]


def vectors(case):
    """Gradients of the rows and of the queries."""
    return [by_hand(case, rows).flat()[0] for rows in (case.data, case.queries)]


def close(got, want, rtol=1e-5):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


FEW = [("none", True), ("unit", False), ("self", True), ("update", True)]
ALL = [*FEW, ("none", False)]


@pytest.mark.parametrize(
    ("kind", "source", "case", "how"),
    [
        ("ekfac", "fisher", CASE, ALL),
        ("kfac", "fisher", CASE, FEW[1:2]),
        ("diagonal", "fisher", CASE, FEW[1:2]),
        ("ekfac", "empirical", CASE, FEW[:2]),
        ("kfac", "empirical", CASE, FEW[:2]),
        ("diagonal", "empirical", CASE, FEW[1:2]),
        ("ekfac", "empirical", SHARED, FEW[1:2]),
        ("kfac", "empirical", SHARED, FEW[1:2]),
    ],
    ids=lambda x: x if isinstance(x, str) else "over positions" if x is SHARED else "",
)
def test_scores_equal_the_dense_formula(kind, source, case, how):
    (g, q), h = vectors(case), matrix(kind, case, source)
    for normalize, each in how:
        method = Method("mine", curvature=Kronecker(kind, Source(source), damping=0.1), normalize=normalize)
        got = case.score(method, each=each)
        close(got.values, by_the_book(h, 0.1, normalize, g, q if each else q.mean(0, keepdims=True)))
        assert got.unit.startswith("nats" if normalize == "none" else "relative")
        assert got.how == {"curvature": f"{kind}({source})", "damping": rule.given(0.1)}


def test_a_measurement_of_a_part_of_a_block_is_scored_there():
    """Its gradient is that of one bias alone, which stands in a block with a matrix."""
    alone = Measurement("bias", lambda p, e: jnp.sum(p["two"]["b"] * e["x"][:3]))
    g, _ = vectors(CASE)
    q = np.zeros((Q, g.shape[1]))
    q[:, -3:] = CASE.queries["x"][:, :3]
    got = CASE.score(Method("mine", curvature=EKFAC, normalize="update"), alone, each=True).values
    close(got, by_the_book(matrix("ekfac", CASE, "fisher"), 0.1, "update", g, q))


def test_batch_size_padding_order_and_chunks_of_queries_change_nothing(rng, monkeypatch):
    method, order = Method("mine", curvature=EKFAC, normalize="self"), rng.permutation(N)
    one = CASE.score(method, each=True).values
    monkeypatch.setattr(exact, "DIRECTION_BYTES", 1)  # query by query
    close(CASE.score(method, each=True, batch_size=7).values, one, 1e-7)
    moved = CASE.score(method, data=row.take(CASE.data, order), each=True, batch_size=7).values
    close(moved, one[order], 1e-7)


@pytest.fixture
def thin(monkeypatch):
    """Few terms stand for matrices however small."""
    monkeypatch.setattr(exact, "THIN", 0)


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize(
    ("case", "terms", "normalize"), [(CASE, 3, "none"), (CASE, 3, "unit"), (SHARED, 0, "none"), (SHARED, 0, "unit")]
)
def test_directions_made_and_rows_met_one_by_one_give_the_same_scores(case, terms, normalize, monkeypatch):
    method = Method("mine", curvature=Kronecker("ekfac", damping=0.1, terms=terms), normalize=normalize)
    whole, mean = case.score(method, each=True).values, case.score(method).values
    monkeypatch.setattr(exact, "FORMED_BYTES", 1)
    exact.scored.cache_clear()
    close(case.score(method, each=True, batch_size=7).values, whole, 1e-7)
    close(case.score(method, batch_size=7).values, mean, 1e-7)


def test_sign_positive_means_that_training_on_the_row_raises_f():
    """Take one real gradient step on a single row: f rises for the strongest proponent, falls for the opponent."""
    scores = CASE.score("ekfac").values[:, 0]

    @jax.jit
    def after(at):
        p = jax.tree.map(lambda p, g: p - 1e-4 * g, CASE.params, jax.grad(loss)(CASE.params, at))
        return jax.vmap(lambda e: loss(p, e))(CASE.queries).mean()

    def stepped(k):
        return float(after(row.take(CASE.data, k)))

    before = np.mean([-np.log(np.exp(z - z.max()) / np.exp(z - z.max()).sum())[y] for z, y in logits(CASE.queries)])
    assert scores.max() > 0 > scores.min()
    assert stepped(scores.argmax()) > before > stepped(scores.argmin())


def logits(rows):
    w, v = (np.concatenate([CASE.params[name]["w"], CASE.params[name]["b"][None]]) for name in BLOCKS)
    return zip(one_more(np.tanh(one_more(rows["x"]) @ w)) @ v, rows["y"], strict=True)


def test_a_row_without_gradient_scores_zero():
    task = Task(lambda w, e: jnp.sum((e["x"] @ w - e["y"]) ** 2))
    data = {"x": np.eye(3), "y": np.array([[1.0, 2.0], [1.0, 1.0], [4.0, 0.0]])}
    method = Method("mine", curvature=Kronecker(source=Source("empirical"), damping=0.1), normalize="update")
    measurement = Measurement("f", lambda w, e: jnp.sum(w) * e["x"].sum())
    values = uj.score(task, jnp.ones((3, 2)), data, measurement, data, method, batch_size=3).values
    assert values[1, 0] == 0 != values[0, 0]


# ---------------------------------------------------------------- the damping


def test_the_damping_is_chosen_by_the_agreement_of_halves():
    """What was tried, and how far the scores of two halves agreed, equals dense algebra; so do the scores after it."""
    got = CASE.score("ekfac", each=True)
    (g, q), chosen = vectors(CASE), got.how["damping"]
    contents = [x.tobytes() + y.tobytes() for x, y in zip(CASE.data["x"], CASE.data["y"], strict=True)]
    order = np.argsort([xxhash.xxh3_64_intdigest(its) for its in contents])
    halves = [row.take(CASE.data, part) for part in (order[::2], order[1::2])]
    one, two = (matrix("ekfac", CASE, "fisher", half) for half in halves)
    for value, agreement in chosen.tried:
        seen = [by_the_book(h, value, "none", g, q) for h in (one, two)]
        want = np.median([np.corrcoef(seen[0][:, k], seen[1][:, k])[0, 1] for k in range(Q)])
        np.testing.assert_allclose(agreement, want, rtol=1e-4, atol=1e-5)
    assert len(chosen.tried) > 2
    assert chosen.reached
    assert dict(chosen.tried)[chosen.value] >= rule.THRESHOLD["fisher"]
    close(got.values, by_the_book(matrix("ekfac", CASE, "fisher"), chosen.value, "none", g, q))
    assert f"damping {chosen.value:.3g} x mean eigenvalue (halves agree at" in got.method
    other = CASE.score("ekfac", batch_size=7).how["damping"]
    assert other.value == chosen.value
    np.testing.assert_allclose(other.tried, chosen.tried, rtol=1e-6, atol=1e-6)
    moved, asked = np.roll(np.arange(N)[::-1], 3), np.arange(Q)[::-1]  # neither the rows' order counts nor the queries'
    other = CASE.score("ekfac", each=True, data=row.take(CASE.data, moved), queries=row.take(CASE.queries, asked))
    assert other.how["damping"].value == chosen.value
    close(other.values, got.values[moved][:, asked], 1e-6)


@pytest.mark.parametrize("method", ["ekfac", "kfac", "diagonal"])
def test_too_few_rows_to_halve_are_refused(method):
    few = row.take(CASE.data, np.arange(rule.LEAST - 1))
    cure = rf"Kronecker\('{method}', Source\('fisher'\), damping=0.1\)"
    with pytest.raises(UsageError, match=rf"cannot be chosen from 7 distinct rows \(at least 8\); give one: {cure}"):
        CASE.score(method, data=few)
    with pytest.raises(UsageError, match="from 7 distinct rows"):
        CASE.score(method, data=jax.tree.map(lambda x: np.concatenate([x] * 5), few))
    with pytest.raises(UsageError, match=r"give one: Operator\('cg', damping=0.1\)"):
        CASE.score("cg", data=few)


def test_rows_that_stand_twice_change_no_damping():
    """In both halves they would make these agree whatever the noise."""
    once = CASE.score("ekfac", each=True)
    for times in (2, 3):
        data = jax.tree.map(lambda x, times=times: np.concatenate([x] * times), CASE.data)
        again = CASE.score("ekfac", each=True, data=data)
        assert again.how["damping"].value == once.how["damping"].value
        close(again.values[:N], once.values, 1e-5)


# ---------------------------------------------------------------- few terms


@pytest.mark.usefixtures("thin")
def test_all_terms_give_the_exact_scores():
    (g, q), h = vectors(CASE), matrix("ekfac", CASE, "fisher")
    method = Method("mine", curvature=Kronecker(damping=0.1, terms=5), normalize="self")
    ready = exact.ready(TASK, CASE.params, CASE.data, NLL, CASE.queries, method, Pass(8))
    assert set(ready.terms) == {"one/w", "two/w"}
    close(exact.streamed(ready, CASE.params, CASE.data, CASE.queries, method, True, Pass(8)),
          by_the_book(h, 0.1, "self", g, q))  # fmt: skip


@pytest.mark.usefixtures("thin")
def test_with_few_terms_the_strongest_rows_are_exact_and_the_error_is_measured(monkeypatch):
    (g, q), h = vectors(CASE), matrix("ekfac", CASE, "fisher")
    want = by_the_book(h, 0.1, "unit", g, q)
    method = Method("mine", curvature=Kronecker(damping=0.1, terms=1), normalize="unit")
    ready = exact.ready(TASK, CASE.params, CASE.data, NLL, CASE.queries, method, Pass(8))
    thin = exact.streamed(ready, CASE.params, CASE.data, CASE.queries, method, True, Pass(8))
    off = np.sqrt(np.mean((thin - want) ** 2) / np.mean(want**2))
    assert 1e-3 < off < 0.5  # one term is not enough, and not nonsense
    monkeypatch.setattr(rerank, "PAIRS", 4)  # four pairs at once, of at most two rows
    monkeypatch.setattr(rerank, "ROWS", 2)
    got = CASE.score(method, each=True)
    close(got.values, want)  # the pairs that the error is measured on are exact as well, and here these are all
    np.testing.assert_allclose(got.how["terms"][:2], [np.corrcoef(thin.ravel(), want.ravel())[0, 1], off], rtol=1e-4)
    assert got.how["terms"][2:] == (N * Q, N * Q)
    monkeypatch.setattr(rerank, "CANDIDATES", 2)
    monkeypatch.setattr(rerank, "SAMPLED", 5)
    values, measured = rerank.rerank(ready, CASE.params, CASE.data, CASE.queries, method, thin)
    same = np.isclose(values, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())
    assert 4 * Q <= measured.rescored <= 4 * Q + 5
    assert np.isclose(values, thin, rtol=1e-9).sum() >= N * Q - measured.rescored
    assert same.sum() >= measured.rescored
    order = np.argsort(thin, axis=0)
    for strongest in (order[:2], order[-2:]):
        assert np.take_along_axis(same, strongest, 0).all()


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("case", [CASE, SHARED], ids=["outer", "formed"])
@pytest.mark.parametrize("normalize", ["none", "unit"])
def test_queries_of_low_rank_are_the_nearest_of_that_rank(case, normalize, monkeypatch):
    source = Source("empirical")
    (g, q), h = vectors(case), matrix("ekfac", case, "empirical")
    h = h + 0.1 * np.trace(h) / len(h) * np.eye(len(h))
    inverse = np.linalg.inv(h)
    norms = [np.sqrt(np.einsum("np,pq,nq->n", x, inverse, x)) for x in (g, q)] if normalize == "unit" else [1.0, 1.0]

    def by_rank(rank):
        want, lost, whole = 0.0, 0.0, 0.0
        for a, b, shape in ((0, 35, (7, 5)), (35, 53, (6, 3))):
            u, s, v = np.linalg.svd((q @ inverse)[:, a:b].reshape(Q, *shape), full_matrices=False)
            kept = np.einsum("qik,qk,qko->qio", u[..., :rank], s[:, :rank], v[:, :rank])
            want = want - g[:, a:b] @ kept.reshape(Q, -1).T
            lost, whole = lost + (s[:, rank:] ** 2).sum(1), whole + (s**2).sum(1)
        return want / np.reshape(norms[0], (-1, 1)) / np.reshape(norms[1], (1, -1)), (lost / whole).max()

    for rank in (1, 2, 5):
        method = Method("mine", curvature=Kronecker(source=source, damping=0.1, query_rank=rank), normalize=normalize)
        want, lost = by_rank(rank)
        got = case.score(method, each=True)
        close(got.values, want, 1e-6)
        np.testing.assert_allclose(got.how["query_rank"]["lost"], lost, rtol=1e-4, atol=1e-9)
        with monkeypatch.context() as patch:  # query by query, and put together one by one
            patch.setattr(exact, "DIRECTION_BYTES", 1)
            patch.setattr(separable, "FORMED_BYTES", 1)
            exact.scored.cache_clear()
            close(case.score(method, each=True, batch_size=7).values, want, 1e-6)
        exact.scored.cache_clear()
    close(want, by_the_book(matrix("ekfac", case, "empirical"), 0.1, normalize, g, q), 1e-6)  # rank 5 is all
    assert by_rank(1)[1] > 1e-3
    much = Method("mine", curvature=Kronecker(source=source, damping=0.1, query_rank=99), normalize=normalize)
    with monkeypatch.context() as patch:
        patch.setattr(exact, "THIN", 4)
        assert case.score(much, each=True).how["query_rank"] == {"lost": 0.0}
    whole = Method("mine", curvature=Kronecker(source=source, damping=0.1), normalize=normalize)
    close(case.score(method).values, case.score(whole).values)  # the mean is one direction, and stays whole


@pytest.mark.usefixtures("thin")
def test_low_rank_of_a_question_that_touches_some_parameters_alone():
    """The first matrix is asked, of the second nothing: there is no direction to cut."""
    hidden = Measurement("hidden", lambda p, e: jnp.sum(jnp.square(e["x"] @ p["one"]["w"])))
    source = Source("empirical")
    for rank in (5, 1):
        method = Method("mine", curvature=Kronecker(source=source, damping=0.1, query_rank=rank), normalize="none")
        got = CASE.score(method, measurement=hidden, each=True)
        whole = dataclasses.replace(method, curvature=Kronecker(source=source, damping=0.1))
        assert got.how["query_rank"]["lost"] < (1e-9 if rank == 5 else 1)
        if rank == 5:
            close(got.values, CASE.score(whole, measurement=hidden, each=True).values, 1e-6)


def test_terms_and_low_rank_exclude_each_other():
    with pytest.raises(UsageError, match="terms=4 scores the strongest rows again exactly, and query_rank=8"):
        Kronecker(terms=4, query_rank=8)


def test_each_parameter_has_its_part_of_the_scores():
    (g, q), h = vectors(CASE), matrix("ekfac", CASE, "fisher")
    method = Method("mine", curvature=EKFAC, normalize="none")
    ready = exact.ready(TASK, CASE.params, CASE.data, NLL, CASE.queries, method, Pass(8))
    (parts,) = exact.by_parameter(ready, CASE.params, CASE.data, CASE.queries, method, True, Pass(8))
    start, inverse = 7 * 5, np.linalg.inv(h + 0.1 * np.trace(h) / len(h) * np.eye(len(h)))
    close(parts["one/w"], -g[:, :start] @ inverse[:start, :start] @ q[:, :start].T)
    close(parts["two/w"], -g[:, start:] @ inverse[start:, start:] @ q[:, start:].T)


# ---------------------------------------------------------------- refusals


def test_a_measurement_of_what_the_loss_does_not_use_has_no_culprits():
    params = CASE.params | {"more": {"u": np.ones(3)}}
    asked = Measurement("more", lambda p, e: jnp.sum(outputs(p, e) * p["more"]["u"]))
    alone = Measurement("logits", lambda p, e: jnp.sum(outputs(p, e)))
    method = Method("mine", curvature=EKFAC, normalize="none")
    got, want = (
        uj.score(TASK, p, CASE.data, f, CASE.queries, method).values for p, f in ((params, asked), (CASE.params, alone))
    )
    close(got, want)


def test_a_label_may_be_a_plain_number_and_numbers_without_classes_are_refused():
    task = Task(lambda p, e: -jax.nn.log_softmax(outputs(p, e))[0], outputs=outputs, label=lambda _: 0)
    asked = Measurement("first", task.loss)
    values = uj.score(task, CASE.params, CASE.data, asked, CASE.queries, "ekfac").values
    same = dataclasses.replace(task, label=lambda _: jnp.zeros((), int))
    np.testing.assert_array_equal(values, uj.score(same, CASE.params, CASE.data, asked, CASE.queries, "ekfac").values)
    one = Task(lambda p, e: outputs(p, e)[0], outputs=lambda p, e: outputs(p, e)[0], label=lambda _: 0)
    with pytest.raises(ShapeError, match=r"one number, no logits \[C\]: give the task nll"):
        uj.score(one, CASE.params, CASE.data, asked, CASE.queries, "ekfac")


def ask_of(case):
    return case.params, case.data, NLL, case.queries


def test_conjugate_gradients_with_ekfac_beside_them_solve_what_the_dense_matrix_does():
    one, other = (
        CASE.score(Method("mine", curvature=choice, normalize="none"), each=True)
        for choice in (Operator("cg", tolerance=1e-12), Operator("dense", "ggn"))
    )
    close(one.values, other.values, 1e-6)
    assert one.how["damping"] == other.how["damping"]
    assert max(one.how["solves"][0]["residual"]) < 1e-9
    assert "EK-FAC's" in one.how["damping"]
    with pytest.raises(UsageError, match="needs the model's outputs"):
        uj.score(Task(loss), *ask_of(CASE), Method("cg", curvature=Operator("cg", "hessian"), normalize="none"))


@pytest.mark.usefixtures("thin")
def test_scores_that_are_all_equal_are_right_without_a_warning():
    data, queries = (row.take(x, np.zeros(6, int)) for x in (CASE.data, CASE.queries))
    method = Method("mine", curvature=Kronecker(damping=0.1, terms=1), normalize="none")
    found = uj.score(TASK, CASE.params, data, NLL, queries, method, each=True)
    assert np.ptp(found.values) <= 1e-12 * np.abs(found.values).max()
    assert found.how["terms"].error < 1e-6
    assert found.how["terms"].correlation in (0.0, 1.0)  # there is no other where nothing varies but by rounding


def token_loss(p, e):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs(p, e)), e["y"][:, None], -1)[:, 0]


def test_parts_of_a_score_by_parameter_and_by_token_are_those_of_their_own_gradients():
    task = Task(token_loss, outputs=outputs, label=lambda e: e["y"])
    ask = task, SHARED.params, SHARED.data, NLL, SHARED.queries
    method = Method("mine", curvature=Kronecker("ekfac", damping=0.1, terms=2), normalize="none")
    whole = uj.score(*ask, dataclasses.replace(method, curvature=EKFAC), each=True, batch_size=8)
    parts = uj.score_by_parameter(*ask, method, each=True, batch_size=8)
    assert set(parts) == {"one/w", "two/w"}  # each with its bias
    close(sum(its.values for its in parts.values()), whole.values, 1e-7)
    assert parts["one/w"].unit == whole.unit
    found = uj.score_by_token(*ask, method, each=True, batch_size=8)
    tokens = found.values
    assert found.how["damping"].value == parts["one/w"].how["damping"].value == 0.1
    assert tokens.shape == (N, 4, Q)
    close(tokens.sum(1), whole.values, 1e-7)
    close(uj.score_by_token(*ask, method, batch_size=8).values.sum((1, 2)), whole.values.mean(1), 1e-7)

    def plain(p, row, t):
        return jax.grad(lambda p: token_loss(p, row)[t])(p)

    g = jax.jit(jax.vmap(plain, (None, 0, None)), static_argnums=2)(SHARED.params, SHARED.data, 1)
    f = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(SHARED.params, SHARED.queries)
    flat = [np.concatenate([np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(its)], 1) for its in (g, f)]
    close(uj.score_by_token(*ask, "grad_dot", each=True).values[:, 1], -flat[0] @ flat[1].T, 1e-7)

    with pytest.raises(UsageError, match="logra has no parts here"):
        uj.score_by_parameter(*ask, "logra")
    with pytest.raises(UsageError, match="grad_cos divides by the norm"):
        uj.score_by_token(*ask, "grad_cos")
    with pytest.raises(ShapeError, match=r"one number a row; token scores need a loss that returns \[T\]"):
        uj.score_by_token(TASK, *ask[1:], "grad_dot")


def test_refusals():
    with pytest.raises(UsageError, match=r"mine: ekfac\(fisher\) is measured on whole gradients, and .* leaves none"):
        Method("mine", Sketch(4), EKFAC)
    with pytest.raises(UsageError, match="mine: retain is for curvatures of rows"):
        Method("mine", curvature=EKFAC, retain=True)
    bare = Task(loss)
    with pytest.raises(UsageError, match="give the task outputs"):
        uj.score(bare, CASE.params, CASE.data, NLL, CASE.queries, "ekfac")
    bad = {**CASE.data, "x": CASE.data["x"] * np.where(np.arange(N) == 4, np.nan, 1)[:, None]}
    with pytest.raises(NonFiniteError, match=r"training rows: x holds 6 .* first at index \(4, 0\)"):
        CASE.score("ekfac", data=bad)
    hot = Measurement("log", lambda p, e: jnp.log(jnp.sum(e["x"]) * 0.0 * p["one"]["b"][0]))
    with pytest.raises(NonFiniteError, match="gradients of the measurement"):
        CASE.score(Method("mine", curvature=Kronecker(source=Source("empirical"), damping=0.1)), hot)
