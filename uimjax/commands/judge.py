"""`check` judges methods by retraining, `doctor` the machine and the reader's own loss."""

import argparse
import json
from pathlib import Path

from uimjax.commands.base import loaded, override


def check(args: argparse.Namespace, rest: list[str]) -> int:
    from uimjax import steps
    from uimjax.config import CheckConfig, read_yaml
    from uimjax.interpret import check
    from uimjax.progress import quiet, shown
    from uimjax.report import judgements

    config = override(CheckConfig, read_yaml(Path(args.target)), rest)
    found = loaded(config.load, "(uimjax.Task, initial, rows, uimjax.Measurement, queries)", 5)
    task, initial, rows, measurement, queries = found
    asked = check.Asked(task, initial, rows, steps.Recipe(**config.train.model_dump()), measurement, queries)
    result = check.check(
        asked,
        config.methods,
        halves=config.halves,
        seeds=tuple(range(config.seeds)),
        protocol=config.protocol,
        removals=config.removals,
        checkpoints=config.checkpoints,
        damping=config.damping,
        batch_size=config.batch_size,
        folder=Path(args.out or Path(args.target).with_suffix(".check")),
        progress=quiet if args.json else shown,
    )
    if args.json:
        print(json.dumps(judgements.document(result), indent=1))
    else:
        judgements.show(result)
    return 0


def doctor(args: argparse.Namespace, _rest: list[str]) -> int:
    from uimjax.doctor import examine, examine_task

    checks, table = examine(), ""
    if args.task:
        mine, table = examine_task(*loaded(args.task, "(uimjax.Task, params, rows)", 3))
        checks += mine
    if args.json:
        print(json.dumps({name: {"ok": ok, "found": found} for name, ok, found in checks}, indent=1))
    else:
        print(f"{table}\n" if table else "", end="")
        for name, ok, found in checks:
            print(f"{'ok  ' if ok else 'FAIL'}  {name}: {found}")
    return 0 if all(ok for _, ok, _ in checks) else 1
