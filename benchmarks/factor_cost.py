"""What per-example gradients cost against ONE ordinary batch gradient of the same program.

Claims, as shares of `value_and_grad`: rank-16 sketches of every parameter at most 0.75 (GPT 4x128, MLP), 0.9 (GPT
12x768) and 1.0 (ResNet-20); exact norms at most 1.05 (GPT, MLP) and 1.6 (ResNet-20).
Run: python -m benchmarks.factor_cost --json
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import networks, timing
from uimjax import factors as algebra
from uimjax import sketch, taps
from uimjax.task import Task


def measure(loss, params, batch, repeats: int, rank: int = 16) -> dict[str, float]:
    """Ratios to the plain batch gradient; the factors are checked against it first."""
    task, choice = Task(loss), sketch.Sketch(rank)
    found = taps.sites(task, params, jax.tree.map(lambda x: x[0], batch))
    taps.verify(task, found, params, batch)
    drawn = jax.jit(lambda: sketch.matrices(choice, found))()

    @jax.jit
    def plain(params, batch):
        return jax.value_and_grad(lambda p: jax.vmap(functools.partial(loss, p))(batch).sum())(params)

    @jax.jit
    def sketched(params, batch):
        losses, factors = taps.capture(found, params, batch)
        return losses, sketch.rows(found, sketch.project(found, drawn, factors))

    @jax.jit
    def norms(params, batch):
        losses, factors = taps.capture(found, params, batch)
        return losses, algebra.norm(found, factors)

    check_norms(loss, params, batch, norms)
    calls = {
        "plain": lambda: plain(params, batch),
        "sketch": lambda: sketched(params, batch),
        "norms": lambda: norms(params, batch),
    }
    times = timing.interleaved(calls, repeats)
    found_times = {f"{k}_{m}": round(v, 5) for k, t in times.items() for m, v in t.items()}
    base = times["plain"]["median_s"]
    return {f"ratio_{k}": round(times[k]["median_s"] / base, 3) for k in ("sketch", "norms")} | found_times


def check_norms(loss, params, batch, norms) -> None:
    """The first two rows' norms against the gradients themselves."""
    got = norms(params, batch)[1][:2]
    for k in range(2):
        gradient = jax.grad(loss)(params, jax.tree.map(lambda x, k=k: x[k], batch))
        want = np.sqrt(sum(float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(got[k], want, rtol=1e-3)


def main() -> None:
    args = timing.arguments(__doc__ or "")
    rng, key = np.random.default_rng(0), jax.random.key(0)

    def tokens(batch, length):
        return jnp.asarray(rng.integers(256, size=(batch, length + 1)))

    def images(batch, *shape):
        return jnp.asarray(rng.normal(size=(batch, *shape)), jnp.float32), jnp.asarray(rng.integers(10, size=batch))

    large = functools.partial(networks.gpt_params, key, 12, 768, 256, 256)
    runs = {
        "gpt": (networks.gpt_loss, networks.gpt_params(key), tokens(32, 128), "4 layers, d=128, T=128, batch 32"),
        "mlp": (networks.mlp_loss, networks.mlp_params(key), images(1024, 784), "784-512-512-10, batch 1024"),
        "resnet": (networks.resnet_loss, networks.resnet_params(key), images(128, 32, 32, 3), "ResNet-20, batch 128"),
    }
    result = {}
    for name, (loss, params, batch, shape) in runs.items():
        result[name] = measure(loss, params, batch, 5 if args.quick else 15) | {"shape": shape}
    if not args.quick:
        loss = functools.partial(networks.gpt_loss, heads=12)
        result["gpt_large"] = measure(loss, large(), tokens(2, 256), 5) | {"shape": "12 layers, d=768, T=256, batch 2"}
    timing.report(result | {"rank": 16, **timing.machine()}, args.json)


if __name__ == "__main__":
    main()
