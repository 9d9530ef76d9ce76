"""The closed loop: train -> audit -> trace -> mitigate -> verify, on pictures (`vision`) and on text (`text`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from uimjax.config import RunConfig, SuiteConfig, TextConfig
from uimjax.errors import UsageError
from uimjax.interpret import methods
from uimjax.progress import Progress, quiet
from uimjax.references import resolve
from uimjax.workflow import suite, text, vision

__all__ = ["resolve", "run"]


def run(
    config: RunConfig | TextConfig | SuiteConfig,
    folder: Path,
    until: str = "mitigate",
    say: Callable[[str], None] = lambda _: None,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """The story that the config is for; see `vision.run`, `text.run` and `suite.run`."""
    if isinstance(config, SuiteConfig):
        if until != "mitigate":
            raise UsageError(f"the suite runs as a whole, and `{until}` alone was asked; `uimjax run` continues it")
        return suite.run(config, folder, say, progress)
    known = methods.of_index(config.trace.method, retain=True)  # every story holds clean rows out
    config = config.model_copy(update={"trace": config.trace.model_copy(update={"method": known})})
    story = text.run if isinstance(config, TextConfig) else vision.run
    return story(config, folder, until, say, progress)  # type: ignore[arg-type]  # chosen by the config's type
