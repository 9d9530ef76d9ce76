"""What per-example gradients cost against ONE ordinary batch gradient of the same program.

Claims, as shares of `value_and_grad`: rank-16 sketches of every parameter at most 0.75 (GPT 4x128, MLP), 0.9 (GPT
12x768) and 1.0 (ResNet-20); exact norms at most 1.05 (GPT, MLP) and 1.6 (ResNet-20); each pass of EK-FAC statistics at
most 1.6. Beside them `vmap(grad)`, the compile time and the temporary memory of each program, and peers on the same
weights and data where their Python is given.

Run: python -m benchmarks.factor_cost --json [--only gpt] [--peers /path/to/venv/bin/python]
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import networks, peers, timing
from uimjax import factors as algebra
from uimjax import sketch, taps
from uimjax.curvature import statistics
from uimjax.curvature.blocks import Laid, blocks
from uimjax.models import decoder
from uimjax.models.blocks import Shape
from uimjax.rows import pack
from uimjax.task import Task

RANK = 16


class Run(NamedTuple):
    task: Task
    params: Any
    batch: Any
    shape: str
    documents: tuple[Any, ...] = ()  # of packed rows: (place among the outputs, the row of that document alone)
    columns: tuple[str, ...] = ("plain", "sketch", "norms", "covariances", "eigenvalues", "vmap_grad")


def programs(task: Task, params: Any, batch: Any, columns: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    """What is timed: `(params, batch) -> outputs` each, of proven sites."""
    found = taps.sites(task, params, jax.tree.map(lambda x: x[0], batch))
    taps.verify(task, found, params, batch)
    choice = sketch.Sketch(RANK)
    drawn = sketch.drawn(found, choice)
    capture = functools.partial(taps.each_example, task, found)

    def loss(params, batch):
        return jax.vmap(functools.partial(task.loss, params))(batch).sum()

    def sketched(params, batch):
        losses, factors = capture(params, batch)
        return losses, sketch.rows(found, choice, drawn, factors)

    def norms(params, batch):
        losses, factors = capture(params, batch)
        return losses, algebra.norm(found, factors)

    def covariances(params, batch):
        return statistics.covariances(blocks(Laid(found, ()), capture(params, batch)[1]))

    def eigenvalues(params, batch):
        return statistics.eigenvalues(blocks(Laid(found, ()), capture(params, batch)[1]), bases)

    def vmap_grad(params, batch):
        gradients = jax.vmap(lambda row: jax.grad(lambda p: task.loss(p, row).sum())(params))(batch)
        return jnp.sqrt(sum(jnp.square(g).reshape(g.shape[0], -1).sum(1) for g in jax.tree.leaves(gradients)))

    each = {"sketch": sketched, "norms": norms, "covariances": covariances, "vmap_grad": vmap_grad}
    if "eigenvalues" in columns:
        bases = statistics.eigenbases(jax.jit(lambda p, b: covariances(p, b))(params, batch))  # compiled apart
        each["eigenvalues"] = eigenvalues
    return {"plain": jax.value_and_grad(loss), **each}


def measure(run: Run, repeats: int) -> dict[str, Any]:
    """Ratios to the plain batch gradient, examples a second; answers are checked first."""
    made = programs(run.task, run.params, run.batch, run.columns)
    compiled, result = {}, {}
    for name in run.columns:
        compiled[name], result[f"{name}_compile_s"] = timing.compiled(made[name], run.params, run.batch)
        result[f"{name}_temporary_mib"] = round(compiled[name].memory_analysis().temp_size_in_bytes / 2**20, 1)
    check(run, compiled)
    calls = {name: functools.partial(program, run.params, run.batch) for name, program in compiled.items()}
    seconds = timing.interleaved(calls, repeats)
    examples = len(run.documents) or compiled["norms"](run.params, run.batch)[0].shape[0]
    for name, taken in seconds.items():
        result[f"ratio_{name}"] = round(taken / seconds["plain"], 3)
        result[f"{name}_examples_per_s"] = round(examples / taken, 1)
    return result | {"shape": run.shape}


def check(run: Run, compiled: dict[str, Callable[..., Any]]) -> None:
    """Norms against the gradients themselves; every sketch column's sum and both statistics against the norms."""
    losses, norms = compiled["norms"](run.params, run.batch)
    whole, _ = compiled["plain"](run.params, run.batch)
    np.testing.assert_allclose(losses.sum(), whole, rtol=1e-4)
    singles = run.documents or [(k, jax.tree.map(lambda x, k=k: x[k], run.batch)) for k in range(2)]
    for k, row in singles[:2]:
        gradient = jax.jit(jax.grad(lambda p, row: run.task.loss(p, row).sum()))(run.params, row)
        want = np.sqrt(sum(float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(norms[k], want, rtol=5e-2 if half(run.params) else 1e-3)
    if "vmap_grad" in compiled:
        np.testing.assert_allclose(norms, compiled["vmap_grad"](run.params, run.batch), rtol=1e-3, atol=1e-6)
    if "eigenvalues" in compiled:
        total = sum(float(x.sum()) for x in compiled["eigenvalues"](run.params, run.batch).values())
        np.testing.assert_allclose(total, float((norms**2).sum()), rtol=1e-2)
    rows = np.asarray(compiled["sketch"](run.params, run.batch)[1], np.float64)
    off = np.square(rows).sum() / float((norms**2).sum()) - 1
    assert abs(off) < 0.5, f"squared sketches are off by {off:.0%} of the squared norms, all examples together"


def half(params: Any) -> bool:
    return any(leaf.dtype.itemsize < 4 for leaf in jax.tree.leaves(params))


def tokens(rng: np.random.Generator, batch: int, length: int) -> Any:
    return jnp.asarray(rng.integers(256, size=(batch, length + 1)))


def images(rng: np.random.Generator, batch: int, *shape: int) -> Any:
    return jnp.asarray(rng.normal(size=(batch, *shape)), jnp.float32), jnp.asarray(rng.integers(10, size=batch))


def short_documents(rng: np.random.Generator, packed: bool) -> Run:
    """128 documents of 8 to 64 tokens: in rows of 128 by up to 8, or one a row padded to 64."""
    task, params = decoder.build_decoder(Shape(256, 128, 4, 128, 4), 0)
    documents = [rng.integers(256, size=n).astype(np.int32) for n in rng.integers(8, 65, size=128)]
    made = pack(documents, 128, 8) if packed else pack(documents, 64, 1)
    row = {"tokens": jnp.asarray(made.rows), "counted": jnp.asarray(made.segments > 0, jnp.float32)}
    columns = ("plain", "sketch", "norms")
    if not packed:
        return Run(task, params, row, "128 documents of 8-64 tokens, one a row of 64, decoder 4x128", (), columns)
    row["segments"] = jnp.asarray(made.segments)
    shape = f"the same documents packed in {len(made.ids)} rows of 128"
    places = [(k, number) for k, number in enumerate(made.ids.ravel()) if number >= 0]
    alone = tuple(
        (k, {"tokens": jnp.asarray(documents[number]), "counted": jnp.ones(len(documents[number]))})
        for k, number in places
    )
    return Run(decoder.packed(task, 8), params, row, shape, alone, columns)


def runs(key: Any) -> dict[str, Callable[[], Run]]:
    rng = np.random.default_rng(0)
    large = functools.partial(networks.gpt_loss, heads=12)
    few = ("plain", "sketch", "norms", "covariances")
    return {
        "gpt": lambda: Run(
            Task(networks.gpt_loss), networks.gpt_params(key), tokens(rng, 32, 128), "4x128, T=128, batch 32"
        ),
        "mlp": lambda: Run(
            Task(networks.mlp_loss), networks.mlp_params(key), images(rng, 1024, 784), "784-512-512-10, batch 1024"
        ),
        "resnet": lambda: Run(
            Task(networks.resnet_loss), networks.resnet_params(key), images(rng, 128, 32, 32, 3), "ResNet-20, batch 128"
        ),
        "packed": lambda: short_documents(np.random.default_rng(1), packed=True),
        "padded": lambda: short_documents(np.random.default_rng(1), packed=False),
        "gpt_large": lambda: Run(
            Task(large),
            networks.gpt_params(key, 12, 768, 256, 256),
            tokens(rng, 2, 256),
            "12x768, T=256, batch 2",
            columns=few,
        ),
    }


def main() -> None:
    choices = list(runs(None))
    args = timing.arguments(__doc__ or "", only=choices, peers=True)
    python = peers.find(args.peers) if args.peers else None
    made = runs(jax.random.key(0))
    names = args.only or [name for name in choices if not (args.quick and name == "gpt_large")]
    result: dict[str, Any] = {}
    for name in names:
        run = made[name]()
        result[name] = measure(run, 5 if args.quick or name == "gpt_large" else 15)
        if python and name in peers.NETWORKS:
            result[name]["peers"] = peers.compare(python, name, run, result[name])
    if {"packed", "padded"} <= set(names):
        both = (result[name]["sketch_examples_per_s"] for name in ("packed", "padded"))
        result["packed"]["over_padded"] = round(next(both) / next(both), 2)
    timing.report(result | {"rank": RANK, **timing.machine()}, args.json)


if __name__ == "__main__":
    main()
