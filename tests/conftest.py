"""Eight virtual CPU devices, strict ranks, the oracle's float64, and two test processes that respect what is timed."""

import contextlib
import fcntl
import gc
import os
import subprocess
import sys
from pathlib import Path

if sys.dont_write_bytecode:  # each of the processes that tests start would compile 2,400 modules anew: 7 s
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(sys.prefix) / "pycache"))  # not into the sources
    sys.dont_write_bytecode, sys.pycache_prefix = False, os.environ["PYTHONPYCACHEPREFIX"]

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", os.environ.get("UIMJAX_TEST_PLATFORM", "cpu"))

import jax  # noqa: E402  # what is above must come first
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_disable_most_optimizations", True)  # the tests compile far more than they compute


@pytest.fixture(autouse=True, scope="session")
def _compiled_once(tmp_path_factory):
    """Programs that two tests share are compiled once, for each test process by itself (writing is not atomic)."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Each compiled program holds pieces of memory that are mapped one by one, and a process may have 65,530 of them:
    after some eight hundred tests it died. What the next file shares is in the cache on disk."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True)
def _strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(autouse=True)
def _no_module_of_a_test_is_left(tmp_path_factory):
    """A module that a test wrote goes with it: the next `mine.py` is another one."""
    base, path, before = str(tmp_path_factory.getbasetemp()), list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(base):
            del sys.modules[name]


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


def command_line(*args: str, cwd: Path) -> subprocess.CompletedProcess:
    """The command line, in a process of its own with the compiler's usual settings."""
    env = dict(os.environ, JAX_NUM_CPU_DEVICES="1")
    return subprocess.run([sys.executable, "-m", "uimjax.cli", *args], capture_output=True, text=True, cwd=cwd, env=env)


@pytest.fixture(scope="session")
def gate(tmp_path_factory) -> Path:
    """A file that the test processes share (they run side by side): locked alone by what is timed."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "gate"


@pytest.fixture(autouse=True)
def _not_beside_what_is_timed(gate):
    with gate.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def alone(gate: Path):
    """No other test runs meanwhile; for fixtures of a wider scope than a test's."""
    with gate.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def pytest_collection_modifyitems(items):
    """The demo first: it runs alone, and what is long should not start last."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")
