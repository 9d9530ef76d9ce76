"""Passes over rows: split over devices, stopped and taken up again, with the same result."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import uimjax as uj
from uimjax import checkpoint
from uimjax.curvature import Curvature, Kronecker, Operator, Source, projected
from uimjax.errors import ShapeError, UsageError
from uimjax.interpret import methods, resume
from uimjax.interpret.base import Method
from uimjax.mesh import make_mesh

N, CLASSES = 37, 3  # no multiple of a batch


def logits(params, example):
    return jnp.tanh(example[0] @ params["w"] + params["b"]) @ params["v"]


def label(example):
    return example[1]


TASK = uj.Task(lambda p, e: -jax.nn.log_softmax(logits(p, e))[e[1]], outputs=logits, label=label)
NLL = uj.Measurement("nll", TASK.loss)


@pytest.fixture
def ask(rng):
    """(parameters, rows, measurement, queries)"""
    params = {"w": rng.normal(size=(6, 8)), "b": rng.normal(size=8), "v": rng.normal(size=(8, CLASSES))}
    rows = (rng.normal(size=(N, 6)).astype(np.float32), rng.integers(0, CLASSES, N).astype(np.int32))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), rows, NLL, jax.tree.map(lambda x: x[:5], rows)


def run_of(params):
    moments = jax.tree.map(jnp.abs, params)
    return [uj.Checkpoint(p, 0.1, 5, moments) for p in (jax.tree.map(lambda x: x * 0.8, params), params)]


def damped(method):
    """With a damping given: what the rule chooses may differ by a step where rounding does."""
    its = method.curvature
    if isinstance(method.sketch, uj.DenseSketch):
        method = dataclasses.replace(method, sketch=uj.DenseSketch(64))
    if isinstance(its, Kronecker | Operator) and method.checkpoints != "segments":
        return dataclasses.replace(method, curvature=dataclasses.replace(its, damping=0.1))
    return dataclasses.replace(method, curvature=projected(0.1, its.source)) if isinstance(its, Curvature) else method


MESHED = ["grad_dot", "less", "kfac", "ekfac", "logra", "trak", "datainf", "cg", "source"]


@pytest.mark.parametrize("name", MESHED)
def test_devices_change_nothing(name, ask):
    params, *rest = ask
    method, run = damped(methods.get(name)), run_of(params)
    one = uj.score(TASK, run, *rest, method, each=True, batch_size=16)
    run, rest[0], rest[2] = jax.device_put((run, rest[0], rest[2]), jax.devices()[0])  # as a checkpoint gives them
    split = uj.score(TASK, run, *rest, method, each=True, batch_size=16, mesh=make_mesh(8))
    np.testing.assert_allclose(split.values, one.values, rtol=2e-3, atol=2e-4 * np.abs(one.values).max())


def test_parameters_may_be_split_as_well(ask):
    params, *rest = ask
    one = uj.score(TASK, params, *rest, "ekfac", each=True, batch_size=16)
    split = uj.score(TASK, params, *rest, "ekfac", each=True, batch_size=16, mesh=make_mesh(4, model=2))
    np.testing.assert_allclose(split.values, one.values, rtol=2e-3, atol=2e-4 * np.abs(one.values).max())


class Stop(Exception):
    """As if the process had been killed."""


def stopping(monkeypatch, after):
    """Every batch is kept; the process ends when `after` of them are."""
    left = [after]
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)
    real = checkpoint.save

    def save(*given, **more):
        real(*given, **more)
        left[0] -= 1
        if not left[0]:
            raise Stop

    monkeypatch.setattr(resume.checkpoint, "save", save)
    return left


@pytest.mark.parametrize(("name", "after", "devices"), [("ekfac", 2, 1), ("ekfac", 14, 4), ("source", 9, 1)])
def test_a_pass_that_was_stopped_goes_on_to_the_same_bits(name, after, devices, ask, tmp_path, monkeypatch):
    params, *rest = ask
    run, more = run_of(params), {"batch_size": 8, "mesh": make_mesh(devices) if devices > 1 else None}
    whole = uj.score(TASK, run, *rest, name, **more).values
    with monkeypatch.context() as patch:
        stopping(patch, after)
        with pytest.raises(Stop):
            uj.score(TASK, run, *rest, name, folder=tmp_path, **more)
    again = uj.score(TASK, run, *rest, name, folder=str(tmp_path), **more)
    np.testing.assert_array_equal(again.values, whole)
    with monkeypatch.context() as patch:  # all is there: nothing is summed, and nothing kept again
        stopping(patch, 1)
        np.testing.assert_array_equal(uj.score(TASK, run, *rest, name, folder=tmp_path, **more).values, whole)


def test_what_is_kept_is_of_its_causes_alone(ask, tmp_path, monkeypatch):
    params, rows, *rest = ask
    uj.score(TASK, params, rows, *rest, "ekfac", batch_size=8, folder=tmp_path)
    moved = jax.tree.map(lambda x: x * 1.01, params)
    other = (rows[0] + 1, rows[1])
    nll = lambda z, e: -2 * jax.nn.log_softmax(z)[e[1]]  # noqa: E731
    loss = uj.Task(lambda p, e: 2 * TASK.loss(p, e), outputs=logits, nll=nll)
    right = lambda p, e: jax.nn.softmax(logits(p, e))[e[1]][None]  # noqa: E731
    outputs = uj.Task(TASK.loss, outputs=right, nll=lambda z, _: -jnp.log(z[0]))  # the same loss, another matrix
    plain, fixed = Kronecker("ekfac"), Kronecker("ekfac", damping=0.01)
    for task, given, data, size, choice in (
        (TASK, moved, rows, 8, plain), (TASK, params, other, 8, plain), (loss, params, rows, 8, plain),
        (outputs, params, rows, 8, Kronecker("ekfac", Source("ggn"))), (TASK, params, rows, 9, plain),
        (TASK, params, rows, 8, fixed),
    ):  # fmt: skip
        method = Method("m", curvature=choice, normalize="none")
        if task is outputs:  # what was kept of the logits' Gauss-Newton matrix is not this one's
            uj.score(TASK, given, data, *rest, method, batch_size=size, folder=tmp_path)
        fresh = uj.score(task, given, data, *rest, method, batch_size=size).values
        with monkeypatch.context() as patch:
            left = stopping(patch, 10**6)
            kept = uj.score(task, given, data, *rest, method, batch_size=size, folder=tmp_path).values
            assert left[0] < 10**6  # measured anew
        np.testing.assert_array_equal(kept, fresh)


def test_what_is_kept_is_of_its_derivative_alone(ask, tmp_path):
    """The same losses, with a derivative of their own by `custom_jvp`."""
    params, rows, *rest = ask
    method = Method("m", curvature=Kronecker("ekfac", Source("empirical"), damping=0.1), normalize="none")

    def task(slope):
        @jax.custom_jvp
        def same(x):
            return x * 1.0

        same.defjvp(lambda x, t: (same(*x), slope * t[0]))
        return uj.Task(lambda p, e: same(TASK.loss(p, e)))

    for slope in (1.0, 10.0):
        fresh = uj.score(task(slope), params, rows, *rest, method, batch_size=8).values
        kept = uj.score(task(slope), params, rows, *rest, method, batch_size=8, folder=tmp_path).values
        np.testing.assert_array_equal(kept, fresh)


def test_refusals(ask, tmp_path):
    params, rows, *rest = ask
    with pytest.raises(UsageError, match="keeps the sums of a Kronecker curvature, and grad_dot has none"):
        uj.score(TASK, params, rows, *rest, "grad_dot", folder=tmp_path)
    with pytest.raises(UsageError, match="random is a baseline: it is split over no mesh"):
        uj.score(TASK, params, rows, *rest, "random", mesh=make_mesh(2))
    with pytest.raises(ShapeError, match="a batch of 6 examples does not divide over 4 devices"):
        uj.score(TASK, params, rows, *rest, "grad_dot", batch_size=6, mesh=make_mesh(4))
    assert uj.score(TASK, params, rows, *rest, "auto", folder=tmp_path).method.startswith("ekfac")
