"""The package is cheap to import, its public names resolve, and its examples run."""

import doctest
import importlib
import subprocess
import sys

import pytest

from uimjax.understand import representation

MODULES = ["moments", "spectrum", "similarity", "dimension", "series"]


def test_importing_it_imports_nothing_heavy():
    code = (
        "import sys, uimjax.understand.representation\n"
        "sys.exit(' '.join({'jax', 'scipy', 'sklearn', 'matfree', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_every_public_name_resolves_and_is_documented():
    for name in dir(representation):
        assert getattr(representation, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'; public names"):
        representation.nonsense  # noqa: B018  # the access is the test


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    done = doctest.testmod(importlib.import_module(f"uimjax.understand.representation.{name}"))
    assert done.attempted
    assert not done.failed
