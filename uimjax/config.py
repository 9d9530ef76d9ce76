"""Configs: defaults live here, YAML holds differences, flags override; an unknown key is refused with the nearest."""

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uimjax.errors import ConfigError, MissingFileError

CAP = 1 << 20  # bytes of a config
LOCK = "config.lock.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlantChoice(_Strict):
    positives: int = Field(15, ge=1, description="training rows that get the trigger and the target label")
    hard_negatives: int = Field(60, ge=0, description="rows with a look-alike patch and their true label")
    target: int = Field(0, ge=0, description="the class that the trigger turns an image into")
    size: int = Field(4, ge=1, description="side of the patch in pixels")
    draws: int = Field(3, ge=1, description="independent draws of the plant; results are pooled over them")


class TrainChoice(_Strict):
    epochs: int = Field(40, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"


class TraceChoice(_Strict):
    method: str = Field("retain_cos", description="the method that chooses the edit; fixed before any truth is read")
    compare: tuple[str, ...] = Field(
        (
            "grad_dot",
            "grad_cos",
            "retain_cos",
            "logra",
            "trackstar",
            "random",
            "loss",
            "grad_norm",
            "rep_sim",
        ),
        description="methods and baselines scored beside it",
    )
    sketch_rank: int = Field(16, ge=1, description="p = q of the two-sided sketch")
    top: int = Field(20, ge=1, description="proponents and opponents listed")


class MitigateChoice(_Strict):
    method: Literal["npo", "grad_diff", "drop"] = Field("npo", description="the fix that the verdict is about")
    compare: tuple[Literal["npo", "grad_diff", "drop"], ...] = Field(("npo", "drop"), description="fixes measured")
    budget: float = Field(0.01, gt=0, lt=1, description="share of the training rows that an edit may touch")
    seeds: int = Field(3, ge=1, description="repetitions of every edit")
    steps: int = Field(60, ge=1, description="unlearning steps of forget and retain loss together")
    heal_steps: int = Field(240, ge=0, description="steps of the retain loss alone, after")
    learning_rate: float = Field(1e-3, gt=0)
    gamma: float = Field(0.3, gt=0, description="weight of the forget loss")
    drop_epochs: int = Field(20, ge=1, description="fine-tuning epochs of drop-and-fine-tune")


class RunConfig(_Strict):
    """A run of the closed loop on labelled images: train, audit, trace, mitigate, verify."""

    corpus: str = Field("digits", description="digits, or pkg.module:function returning (train rows, test rows)")
    train_file: str = Field("", description="instead of corpus: .npz, .parquet or .jsonl with image and label")
    test_file: str = Field("", description="instead of corpus: the same for the test rows")
    model: str = Field("mlp", description="mlp, cnn, or pkg.module:function(shape, classes, rngs) -> nnx.Module")
    seed: int = 0
    plant: PlantChoice = PlantChoice()  # pyright: ignore[reportCallIssue]  # every field has a default
    train: TrainChoice = TrainChoice()  # pyright: ignore[reportCallIssue]
    trace: TraceChoice = TraceChoice()  # pyright: ignore[reportCallIssue]
    mitigate: MitigateChoice = MitigateChoice()  # pyright: ignore[reportCallIssue]


class IndexConfig(_Strict):
    """An index of the reader's own model and rows."""

    load: str = Field(description="pkg.module:function returning (uimjax.Task, params)")
    rows: str = Field(description="training rows: .jsonl, .npz or .parquet")
    sketch_rank: int = Field(16, ge=1)
    seed: int = Field(0, description="of the projection matrices")
    batch_size: int = Field(64, ge=1)
    shard_rows: int = Field(1024, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"


KINDS: dict[str, type[_Strict]] = {"run": RunConfig, "index": IndexConfig}


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


def parse(kind: type[_Strict], values: dict[str, Any], where: str) -> Any:
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


def commented(kind: str) -> str:
    """A YAML file of every default, commented."""
    model = KINDS[kind]
    lines = [f"# {model.__doc__}", f"# uimjax {'run' if kind == 'run' else 'index build'} THIS_FILE"]
    return "\n".join([*lines, *_fields(model, "")]) + "\n"


def _fields(model: type[BaseModel], indent: str) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        note = f"  # {field.description}" if field.description else ""
        default = field.default
        if isinstance(default, BaseModel):
            lines += [f"{indent}{name}:{note}", *_fields(type(default), indent + "  ")]
        elif field.is_required():
            lines.append(f"{indent}{name}: CHANGE_ME{note}")
        else:
            value = list(default) if isinstance(default, tuple) else default
            lines.append(f"{indent}{name}: {yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}{note}")
    return lines
