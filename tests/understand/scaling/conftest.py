"""The compiler's usual settings: these tests compute far more than they compile."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def _optimised():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
