"""A Hugging Face folder on disk: its config, its tensors by name, and what is wrong with it, before a byte is read."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from uimjax.errors import CorruptError, MissingFileError, UnsupportedModelError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")


class Tensor(NamedTuple):
    """Where a tensor is, under which name, and what its header says it is."""

    file: Path
    stored: str
    shape: tuple[int, ...]
    dtype: str


def read_config(folder: Path) -> dict[str, Any]:
    """Raises MissingFileError, CorruptError, or UnsupportedModelError for a quantised model."""
    if not folder.is_dir():
        near = (
            f" {folder.parent} holds {', '.join(sorted(_names(folder.parent))[:8])}." if folder.parent.is_dir() else ""
        )
        raise MissingFileError(f"{folder} is not a folder; a Hugging Face checkpoint folder was wanted.{near}")
    path = folder / CONFIG
    if not path.is_file():
        held = ", ".join(sorted(_names(folder))[:8]) or "nothing"
        raise MissingFileError(
            f"{folder} has no {CONFIG} (it holds {held}). Save the model with `save_pretrained`, or name the folder of "
            "the snapshot itself: for the hub's cache, the one under snapshots/."
        )
    found = _json(path)
    if not isinstance(found.get("model_type"), str):
        raise UnsupportedModelError(f"{path} names no model_type, so what it is the config of is not known")
    if isinstance(found.get("architectures"), str):
        found["architectures"] = [found["architectures"]]
    if found.get("quantization_config"):
        raise UnsupportedModelError(
            f"{path}: the weights are quantised, and a gradient is of the numbers themselves. Load the model that was "
            "quantised, or save it dequantised."
        )
    return found


def has_weights(folder: Path) -> bool:
    """Nothing of what it has is looked at."""
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def tensors(folder: Path) -> dict[str, Tensor]:
    """By name, from the headers of one file or of all that the index names.

    Raises:
        MissingFileError: no safetensors, or a file that the index names. CorruptError: a header is damaged, a file is
        shorter than it says, or two files hold the same tensor.
    """
    if (folder / INDEX).is_file():
        where = _json(folder / INDEX).get("weight_map")
        if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
            raise CorruptError(f"{folder / INDEX} has no weight_map of files; download it again")
        files = sorted(set(where.values()))
        if any(Path(name).name != name for name in files):
            raise CorruptError(f"{folder / INDEX} names files outside its folder")
        lacking = [name for name in files if not (folder / name).is_file()]
        if lacking:
            raise MissingFileError(
                f"{folder} lacks {len(lacking)} of the {len(files)} files that its index names: {', '.join(lacking)}. "
                "Download them into it, then try again."
            )
        found = of_files(folder, files)
        if set(found) != set(where):
            name = sorted(set(found) ^ set(where))[0]
            raise CorruptError(f"{folder / INDEX} and its files disagree about {name}; download them again")
        return found
    if (folder / WEIGHTS).is_file():
        return of_files(folder, [WEIGHTS])
    _refuse_others(folder)
    raise MissingFileError(f"{folder} holds neither {WEIGHTS} nor {INDEX}. Save the model with `save_pretrained`.")


def _refuse_others(folder: Path) -> None:
    pickled = [path.name for pattern in PICKLED for path in folder.glob(pattern)]
    if pickled:
        raise UnsupportedModelError(
            f"{folder} holds {', '.join(sorted(pickled))} and no safetensors; such files can run code when they are "
            "read, so they are never opened here. Where you trust them, convert them once: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR) of transformers writes safetensors."
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise MissingFileError(
            f"{folder} holds {', '.join(others)} but no {INDEX} to say which belong together. Download the index, or "
            f"name a single file {WEIGHTS}."
        )


def of_files(folder: Path, files: list[str]) -> dict[str, Tensor]:
    """From the headers of these files. Raises CorruptError."""
    found: dict[str, Tensor] = {}
    for name in files:
        try:
            with safe_open(folder / name, framework="numpy") as held:
                for key in held.keys():  # noqa: SIM118  # no dictionary
                    if key in found:
                        raise CorruptError(f"{folder / name} and {found[key].file.name} both hold {key}")
                    its = held.get_slice(key)
                    found[key] = Tensor(folder / name, key, tuple(its.get_shape()), str(its.get_dtype()))
        except SafetensorError as error:
            raise CorruptError(f"{folder / name} is damaged or cut short ({error}). Download it again.") from error
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise CorruptError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CorruptError(f"{path} holds a {type(found).__name__}; an object was wanted")
    return found


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]
