"""Predicted against retrained changes of f when rows are removed: `- sum of their scores / n`, against training again.

Claims: on a convex model (softmax regression with weight decay, trained to its optimum) the exact Hessian's scores
have a slope of 1 within 0.1 for removals of at most 1% of the rows. For the MLP of `lds_sets.fashion`, trained as
people train, the slopes are reported. 30 removals, of one row to a tenth of them, drawn blindly; masked batches, so
nothing differs but the rows.

    UIMJAX_DATA=... python -m benchmarks.calibration --json [--quick]
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import lds_sets
from benchmarks.lds_sets import Judged
from benchmarks.timing import arguments, machine, report
from uimjax import rows as row
from uimjax.curvature import Operator
from uimjax.interpret import check, methods
from uimjax.interpret.base import Method
from uimjax.interpret.counterfactual import Effects, effects
from uimjax.interpret.trajectory import record
from uimjax.steps import Recipe
from uimjax.task import Measurement, Task

REMOVALS, SMALL = 30, 0.01
DECAY, SIDE = 1e-2, 7  # of the convex model, on images of 7 x 7
EXACT = Method("exact", curvature=Operator("dense", "hessian", damping=1e-5), normalize="none")


def convex(quick: bool) -> Judged:
    """Softmax regression on pooled images: 500 parameters, and a minimum that training reaches."""
    made = lds_sets.fashion(quick, 600 if quick else 3000)
    (x, y), (asked, label) = made.data, made.queries

    def pooled(x: np.ndarray) -> np.ndarray:
        small = x.reshape(-1, SIDE, 28 // SIDE, SIDE, 28 // SIDE).mean((2, 4)).reshape(len(x), -1)
        return np.pad(small, [(0, 0), (0, 1)], constant_values=1).astype(np.float32)

    def plain(params: Any, example: Any) -> Any:
        return -jax.nn.log_softmax(example[0] @ params["w"])[example[1]]

    def loss(params: Any, example: Any) -> Any:
        return plain(params, example) + DECAY / 2 * jnp.sum(params["w"] ** 2)

    count = len(x)
    recipe = Recipe(500, count, 0.3, "sgd", weight_decay=0.0, schedule="constant")
    return Judged(
        Task(loss), lambda _: {"w": jnp.zeros((SIDE**2 + 1, 10))}, (pooled(x), y), (pooled(asked), label),
        Measurement("nll", plain), recipe, 0,
    )  # fmt: skip


def calibrated(made: Judged, chosen: dict[str, str | Method], seeds: tuple[int, ...]) -> dict[str, Any]:
    start, count = time.perf_counter(), row.count(made.data)
    sets = check.removed(count, REMOVALS)
    truth = effects(*made[:2], made.data, made.recipe, sets, made.measurement, made.queries, seeds=seeds)
    run = record(made.task, made.initial(0), made.data, made.recipe, 6, seed=0)
    few = [k for k, ids in enumerate(sets) if len(ids) <= SMALL * count]
    result: dict[str, Any] = {"removals": len(sets), "small": len(few), "retraining_s": 0.0}
    result["retraining_s"] = round(time.perf_counter() - start, 1)
    for name, method in chosen.items():
        found = methods.score(made.task, run, made.data, made.measurement, made.queries, method, each=True)
        result[name] = {
            "all": line(found, sets, truth),
            "small": line(found, [sets[k] for k in few], Effects(truth.before, truth.after[few])),
        }
    return result


def line(found: Any, sets: list[np.ndarray], truth: Effects) -> dict[str, float]:
    its = check.calibrated(found, sets, truth)
    return {name: round(getattr(its, name), 3) for name in ("slope", "low", "high", "correlation")}


def main() -> None:
    args = arguments(__doc__ or "")
    result: dict[str, Any] = {"machine": machine()}
    result["convex"] = calibrated(convex(args.quick), {"exact": EXACT}, (0,))
    slope = result["convex"]["exact"]["small"]["slope"]
    result["mlp"] = calibrated(lds_sets.fashion(args.quick), {"ekfac": "ekfac", "source": "source"}, (0, 1))
    result["convex_within_a_tenth"] = bool(abs(slope - 1) <= 0.1)
    report(result, args.json)


if __name__ == "__main__":
    main()
