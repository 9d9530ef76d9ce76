"""Which config is of which kind, and the commented file of each."""

import difflib
from typing import Any

import yaml
from pydantic import BaseModel

from uimjax.config.base import Strict
from uimjax.config.mends import MendConfig
from uimjax.config.own import (
    AuditConfig,
    CensusConfig,
    CheckConfig,
    ClassifiedConfig,
    DecisionsConfig,
    ExaminedConfig,
    FailuresConfig,
    IndexConfig,
    TraceConfig,
)
from uimjax.config.stories import RunConfig, TextConfig
from uimjax.config.studies import NoiseConfig, SweepConfig
from uimjax.config.suites import SuiteConfig
from uimjax.config.tunings import TuneConfig
from uimjax.errors import ConfigError

KINDS: dict[str, type[Strict]] = {
    "run": RunConfig, "text": TextConfig, "index": IndexConfig, "trace": TraceConfig, "check": CheckConfig,
    "failures": FailuresConfig, "classified": ClassifiedConfig, "sweep": SweepConfig, "noise": NoiseConfig,
    "suite": SuiteConfig, "mend": MendConfig, "tune": TuneConfig, "audit": AuditConfig, "decisions": DecisionsConfig,
    "examined": ExaminedConfig, "census": CensusConfig,
}  # fmt: skip
COMMANDS = {
    "index": "index build",
    "trace": "trace",
    "check": "check",
    "failures": "trace",
    "classified": "trace",
    "sweep": "scaling sweep",
    "noise": "understand",
    "mend": "mitigate",
    "tune": "mitigate",
    "audit": "audit",
    "decisions": "audit",
    "examined": "audit",
    "census": "audit",
}  # of a kind; the others are run


STORIES: dict[str, type[Strict]] = {"vision": RunConfig, "text": TextConfig, "suite": SuiteConfig}
OWN: dict[str, type[Strict]] = {
    name: KINDS[name]
    for name in COMMANDS
    if name not in ("sweep", "noise", "mend", "tune", "audit", "decisions", "examined", "census")
}  # of the reader's own model


def kind_of(values: dict[str, Any], kinds: dict[str, type[Strict]] = STORIES) -> type[Strict]:
    """The config that a mapping is for: its key `kind`, pictures where it has none.

    Raises:
        ConfigError: no mapping, or a kind that is none of those wanted.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"the config holds {type(values).__name__}; a mapping of settings was wanted")
    if (kind := values.get("kind", "vision")) not in kinds:
        near = difflib.get_close_matches(str(kind), kinds, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(kinds)}"
        raise ConfigError(f"kind: {kind!r} is not one that this command takes; {hint}")
    return kinds[kind]


def commented(kind: str) -> str:
    """A YAML file of every default, commented."""
    model = KINDS[kind]
    what = " ".join((model.__doc__ or "").split())
    lines = [f"# {what}", f"# uimjax {COMMANDS.get(kind, 'run')} THIS_FILE"]
    return "\n".join([*lines, *_fields(model, "")]) + "\n"


def _fields(model: type[BaseModel], indent: str, values: BaseModel | None = None) -> list[str]:
    """One line a field; `values` where the defaults are not the class's own."""
    lines = []
    for name, field in model.model_fields.items():
        note = f"  # {field.description}" if field.description else ""
        default = field.default if values is None else getattr(values, name)
        if isinstance(default, BaseModel):
            lines += [f"{indent}{name}:{note}", *_fields(type(default), indent + "  ", default)]
        elif values is None and field.is_required():
            lines.append(f"{indent}{name}: CHANGE_ME{note}")
        else:
            value = list(default) if isinstance(default, tuple) else default
            lines.append(
                f"{indent}{name}: {yaml.safe_dump(value, default_flow_style=True, width=10**6).splitlines()[0]}{note}"
            )
    return lines
