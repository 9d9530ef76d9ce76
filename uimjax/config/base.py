"""Reading configs: an unknown key is refused with the nearest, a value of another type by its key."""

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uimjax.errors import ConfigError, MissingFileError

CAP = 1 << 20  # bytes of a config
LOCK = "config.lock.yaml"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainChoice(Strict):
    epochs: int = Field(40, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: float = Field(0.0, ge=0, lt=1, description="share of all steps over which the learning rate rises from 0")
    clip: float | None = Field(None, gt=0, description="largest norm of a step's gradient; none: as it is")
    beta2: float = Field(0.999, ge=0, lt=1, description="memory of AdamW's second moments")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, read safely.

    Raises:
        MissingFileError, ConfigError
    """
    if not path.is_file():
        raise MissingFileError(
            f"{path} is not there (looked in {path.absolute().parent}). `uimjax new run` writes one."
        )
    if path.stat().st_size > CAP:
        raise ConfigError(f"{path} is larger than {CAP >> 20} MiB; that is no config")
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(found, dict | None):
        raise ConfigError(f"{path} holds {type(found).__name__}; a mapping of settings was wanted")
    return found or {}


def parse(kind: type[Strict], values: dict[str, Any], where: str) -> Any:
    """A config from plain values.

    Raises:
        ConfigError: every key that is unknown (with the nearest name), missing or ill-typed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(kind, e) for e in error.errors())) from error


def _explain(kind: type[BaseModel], error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{name}: {error['msg']} (got {error['input']!r})"
    model: Any = kind
    for part in error["loc"][:-1]:
        model = model.model_fields[part].annotation
    known = list(model.model_fields)
    near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown key {name!r}; {hint}"
