"""Known numbers of a real network at seven epochs: spectra, similarities, dimensions and its Hessian."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import programs
from uimjax.rows import Pass
from uimjax.task import Task
from uimjax.understand.representation.dimension import two_nn
from uimjax.understand.representation.hessian import extremes, hessian_spectrum, sharpness
from uimjax.understand.representation.moments import moments_of
from uimjax.understand.representation.similarity import KINDS, cka
from uimjax.understand.representation.spectrum import spectrum_of, spectrum_of_moments

TRACE_PROBES = 12
RENAMED = {"effective_rank_roy_vetterli": "effective_rank", "rankme_eps1e7": "rankme"}


class Digits(NamedTuple):
    """`known` numbers, `features` by name, and the network's parameters by epoch with its rows."""

    known: dict
    features: dict
    params: dict
    rows: tuple


@pytest.fixture(scope="module")
def loaded():
    """Read once a file."""
    return {}


@pytest.fixture
def digits(reference_data, loaded):
    if not loaded:
        from sklearn.datasets import load_digits

        folder = reference_data / "digits_dynamics"
        stored = np.load(folder / "digits_mlp_dynamics.npz")
        x = load_digits().data / 16
        params, features = {}, {"X": x}
        for epoch, flat in zip(stored["param_epochs"].tolist(), stored["params"].astype(np.float64), strict=True):
            shapes = (64, 64), (64,), (64, 10), (10,)
            parts = np.split(flat, np.cumsum([np.prod(shape) for shape in shapes])[:-1])
            params[epoch] = w, b, *_ = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
            features[f"H{epoch}"] = np.maximum(x @ w + b, 0)
        known = json.loads((folder / "golden_diagnostics.json").read_text())
        loaded["digits"] = Digits(known, features, params, (x, stored["labels"]))
    return loaded["digits"]


def test_spectra(digits):
    for name, each in digits.known["spectrum"].items():
        features = digits.features[name]
        for centring, wanted in each.items():
            centred = centring == "centered"
            exact, streamed = (
                spectrum_of(features, centred),
                spectrum_of_moments(moments_of(np.array_split(features, 9)), centred),
            )
            for key, value in wanted.items():
                number = RENAMED.get(key, key)
                np.testing.assert_allclose(getattr(exact, number), value, rtol=1e-12, err_msg=f"{name} {key}")
                np.testing.assert_allclose(getattr(streamed, number), value, rtol=1e-7, err_msg=f"{name} {key}")


def test_similarities(digits):
    for name, wanted in digits.known["cka"].items():
        x, y = (digits.features[each] for each in name.split("_"))
        found = [cka(np.array_split(x, 11), y, kind, batch_size=256) for kind in KINDS]
        keys = "linear_biased", "linear_unbiased", "minibatch_b256_inorder_droplast"
        np.testing.assert_allclose(found, [wanted[key] for key in keys], rtol=1e-11, err_msg=name)


def test_dimensions(digits):
    """The first number is called after scikit-dimension, but takes the paper's F = i / N with i from 1."""
    for name, wanted in digits.known["twonn"].items():
        found = two_nn(digits.features[name])
        np.testing.assert_allclose(found.regression, wanted["skdim_linear_fit_discard0p1"], rtol=1e-12)
        np.testing.assert_allclose(found.likelihood, wanted["mle_no_discard"], rtol=1e-12)


def loss(p, example):
    x, label = example
    return programs.cross_entropy(jax.nn.relu(x @ p[0] + p[1]) @ p[2] + p[3], label)


@pytest.mark.usefixtures("x64")
def test_the_hessian_at_epoch_10(digits):
    known, params = digits.known["hessian_e10"], jax.tree.map(jnp.asarray, digits.params[10])
    task, how = Task(loss), Pass(1797)
    fine = hessian_spectrum(task, params, digits.rows, probes=2, steps=60, how=how)
    found = extremes(fine, 5)
    assert fine.size == known["dim"]
    np.testing.assert_allclose(found.top, known["top5"], rtol=1e-10)
    np.testing.assert_allclose(found.bottom[:2], known["bottom2"], rtol=1e-8)
    assert (np.abs(found.top - known["top5"]) <= found.top_error).all()
    assert (np.abs(found.bottom[:2] - known["bottom2"]) <= found.bottom_error[:2]).all()

    rough = hessian_spectrum(task, params, digits.rows, probes=TRACE_PROBES, steps=5, how=how)
    assert abs(rough.trace - known["trace"]) < 3 * rough.trace_error
    squares = rough.size * (np.square(rough.nodes) * rough.weights).sum(1)
    standard = squares.std(ddof=1) / np.sqrt(TRACE_PROBES)
    assert abs(squares.mean() - known["frobenius_sq"]) < 3 * standard

    sharp = sharpness(task, params, digits.rows, rho=0.05, steps=60, how=how)
    np.testing.assert_allclose(sharp.largest, known["top5"][0], rtol=1e-10)
    noise = digits.known["gradient_noise"]["e10"]  # its loss and gradient are this mean's
    np.testing.assert_allclose(sharp.loss, noise["loss"], rtol=1e-12)
    np.testing.assert_allclose(sharp.gradient_norm**2, noise["grad_sq_norm_full"], rtol=1e-11)
