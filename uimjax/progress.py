"""Progress with rate and time left, on stderr; silent when piped. The engine takes it as an argument."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

Progress = Callable[..., Iterable[Any]]  # (items, what, unit=..., skip=...) -> items


def quiet(items: Iterable[Any], _what: str, unit: str = "", skip: int = 0) -> Iterable[Any]:
    """No display."""
    del unit, skip
    return items


def shown(items: Sequence[Any], what: str, unit: str = "", skip: int = 0) -> Iterator[Any]:
    """A bar on a terminal's stderr; `skip` items count as done before the clock starts."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]} {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        shown_task = bar.add_task(what, total=len(items), completed=skip, unit=unit, rate="")
        for done, item in enumerate(items, start=1):
            yield item
            if done > skip:
                speed = bar.tasks[0].speed
                bar.update(shown_task, completed=done, rate=f"({speed:.3g}/s)" if speed else "")
