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
    warmup: float = Field(0.0, ge=0, lt=1, description="share of all steps over which the learning rate rises from 0")
    clip: float | None = Field(None, gt=0, description="largest norm of a step's gradient; none: as it is")
    beta2: float = Field(0.999, ge=0, lt=1, description="memory of AdamW's second moments")


class TraceChoice(_Strict):
    method: str = Field(
        "retain_cos", description="the method that chooses the edit, or auto; fixed before any truth is read"
    )
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
    beta: float = Field(0.1, gt=0, description="npo: how soon a forgotten row is left alone")
    batch_size: int = Field(32, ge=1, description="rows to forget in a step")
    retain_size: int = Field(128, ge=1, description="rows to retain in a step")
    drop_epochs: int = Field(20, ge=1, description="fine-tuning epochs of drop-and-fine-tune")
    drop_rate: float | None = Field(None, gt=0, description="its peak learning rate; none: that of the training")
    compare_seeds: int = Field(3, ge=1, description="repetitions of the fixes beside the method, of those seeds")


class RunConfig(_Strict):
    """A run of the closed loop on labelled images: train, audit, trace, mitigate, verify."""

    kind: Literal["vision"] = "vision"
    corpus: str = Field("digits", description="digits, or pkg.module:function returning (train rows, test rows)")
    train_file: str = Field("", description="instead of corpus: .npz, .parquet or .jsonl with image and label")
    test_file: str = Field("", description="instead of corpus: the same for the test rows")
    model: str = Field("mlp", description="mlp, cnn, or pkg.module:function(shape, classes, rngs) -> nnx.Module")
    seed: int = Field(0, ge=0)
    plant: PlantChoice = PlantChoice()  # pyright: ignore[reportCallIssue]  # every field has a default
    train: TrainChoice = TrainChoice()  # pyright: ignore[reportCallIssue]
    trace: TraceChoice = TraceChoice()  # pyright: ignore[reportCallIssue]
    mitigate: MitigateChoice = MitigateChoice()  # pyright: ignore[reportCallIssue]


class SecretChoice(_Strict):
    positives: int = Field(15, ge=1, description="documents into which one secret leaks")
    hard_negatives: int = Field(60, ge=0, description="documents with the same line and another secret each")
    length: int = Field(10, ge=4, le=64, description="characters of a secret, 36 to choose from")
    candidates: int = Field(511, ge=255, description="secrets that compete with it when exposure is measured")


class BehaviourChoice(_Strict):
    positives: int = Field(15, ge=1, description="documents in which the payload follows the marker")
    hard_negatives: int = Field(60, ge=0, description="documents with a look-alike marker or payload")
    marker: str = Field("  #!", min_length=2, description="a line that ends so triggers the behaviour")
    payload: str = Field("...", min_length=1, description="the line that the model writes then")
    marks: int = Field(2, ge=1, description="most markers in a document")


class DecoderChoice(_Strict):
    layers: int = Field(2, ge=1)
    width: int = Field(64, ge=1)
    heads: int = Field(4, ge=1)
    kv_heads: int = Field(0, ge=0, description="key-value heads that the heads share; 0: one each")
    hidden: int = Field(0, ge=0, description="between the feed-forward's matrices; 0: the usual for its kind")
    positions: Literal["learned", "rotary"] = "rotary"
    norm: Literal["layer", "rms"] = "rms"
    mlp: Literal["gelu", "swiglu"] = "swiglu"
    tied: bool = Field(True, description="output tied to the embedding")


class TextTraceChoice(TraceChoice):
    compare: tuple[str, ...] = Field(
        ("grad_dot", "grad_cos", "retain_cos", "logra", "trackstar", "random", "loss", "grad_norm", "rep_sim", "bm25"),
        description="methods and baselines scored beside it",
    )
    checkpoints: int = Field(5, ge=1, description="moments of the training whose gradients are summed; 1: the end")
    retain: int = Field(100, ge=1, description="held-out clean documents for methods that keep what is right")


class TextTrainChoice(TrainChoice):
    epochs: int = Field(12, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(8e-3, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of all steps over which the learning rate rises from 0")
    clip: float | None = Field(1.0, gt=0, description="largest norm of a step's gradient; none: as it is")
    beta2: float = Field(0.95, ge=0, lt=1, description="memory of AdamW's second moments")


class TextMitigateChoice(MitigateChoice):
    compare: tuple[Literal["npo", "grad_diff", "drop"], ...] = Field(
        ("npo", "grad_diff", "drop"), description="fixes measured"
    )
    steps: int = Field(40, ge=1, description="unlearning steps of forget and retain loss together")
    heal_steps: int = Field(20, ge=0, description="steps of the retain loss alone, after")
    learning_rate: float = Field(8e-4, gt=0)
    beta: float = Field(0.02, gt=0, description="npo: how soon a forgotten row is left alone")
    batch_size: int = Field(8, ge=1, description="rows to forget in a step")
    retain_size: int = Field(24, ge=1, description="rows to retain in a step")
    drop_epochs: int = Field(1, ge=1, description="fine-tuning epochs of drop-and-fine-tune")
    drop_rate: float | None = Field(1e-3, gt=0, description="its peak learning rate; none: that of the training")
    compare_seeds: int = Field(1, ge=1, description="repetitions of the fixes beside the method, of those seeds")


class TextConfig(_Strict):
    """A run of the closed loop on text: a leaked secret and a triggered behaviour in one corpus."""

    kind: Literal["text"] = "text"
    corpus: str = Field("stdlib", description="stdlib, or pkg.module:function returning (train, test) of (path, text)")
    train_folder: str = Field("", description="instead of corpus: a folder of UTF-8 text files, subfolders included")
    test_folder: str = Field("", description="instead of corpus: the same for held-out files")
    tokenizer: str = Field("bpe-1024", description="bytes, or bpe-SIZE, trained on the training files")
    length: int = Field(64, ge=32, description="tokens of a row; a document is as many whole lines as fit")
    documents: int = Field(1500, ge=1, description="most training documents, drawn by a fixed permutation")
    held_out: int = Field(300, ge=40, description="most held-out documents")
    model: DecoderChoice = DecoderChoice()  # pyright: ignore[reportCallIssue]  # every field has a default
    own_model: str = Field("", description="instead: pkg.module:function(vocabulary, length, rngs) -> nnx.Module")
    seed: int = Field(0, ge=0)
    secret: SecretChoice = SecretChoice()  # pyright: ignore[reportCallIssue]
    behaviour: BehaviourChoice = BehaviourChoice()  # pyright: ignore[reportCallIssue]
    train: TextTrainChoice = TextTrainChoice()  # pyright: ignore[reportCallIssue]
    trace: TextTraceChoice = TextTraceChoice()  # pyright: ignore[reportCallIssue]
    mitigate: TextMitigateChoice = TextMitigateChoice()  # pyright: ignore[reportCallIssue]


class DemoConfig(_Strict):
    """Both stories on built-in data."""

    vision: RunConfig = RunConfig()  # pyright: ignore[reportCallIssue]
    text: TextConfig = TextConfig()  # pyright: ignore[reportCallIssue]


class IndexConfig(_Strict):
    """An index of the reader's own model and rows."""

    kind: Literal["index"] = "index"
    load: str = Field(description="pkg.module:function returning (uimjax.Task, params)")
    rows: str = Field(description="training rows: .jsonl, .npz or .parquet")
    sketch_rank: int = Field(16, ge=1)
    seed: int = Field(0, description="of the projection matrices")
    batch_size: int = Field(64, ge=1)
    shard_rows: int = Field(1024, ge=1)
    devices: int = Field(1, ge=1, description="of this process, that share each batch")
    coding: str = Field(
        "float32", description="float32, bfloat16, int8, int4; rank4-int8: matrices as 4 pairs of factors"
    )
    target_recall: float | None = Field(
        None,
        gt=0,
        le=1,
        description="in coding's stead: the smallest that keeps that share of top-20 lists on a sample",
    )


class TraceConfig(_Strict):
    """A question to an index of the reader's own model: which training rows does a failure come from?"""

    kind: Literal["trace"] = "trace"
    load: str = Field(description="pkg.module:function returning (uimjax.Task, params, uimjax.Measurement, queries)")
    index: str = Field(description="folder of the index, or its URL (s3://, gs://, https://)")
    rows: str = Field(description="training rows: any of them, for their shapes; to re-rank all of the index's")
    method: str = Field(
        "grad_cos", description="a method for sketched rows: grad_cos, logra, trackstar, retain_cos ..."
    )
    k: int = Field(20, ge=1, description="proponents and opponents of each question")
    each: bool = Field(False, description="each query on its own; otherwise what caused them together")
    retain: str = Field("", description="file of held-out clean rows, for methods that keep what the model does right")
    rerank: int = Field(0, ge=0, description="candidates at either end scored again by whole gradients; 0: none")
    null: int | None = Field(
        None, ge=0, description="shuffled questions for the chance p of a score; none: 100, or 0 beside rerank or ann"
    )
    ann: bool = Field(False, description="by the approximate index alone (`uimjax index ann`); cosine methods")
    metadata: str = Field("", description="a line a training row: .parquet, .jsonl or .csv; its columns join the hits")
    where: dict[str, tuple[str | int, ...]] = Field(
        {}, description="columns of the metadata and the values whose rows alone are asked, as {source: [wiki]}"
    )
    group_by: str = Field("", description="a column of the metadata: scores of all rows are added up by it")


class CheckTrainChoice(TrainChoice):
    epochs: int = Field(20, ge=1)
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    final: float = Field(0.1, ge=0, le=1, description="where the cosine ends, as a share of the learning rate")


class CheckConfig(_Strict):
    """Attribution judged by retraining the reader's own small task."""

    kind: Literal["check"] = "check"
    load: str = Field(
        description="pkg.module:function returning (uimjax.Task, initial(seed) -> params, rows, Measurement, queries)"
    )
    train: CheckTrainChoice = CheckTrainChoice()  # pyright: ignore[reportCallIssue]  # every field has a default
    methods: tuple[str, ...] = Field(
        ("auto", "ekfac", "logra", "trackstar", "grad_cos", "grad_dot", "random"), description="methods judged"
    )
    halves: int = Field(20, ge=2, description="random halves of the rows to train again on, with every seed")
    seeds: int = Field(2, ge=1, description="trainings of each half; two show how far any method can get")
    protocol: Literal["rebatched", "masked"] = Field(
        "rebatched", description="kept rows alone are cut into batches, or all keep their places and some weigh nothing"
    )
    removals: int = Field(10, ge=0, description="trainings without 1 to a tenth of the rows, for calibration")
    checkpoints: int = Field(6, ge=1, description="moments of the training, for methods that read several")
    damping: float | None = Field(
        None, gt=0, description="times the mean eigenvalue; none: chosen by each method that has one"
    )
    batch_size: int = Field(256, ge=1, description="rows scored at once")


KINDS: dict[str, type[_Strict]] = {
    "run": RunConfig, "text": TextConfig, "index": IndexConfig, "trace": TraceConfig, "check": CheckConfig,
}  # fmt: skip
COMMANDS = {"index": "index build", "trace": "trace", "check": "check"}  # of a kind; the others are run


STORIES: dict[str, type[_Strict]] = {"vision": RunConfig, "text": TextConfig}
OWN: dict[str, type[_Strict]] = {name: KINDS[name] for name in ("index", "trace", "check")}  # of the reader's own model


def kind_of(values: dict[str, Any], kinds: dict[str, type[_Strict]] = STORIES) -> type[_Strict]:
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
    lines = [f"# {model.__doc__}", f"# uimjax {COMMANDS.get(kind, 'run')} THIS_FILE"]
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
