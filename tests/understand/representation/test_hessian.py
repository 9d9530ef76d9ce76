"""Stochastic Lanczos quadrature and sharpness, against dense Hessians and Gauss-Newton matrices in float64."""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests import programs
from uimjax.errors import NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.mesh import make_mesh
from uimjax.rows import Pass
from uimjax.task import Task
from uimjax.understand.representation.hessian import (
    densities,
    density,
    extremes,
    hessian_spectrum,
    negative,
    sharpness,
)

pytestmark = pytest.mark.usefixtures("x64")
ROWS, STEPS = 20, 6


def outputs(params, example):
    return jnp.tanh(example["x"] @ params["a"] + params["b"]) @ params["c"]


def loss(params, example):
    return programs.cross_entropy(outputs(params, example), example["y"])


TASK = Task(loss, outputs=outputs, label=lambda example: example["y"])


class Case(NamedTuple):
    """A small classifier, its rows, and its matrices by the book, parameters in the order of the tree."""

    params: dict
    data: dict
    hessian: np.ndarray
    ggn: np.ndarray


@pytest.fixture(scope="module")
def case():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=4), "c": rng.normal(size=(4, 3))}
        params = jax.tree.map(jnp.asarray, params)
        data = {"x": rng.normal(size=(ROWS, 3)), "y": rng.integers(0, 3, ROWS)}
        flat, back = ravel_pytree(params)

        @jax.jit
        def dense(flat):
            def mean(flat):
                return jax.vmap(lambda row: loss(back(flat), row))(data).mean()

            def all_outputs(flat):
                return jax.vmap(lambda row: outputs(back(flat), row))(data)

            j, p = jax.jacrev(all_outputs)(flat), jax.nn.softmax(all_outputs(flat))
            inner = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(p)
            return jax.hessian(mean)(flat), jnp.einsum("nap,nab,nbq->pq", j, inner, j) / ROWS

        return Case(params, data, *(np.asarray(m) for m in dense(flat)))


@pytest.fixture(scope="module")
def whole(case):
    """As many steps as there are parameters: the nodes are all eigenvalues."""
    with jax.enable_x64(True):
        return hessian_spectrum(TASK, case.params, case.data, probes=40, steps=1000, probe="normal")


@pytest.fixture(scope="module")
def few(case):
    with jax.enable_x64(True):
        return hessian_spectrum(TASK, case.params, case.data, probes=5, steps=STEPS, seed=3)


def test_all_eigenvalues_are_found_by_as_many_steps(case, whole):
    wanted = np.linalg.eigvalsh(case.hessian)
    assert whole.size == len(wanted) == 28
    # The softmax ignores a shift of all outputs, so some eigenvalues are 0 together, and one of them is found.
    found = extremes(whole, int(whole.steps.max()))
    for value in wanted[np.abs(wanted) > 1e-9]:
        assert np.abs(found.top - value).min() < 1e-12
    np.testing.assert_allclose(found.top, found.bottom[::-1], atol=1e-12)


def test_the_quadrature_is_exact_for_polynomials(case, few):
    """`sum_j w_j theta_j^k = z' H^k z / P`, k up to 2 steps - 1, for the same starts z."""
    rng = np.random.default_rng(3)
    for nodes, weights in zip(few.nodes, few.weights, strict=True):
        z = rng.choice([-1.0, 1.0], few.size)
        moved = z
        for power in range(2 * STEPS):
            np.testing.assert_allclose(weights @ nodes**power, z @ moved / few.size, rtol=1e-9)
            moved = case.hessian @ moved


def test_the_trace_and_its_error(case, few, whole):
    for found in (few, whole):
        assert abs(found.trace - np.trace(case.hessian)) < 3 * found.trace_error
    off = case.hessian - np.diag(np.diag(case.hessian))
    many = hessian_spectrum(TASK, case.params, case.data, probes=300, steps=1)
    np.testing.assert_allclose(many.trace_error, np.sqrt(2 * np.square(off).sum() / 300), rtol=0.15)
    assert abs(many.trace - np.trace(case.hessian)) < 3 * many.trace_error


def test_outer_values_never_pass_the_true_ones_and_errors_hold(case, few):
    wanted = np.linalg.eigvalsh(case.hessian)
    found = extremes(few, 3)
    assert (found.top <= wanted[::-1][:3] + 1e-12).all()
    assert (found.bottom >= wanted[:3] - 1e-12).all()
    for values, errors in ((found.top, found.top_error), (found.bottom, found.bottom_error)):
        assert (np.abs(values[:, None] - wanted).min(1) <= errors).all()
    np.testing.assert_array_equal(found.top, np.sort(few.nodes, 1)[:, ::-1][:, :3].max(0))


def test_the_density_is_that_of_the_eigenvalues(case, whole):
    wanted, sigma = np.linalg.eigvalsh(case.hessian), 0.05
    grid = np.linspace(wanted[0] - 1, wanted[-1] + 1, 4001)
    found = density(whole, grid, sigma)
    mean = np.trapezoid(found * grid, grid)
    np.testing.assert_allclose(np.trapezoid(found, grid), 1, rtol=1e-9)
    np.testing.assert_allclose(mean, whole.trace / whole.size, rtol=1e-9)
    second = (np.square(whole.nodes) * whole.weights).sum(1).mean()
    np.testing.assert_allclose(np.trapezoid(found * grid**2, grid), second + sigma**2, rtol=1e-9)
    true = np.exp(-0.5 * np.square((grid[:, None] - wanted) / sigma)).mean(1) / (sigma * np.sqrt(2 * np.pi))
    assert np.trapezoid(np.abs(found - true), grid) < 0.15  # 40 starts


def test_starts_have_densities_of_which_theirs_is_the_mean(few):
    grid = np.linspace(-2, 5, 50)
    each = densities(few, grid, 0.1)
    np.testing.assert_allclose(each.mean(0), density(few, grid, 0.1), rtol=1e-12)
    for k, alone in enumerate(each):
        one = few._replace(nodes=few.nodes[k : k + 1], weights=few.weights[k : k + 1])
        np.testing.assert_allclose(alone, density(one, grid, 0.1), rtol=1e-12)


def test_how_much_is_negative(case, whole):
    """Shares of the squared lengths of the starts in each eigenvector, whose means are those of the eigenvalues."""
    values, found = np.linalg.eigvalsh(case.hessian), negative(whole)
    wanted = (values < -1e-9).mean(), np.abs(values[values < 0]).sum() / np.abs(values).sum()
    assert wanted[0] > 0.1
    assert abs(found.share - wanted[0]) < 3 * found.share_error
    assert abs(found.mass - wanted[1]) < 3 * found.mass_error
    rng, count = np.random.default_rng(0), len(whole.nodes)
    shares = (whole.weights * (whole.nodes < -1e-9)).sum(1)
    again = shares[rng.integers(0, count, (4000, count))].mean(1)  # a bootstrap knows nothing of either formula
    np.testing.assert_allclose(found.share_error, again.std(), rtol=0.1)
    sizes = whole.weights * np.abs(whole.nodes)
    parts, drawn = (sizes * (whole.nodes < 0)).sum(1), rng.integers(0, count, (4000, count))
    np.testing.assert_allclose(found.mass_error, (parts[drawn].sum(1) / sizes.sum(1)[drawn].sum(1)).std(), rtol=0.15)


def test_the_gauss_newton_matrix(case):
    found = hessian_spectrum(TASK, case.params, case.data, "ggn", probes=3, steps=1000, probe="normal")
    assert found.nodes.min() > -1e-12
    assert negative(found) == (0, 0, 0, 0)  # rounding has no sign
    np.testing.assert_allclose(extremes(found, 4).top, np.linalg.eigvalsh(case.ggn)[::-1][:4], rtol=1e-10)
    assert abs(found.trace - np.trace(case.ggn)) < 3 * found.trace_error


@pytest.mark.parametrize("how", [Pass(7), Pass(8, mesh=True)], ids=["batches", "mesh"])
def test_batches_devices_and_order_change_nothing(case, few, how):
    how = how._replace(mesh=make_mesh() if how.mesh else None)
    order = np.random.default_rng(1).permutation(ROWS)
    data = {name: x[order] for name, x in case.data.items()}
    found = hessian_spectrum(TASK, case.params, data, probes=5, steps=STEPS, seed=3, how=how)
    for name in found._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(few, name), rtol=1e-8, atol=1e-12, err_msg=name)
    sharp, wanted = (sharpness(TASK, case.params, *each) for each in ((data, 0.1, "hessian", 6, how), (case.data, 0.1)))
    np.testing.assert_allclose(sharp[2:], wanted[2:], rtol=1e-10)


def test_a_seed_gives_the_same_starts_and_another_others(case, few):
    again, other = (hessian_spectrum(TASK, case.params, case.data, probes=5, steps=STEPS, seed=s) for s in (3, 4))
    np.testing.assert_array_equal(again.nodes, few.nodes)
    assert not np.allclose(other.trace, few.trace)


def test_a_space_that_closes_early_ends_the_steps(case):
    """A Gauss-Newton matrix of one row and three classes has rank 2: with 0, three eigenvalues."""
    one = {name: x[:1] for name, x in case.data.items()}
    found = hessian_spectrum(TASK, case.params, one, "ggn", probes=3, steps=10)
    assert found.steps.tolist() == [3, 3, 3]
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-12)
    assert found.nodes.shape == (3, 3)
    with pytest.raises(UsageError, match="k=4 eigenvalues of 3 that were found"):
        extremes(found, 4)


def test_normal_starts_see_what_signs_miss():
    """Of `[[0, 1], [1, 0]]` each vector of signs is an eigenvector."""
    task = Task(lambda params, x: params["a"] * params["b"] * x)
    params, data = {"a": jnp.asarray(0.3), "b": jnp.asarray(0.2)}, np.ones(3)
    signs, normal = (hessian_spectrum(task, params, data, probes=4, steps=2, probe=p) for p in ("rademacher", "normal"))
    assert signs.steps.tolist() == [1] * 4
    assert normal.steps.tolist() == [2] * 4
    np.testing.assert_allclose(normal.nodes, [[-1, 1]] * 4, atol=1e-12)
    both = extremes(normal, 2)
    np.testing.assert_allclose([both.top, both.bottom], [[1, -1], [-1, 1]], atol=1e-12)


def test_starts_of_unequal_length_are_filled_up(monkeypatch):
    task = Task(lambda params, x: 0.5 * (params * jnp.arange(1.0, 4.0)) @ params * x)
    from uimjax.understand.representation import hessian

    starts = iter([np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0])])
    real = hessian._direction
    monkeypatch.setattr(hessian, "_direction", lambda h, _: real(h, next(starts)))
    found = hessian_spectrum(task, jnp.ones(3), np.ones(2), probes=2, steps=3)
    assert found.steps.tolist() == [1, 3]
    np.testing.assert_allclose(found.nodes, [[1, 1, 1], [1, 2, 3]], atol=1e-12)
    np.testing.assert_allclose(found.weights, [[1, 0, 0], [1 / 3] * 3], atol=1e-12)
    assert (found.errors >= 3 * np.finfo(np.float64).eps).all()  # the first start never saw the 3
    best = extremes(found, 3)
    np.testing.assert_allclose([best.top, best.bottom], [[3, 2, 1], [1, 2, 3]], atol=1e-12)
    np.testing.assert_allclose(density(found, np.array([1.0]), 1e-3) * 1e-3 * np.sqrt(2 * np.pi), 2 / 3, rtol=1e-9)


def test_a_flat_loss_has_zeros():
    found = hessian_spectrum(Task(lambda p, x: p @ x), jnp.ones(3), np.ones((4, 3)), probes=2, steps=3)
    assert found.steps.tolist() == [1, 1]
    assert found.nodes.tolist() == [[0.0], [0.0]]
    assert (found.trace, found.trace_error) == (0.0, 0.0)
    assert negative(found) == (0, 0, 0, 0)


def test_sharpness_is_the_top_and_the_rise_uphill(case):
    found = sharpness(TASK, case.params, case.data, rho=0.1)
    flat, back = ravel_pytree(case.params)

    def mean(flat):
        return jax.vmap(lambda row: loss(back(flat), row))(case.data).mean()

    low, gradient = jax.value_and_grad(mean)(flat)
    norm = np.linalg.norm(gradient)
    wanted = float(mean(flat + 0.1 * gradient / norm) - low)
    np.testing.assert_allclose(found.largest, np.linalg.eigvalsh(case.hessian)[-1], rtol=1e-11)
    np.testing.assert_allclose([found.loss, found.gradient_norm, found.rise], [low, norm, wanted], rtol=1e-11)
    held = hessian_spectrum(TASK, case.params, case.data, probes=2, steps=20)
    again = sharpness(TASK, case.params, case.data, rho=0.1, quadrature=held)  # no products once more
    np.testing.assert_allclose(again.largest, extremes(held, 1).top[0], rtol=0)
    np.testing.assert_allclose(again[2:], found[2:], rtol=1e-12)
    small = sharpness(TASK, case.params, case.data, rho=1e-5)
    np.testing.assert_allclose(small.rise, 1e-5 * norm, rtol=1e-4)  # to first order


def test_left_out_parameters_stay(case):
    part = Task(loss, exclude=("a", "b"))
    found = sharpness(part, case.params, case.data, steps=20)
    block = case.hessian[16:, 16:]
    np.testing.assert_allclose(found.largest, np.linalg.eigvalsh(block)[-1], rtol=1e-11)
    gradient = jax.grad(lambda c: jax.vmap(lambda row: loss({**case.params, "c": c}, row))(case.data).mean())
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(gradient(case.params["c"])), rtol=1e-11)


def test_single_precision_is_near_and_strict_in_its_types(case, few):
    params = jax.tree.map(lambda x: x.astype(jnp.float32), case.params)
    data = {"x": jnp.asarray(case.data["x"], jnp.float32), "y": jnp.asarray(case.data["y"], jnp.int32)}
    with jax.numpy_dtype_promotion("strict"):
        found = hessian_spectrum(TASK, params, data, probes=5, steps=STEPS, seed=3)
        sharp = sharpness(TASK, params, data, rho=0.1, steps=STEPS)
    np.testing.assert_allclose(found.trace, few.trace, rtol=1e-4)
    wanted = np.linalg.eigvalsh(case.hessian)
    top = extremes(found, 1)
    assert np.abs(wanted - top.top[0]).min() <= top.top_error[0]
    np.testing.assert_allclose(sharp.rise, sharpness(TASK, case.params, case.data, rho=0.1).rise, rtol=1e-4)


def test_what_is_refused(case, few, monkeypatch):
    given = TASK, case.params, case.data
    with pytest.raises(UnknownNameError, match="unknown probe 'norml'. Did you mean 'normal'"):
        hessian_spectrum(*given, probe="norml")
    with pytest.raises(UnknownNameError, match="unknown matrix of an operator curvature 'fisher'"):
        hessian_spectrum(*given, "fisher")
    with pytest.raises(UsageError, match="needs the model's outputs"):
        hessian_spectrum(Task(loss), *given[1:], "ggn")
    for probes, steps in ((1, 5), (5, 0)):
        with pytest.raises(UsageError, match=f"probes={probes} and steps={steps}; at least 2 and 1"):
            hessian_spectrum(*given, probes=probes, steps=steps)
    for rho, steps in ((0.0, 5), (0.1, 0)):
        with pytest.raises(UsageError, match=f"rho={rho} and steps={steps}; a distance above 0"):
            sharpness(*given, rho=rho, steps=steps)
    with pytest.raises(ShapeError, match=r"a grid of shape \[1, 2\]"):
        density(few, np.ones((1, 2)), 0.1)
    with pytest.raises(UsageError, match="sigma=0; a width above 0"):
        density(few, np.ones(2), 0)
    with pytest.raises(UsageError, match="k=0 eigenvalues"):
        extremes(few, 0)
    with pytest.raises(NonFiniteError, match="params: b holds 4"):
        hessian_spectrum(TASK, {**case.params, "b": case.params["b"] * np.nan}, case.data)
    monkeypatch.setitem(sys.modules, "matfree", None)
    with pytest.raises(UsageError, match=r"needs matfree, which is not installed: pip install 'uimjax\[solve\]'"):
        hessian_spectrum(*given, steps=9)


def test_derivatives_that_are_not_finite_are_refused():
    kink = Task(lambda params, x: jnp.sqrt(jnp.square(params * x).sum()))
    with pytest.raises(NonFiniteError, match="products with the hessian are NaN or infinite"):
        hessian_spectrum(kink, jnp.zeros(2), np.ones((3, 2)), probes=2, steps=2)
    with pytest.raises(NonFiniteError, match="the mean loss is 0.0, its gradient's norm nan"):
        sharpness(kink, jnp.zeros(2), np.ones((3, 2)))
    bowl = Task(lambda params, x: jnp.square(params * x).sum())
    with pytest.raises(NonFiniteError, match="its gradient's norm 0.0 and the loss uphill nan"):
        sharpness(bowl, jnp.zeros(2), np.ones((3, 2)))
