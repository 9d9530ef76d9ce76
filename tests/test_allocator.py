"""Buffers that are kept are not paged in again."""

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
import uimjax as uj
kept = uj.keep_buffers() if sys.argv[1] == "keep" else None
import jax, jax.numpy as jnp
@jax.jit
def large(x):
    return jnp.sin(x @ x.T).sum(0) @ jnp.cos(x)
x = jnp.ones((4000, 64))  # 64 MB between: glibc keeps blocks of up to 32 MB anyway
for _ in range(5):
    jax.block_until_ready(large(x))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    jax.block_until_ready(large(x))
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone has these settings")
def test_kept_buffers_are_not_paged_in_again():
    faults = {}
    for choice in ("keep", "leave"):
        command, env = [sys.executable, "-c", CODE, choice], dict(os.environ, JAX_NUM_CPU_DEVICES="1")
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        kept, count = done.stdout.split()
        assert kept == str(choice == "keep" or None)
        faults[choice] = int(count)
    assert faults["keep"] < 0.5 * faults["leave"], faults
