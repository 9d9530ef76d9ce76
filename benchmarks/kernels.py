"""The kernels of `uimjax_kernels` against what XLA makes of the same sums, on the shapes that matter.

Claim, on a GPU: each Pallas kernel that is kept beats the best of XLA's forms on most of its shapes; one that does not
is removed, and the figures stay in `results/`. Every answer is checked against the reference first. Rates are of bytes
that must be read (`topk_dot`) or multiplications that must be done, beside the card's own measured copy and matrix
product.

Run: python -m benchmarks.kernels --json [--only topk_dot gram_square]
"""

import functools
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from uimjax_kernels.dispatch import Implementation
from uimjax_kernels.gram_square import api as gram_square
from uimjax_kernels.project import api as project
from uimjax_kernels.topk_dot import api as topk_dot
from uimjax_kernels.topk_dot.select import select

BF16, F32 = jnp.bfloat16, jnp.float32
CALLS, TOGETHER_S = 10, 0.02  # timed together, no longer than that


class Case(NamedTuple):
    """One op on one shape: `made()` gives its inputs; `forms` are XLA's, beside the table's implementations."""

    made: Callable[[], tuple[Any, ...]]
    table: dict[str, Any]
    forms: dict[str, Callable[..., Any]]
    work: float  # bytes to be read, or floating-point operations
    tolerance: float
    static: tuple[Any, ...] = ()


def offered(table: dict[str, Implementation]) -> list[str]:
    """What can run here at speed; Pallas kernels of another chip would be interpreted."""
    return [name for name, its in table.items() if its.backend in (None, jax.default_backend()) and not its.named]


def halves(x: Any) -> tuple[Any, Any]:
    high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return high.astype(BF16), (x - high).astype(BF16)


def topk_case(rows: int, width: int, queries: int, stored: str) -> Case:
    dtype, blocks = {"bfloat16": (BF16, 0), "int8": (jnp.int8, 0), "int8, blocks of 128": (jnp.int8, 128)}[stored]

    def made() -> tuple[Any, ...]:
        keys = jax.random.split(jax.random.key(0), 4)
        if dtype == BF16:
            held = jax.random.normal(keys[0], (rows, width), BF16)
        else:
            held = jax.random.randint(keys[0], (rows, width), -127, 128, jnp.int8)
        asked, scale = jax.random.normal(keys[1], (queries, width)), jax.random.uniform(keys[2], (rows,), F32, 0.5, 2)
        return asked, held, scale, jax.random.uniform(keys[3], (rows, width // blocks), F32, 0.5, 2) if blocks else None

    def bf16(asked, held, scale, blocks, k):
        both = jnp.concatenate(halves(asked))
        if blocks is None:
            found = jnp.einsum("qd,nd->qn", both, held.astype(BF16), preferred_element_type=F32)
        else:
            cut = held.astype(BF16).reshape(rows, blocks.shape[1], -1)
            each = both.reshape(2 * queries, blocks.shape[1], -1)
            found = jnp.einsum("qcd,ncd->cqn", each, cut, preferred_element_type=F32)
            found = jnp.einsum("cqn,nc->qn", found, blocks)
        found = found[:queries] + found[queries:]
        return select(found * scale[None], k)

    def table(name):
        return lambda asked, held, scale, blocks, k: topk_dot.topk_dot(
            asked, held, scale, k, blocks, implementation=name
        )

    its = {name: table(name) for name in offered(topk_dot._TABLE)}
    return Case(made, its, {"xla_bf16": bf16}, float(rows * width * np.dtype(dtype).itemsize), 1e-4, (100,))


def gram_case(size: int, length: int, rows: int, cols: int, dtype: Any) -> Case:
    def made() -> tuple[Any, ...]:
        keys = jax.random.split(jax.random.key(0))
        return jax.random.normal(keys[0], (size, length, rows), dtype), jax.random.normal(
            keys[1], (size, length, cols), dtype
        )

    def whole(a, g):
        return jnp.square(jnp.einsum("bti,bto->bio", a, g, preferred_element_type=F32)).sum(0)

    its = {
        name: functools.partial(gram_square.gram_square, implementation=name) for name in offered(gram_square._TABLE)
    }
    return Case(made, its, {"xla_whole": whole}, 2.0 * size * length * rows * cols, 2e-2)


def project_case(size: int, numbers: int, width: int) -> Case:
    def made() -> tuple[Any, ...]:
        return jax.random.normal(jax.random.key(0), (size, numbers)), jnp.array([3, 5], jnp.uint32)

    def threefry(x, _seed, width):  # of another matrix: signs from JAX's own generator, a block at a time
        block = 8192

        def step(total, at):
            part, k = at
            bits = jax.random.bits(jax.random.fold_in(jax.random.key(0), k), (block, width // 32), jnp.uint32)
            signs = (2 * ((bits[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1).astype(BF16) - 1).reshape(
                block, -1
            )
            return total + sum(jnp.dot(p, signs, preferred_element_type=F32) for p in halves(part)), None

        parts = jnp.moveaxis(x.reshape(size, -1, block), 1, 0)
        zeros = jnp.zeros((size, width), F32)
        return jax.lax.scan(step, zeros, (parts, jnp.arange(len(parts))))[0] / np.sqrt(width)

    def table(name):
        return lambda x, seed, width: project.project(x, seed, width, implementation=name)

    its = {name: table(name) for name in offered(project._TABLE)}
    return Case(made, its, {"xla_threefry": threefry}, 2.0 * size * numbers * width, 1e-3, (width,))


def cases(quick: bool) -> dict[str, dict[str, Case]]:
    kinds = ("bfloat16", "int8", "int8, blocks of 128")
    if quick:
        return {
            "topk_dot": {kind: topk_case(2000, 256, 8, kind) for kind in kinds},
            "gram_square": {"small": gram_case(4, 16, 32, 48, F32)},
            "project": {"small": project_case(16, 16384, 128)},
        }
    return {
        "topk_dot": {f"200,000 x 4,096, {kind}": topk_case(200_000, 4096, 64, kind) for kind in kinds},
        "gram_square": {
            "B=32 T=512 768x768 bf16": gram_case(32, 512, 768, 768, BF16),
            "B=32 T=512 768x768 f32": gram_case(32, 512, 768, 768, F32),
            "B=32 T=512 768x3072 bf16": gram_case(32, 512, 768, 3072, BF16),
            "B=64 T=64 768x3072 bf16": gram_case(64, 64, 768, 3072, BF16),
            "B=8 T=1024 2048x8192 bf16": gram_case(8, 1024, 2048, 8192, BF16),
        },
        "project": {
            "B=64 D=4M width 2048": project_case(64, 1 << 22, 2048),
            "B=16 D=4M width 8192": project_case(16, 1 << 22, 8192),
        },
    }


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Milliseconds, rates and the ratio of each to the fastest of XLA's forms; what fails to run is named."""
    inputs, result, calls, times = case.made(), {}, {}, {}
    want = flat(jax.jit(lambda *x: case.table["reference"](*x, *case.static))(*inputs))
    for name, fun in {**case.table, **case.forms}.items():
        try:
            program, seconds = timing.compiled(lambda *x, fun=fun: fun(*x, *case.static), *inputs)
            off = np.linalg.norm(flat(program(*inputs)) - want) / np.linalg.norm(want)
        except Exception as error:  # a card without room or a lowering that refuses is a result, not an accident
            result[name] = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
            continue
        if name != "xla_threefry" and not off < case.tolerance:
            result[name] = {"wrong": f"off by {off:.1e}, {case.tolerance} was wanted"}
            continue
        result[name] = {"compile_s": seconds, "off": float(f"{off:.1e}")}
        alone = functools.partial(program, *inputs)
        times[name] = max(1, min(CALLS, int(TOGETHER_S / timing.interleaved({name: alone}, 1)[name])))
        calls[name] = functools.partial(often, alone, times[name])
    taken = {name: seconds / times[name] for name, seconds in timing.interleaved(calls, repeats).items()}
    best = min(seconds for name, seconds in taken.items() if not name.startswith("pallas"))
    for name, seconds in taken.items():
        rates = {
            "ms": round(1e3 * seconds, 3),
            "rate": f"{case.work / seconds / 1e12:.2f}T",
            "over_xla": round(best / seconds, 2),
        }
        result[name] |= rates
    return result


def often(call: Callable[[], Any], times: int) -> Any:
    """Calls that follow each other without waiting, so that starting one does not count."""
    return [call() for _ in range(times)][-1]


def flat(found: Any) -> np.ndarray:
    """Values of all leaves that are numbers with a fraction (which of two near-equal rows stands first may differ)."""
    leaves = [
        np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    return np.concatenate(leaves)


def ceilings(repeats: int, quick: bool) -> dict[str, str]:
    """Of this machine: bytes read and written by a copy; bfloat16 operations of a square product."""
    side = 256 if quick else 8192
    x = jax.random.normal(jax.random.key(0), (side, side), BF16)
    big = jnp.zeros((side * side * (1 if quick else 8),), F32)
    copy, product = jax.jit(lambda x: x + 1), jax.jit(lambda x: x @ x)
    taken = timing.interleaved({"copy": lambda: copy(big), "product": lambda: product(x)}, repeats)
    rates = {"copy": 2.0 * big.nbytes / taken["copy"], "product": 2.0 * side**3 / taken["product"]}
    return {name: f"{rate / 1e12:.2f}T" for name, rate in rates.items()}


def main() -> None:
    args = timing.arguments(__doc__ or "", only=list(cases(True)))
    repeats = 3 if args.quick else 7
    result: dict[str, Any] = {"ceilings": ceilings(repeats, args.quick)}
    for op, each in cases(args.quick).items():
        if args.only and op not in args.only:
            continue
        result[op] = {name: measure(case, repeats) for name, case in each.items()}
    timing.report(result | timing.machine(), args.json)
    if '"wrong"' in json.dumps(result):
        sys.exit("a kernel gave a wrong answer; see `wrong` above")


if __name__ == "__main__":
    main()
