"""Eight virtual CPU devices, strict ranks, and the oracle's float64."""

import os
from pathlib import Path

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", os.environ.get("UIMJAX_TEST_PLATFORM", "cpu"))

import jax  # noqa: E402  # the two lines above must come first
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_disable_most_optimizations", True)  # the tests compile far more than they compute


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    """Double precision, for oracles."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def reference_data() -> Path:
    """The large reference data, where the machine has them."""
    folder = os.environ.get("UIMJAX_DATA")
    if not folder:
        pytest.skip("UIMJAX_DATA is not set: this test reads the large reference data")
    if not Path(folder).is_dir():
        pytest.fail(f"UIMJAX_DATA={folder} is not a folder")
    return Path(folder)
