"""A GPU's compiler is told once, and a choice of the reader's stands."""

import os
import subprocess
import sys

import pytest

from uimjax import compiler


@pytest.mark.parametrize(
    ("given", "plugin", "told"),
    [
        ("", True, True),
        ("--other=1", True, True),
        (f"--{compiler.FLAG}=true", True, False),
        ("", False, False),
    ],
)
def test_flags_are_added_for_a_gpu_alone(given, plugin, told, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(compiler, "find_spec", lambda name: plugin and name == "jax_cuda13_plugin")
    assert compiler.compile_sooner() is told
    assert os.environ["XLA_FLAGS"].split() == [*given.split(), *["--xla_gpu_enable_triton_gemm=false"] * told]
    assert compiler.compile_sooner() is False  # once
    assert os.environ["XLA_FLAGS"].count("triton") <= 1


def test_xla_knows_the_flag_and_reads_it_after_the_import():
    """A name that XLA does not know ends the process; here it must begin, with the flag set as the command sets it."""
    code = "import jax, os; os.environ['XLA_FLAGS'] = '--{}'; import jax.numpy as jnp; print(float(jnp.ones(3).sum()))"
    for flag, right in ((f"{compiler.FLAG}=false", True), ("xla_gpu_no_such_flag=1", False)):
        done = subprocess.run([sys.executable, "-c", code.format(flag)], capture_output=True, text=True)
        assert (done.returncode == 0) is right, done.stderr
