"""The contracts of `gram_square` and `project`, for every implementation, against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uimjax_kernels import gram_square, project
from uimjax_kernels.dispatch import KernelError
from uimjax_kernels.gram_square import pallas_gpu, reference
from uimjax_kernels.gram_square.api import _TABLE as GRAM
from uimjax_kernels.project import pallas_gpu as projecting
from uimjax_kernels.project.api import _TABLE as PROJECT

SHAPES = [(5, 7, 9, 33), (3, 130, 200, 20), (1, 1, 1, 1), (17, 16, 64, 128)]


def close(found, want):
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", GRAM)
@pytest.mark.parametrize(("size", "length", "rows", "cols"), SHAPES)
def test_gram_square(name, size, length, rows, cols, rng):
    a, g = (jnp.asarray(rng.normal(size=(size, length, n)), jnp.bfloat16) for n in (rows, cols))
    want = (np.einsum("bti,bto->bio", *(np.asarray(x, np.float64) for x in (a, g))) ** 2).sum(0)
    close(gram_square(a, g, implementation=name), want)


@pytest.mark.parametrize("name", GRAM)
def test_examples_of_one_program_add_up(name, monkeypatch, rng):
    monkeypatch.setattr(pallas_gpu, "PROGRAMS", 2)  # three examples a program, the last filled up
    a, g = (jnp.asarray(rng.normal(size=(5, 20, n)), jnp.bfloat16) for n in (18, 24))
    want = (np.einsum("bti,bto->bio", *(np.asarray(x, np.float64) for x in (a, g))) ** 2).sum(0)
    jax.clear_caches()
    close(gram_square(a, g, implementation=name), want)


def test_gram_square_of_float32_in_steps_that_do_not_divide(monkeypatch, rng):
    monkeypatch.setattr(reference, "CHUNK_BYTES", 3 * 4 * 9 * 11)
    a, g = (rng.normal(size=(7, 5, n)).astype(np.float32) for n in (9, 11))
    want = (np.einsum("bti,bto->bio", a.astype(np.float64), g) ** 2).sum(0)
    close(reference.gram_square.__wrapped__(jnp.asarray(a), jnp.asarray(g)), want)


def _signs(rows, width, seed):
    """R in plain Python integers."""

    def mixed(x):
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
        return x ^ (x >> 16)

    out = np.zeros((len(rows), width))
    for at, row in enumerate(rows):
        own = mixed(mixed((row * 0x9E3779B1 + seed[0]) & 0xFFFFFFFF) ^ seed[1])
        for k in range(width):
            word = mixed(own ^ mixed((k // 32 * 0x9E3779B1 + 0x7F4A7C15) & 0xFFFFFFFF))
            out[at, k] = 1 if word >> (k % 32) & 1 else -1
    return out


@pytest.mark.parametrize("name", PROJECT)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    ("size", "numbers", "width", "start"), [(3, 70, 50, 0), (1, 1, 1, 9), (20, 300, 160, 2**32 - 300)]
)
def test_project(name, size, numbers, width, start, split, rng, monkeypatch):
    monkeypatch.setattr(projecting, "PROGRAMS", 528 if split else 1)  # a program takes one step, or all
    jax.clear_caches()
    x, seed = rng.normal(size=(size, numbers)).astype(np.float32), (7, 4_000_000_000)
    want = x.astype(np.float64) @ _signs(range(start, start + numbers), width, seed) / np.sqrt(width)
    close(project(jnp.asarray(x), jnp.array(seed, jnp.uint32), width, start, implementation=name), want)


@pytest.mark.parametrize("name", PROJECT)
def test_parts_of_a_long_vector_add_up(name, rng):
    x, seed = jnp.asarray(rng.normal(size=(2, 300)), jnp.float32), jnp.array([1, 2], jnp.uint32)
    first = project(x[:, :130], seed, 64, implementation=name)
    close(first + project(x[:, 130:], seed, 64, 130, implementation=name), project(x, seed, 64, implementation=name))


def test_products_are_kept_in_the_mean_and_spread_as_the_paper_says(rng):
    """Achlioptas 2003: E <s(x), s(y)> = <x, y>; the variance of signs."""
    x, y = (rng.normal(size=(1, 200)).astype(np.float32) for _ in range(2))
    y = x + 0.3 * y
    width, draws = 64, 600
    pair = jnp.asarray(np.concatenate([x, y]))
    found = []
    for seed in range(draws):
        made = np.asarray(project(pair, jnp.array([seed, 99], jnp.uint32), width), np.float64)
        found.append(made[0] @ made[1])
    inner, squares = float((x * y).sum()), float((x**2 * y**2).sum())
    spread = np.sqrt(((x**2).sum() * (y**2).sum() + inner**2 - 2 * squares) / width)
    assert abs(np.mean(found) - inner) < 4 * spread / np.sqrt(draws)
    np.testing.assert_allclose(np.std(found), spread, rtol=0.1)


def test_what_does_not_fit_is_refused_with_the_reason():
    ones = jnp.ones((2, 3, 4))
    with pytest.raises(KernelError, match="float32: bfloat16"):
        gram_square(ones, ones, implementation="pallas_gpu")
    with pytest.raises(KernelError, match=r"a \(2, 3, 4\) and g \(3, 3, 4\)"):
        gram_square(ones, jnp.ones((3, 3, 4)))
    with pytest.raises(KernelError, match="two uint32"):
        project(jnp.ones((2, 3)), jnp.ones(2), 4)
    with pytest.raises(KernelError, match="numbered from 0 to 2"):
        project(jnp.ones((2, 3)), jnp.ones(2, jnp.uint32), 4, 2**32 - 2)
    with pytest.raises(KernelError, match="width 0"):
        project(jnp.ones((2, 3)), jnp.ones(2, jnp.uint32), 0)
