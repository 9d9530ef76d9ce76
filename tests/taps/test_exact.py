"""Factors formed equal `vmap(grad)` in float64, for every program of `tests/programs.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import programs
from uimjax.taps import form, sites, verify
from uimjax.task import Task


def formed(found, factors):
    return jax.jit(lambda factors: {leaf.path: form(leaf, factors[leaf.path]) for leaf in found.leaves})(factors)


@pytest.mark.parametrize("name", programs.ALL)
@pytest.mark.usefixtures("x64")
def test_factors_equal_vmap_grad(name, rng):
    own_code = not name.startswith(("nnx", "linen"))  # Flax itself promotes
    with jax.numpy_dtype_promotion("strict" if own_code else "standard"):
        check_exact(name, rng)


def check_exact(name, rng):
    loss, params, batch = programs.ALL[name](rng, jnp.float64)
    task = Task(loss)
    found = sites(task, params, jax.tree.map(lambda x: x[0], batch))
    losses, factors = programs.captured(found, params, batch)
    want_losses, want = programs.brute_force(loss, params, batch)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-10)
    got = formed(found, factors)
    for path, leaf in jax.tree_util.tree_flatten_with_path(want)[0]:
        key = jax.tree_util.keystr(path, simple=True, separator="/")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            assert key not in got
            continue
        value = np.zeros(leaf.shape) if got[key] is None else np.asarray(got[key])
        error = np.linalg.norm(value - leaf) / max(np.linalg.norm(leaf), 1e-12)
        assert error < 1e-10, (key, error)
    assert found.coverage == 1.0
    verify(task, found, params, batch)
