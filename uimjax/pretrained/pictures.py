"""Pictures as a checkpoint's preprocessor_config.json wants them: resized and cut to bytes; scaled inside the model."""

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from uimjax.errors import CorruptError, MissingFileError, UnsupportedModelError, UsageError
from uimjax.task import Task

FILE = "preprocessor_config.json"
KNOWN = ("ViT", "ConvNext", "Bit", "DeiT")  # processors that say what they do by the fields read here
WHOLE = 384  # from this side on ConvNext resizes to a square and cuts nothing


@dataclass(frozen=True)
class Pictures:
    """`side` of squares (0: pictures stay as they are); `edge`: what the shorter edge is resized to before the middle
    is cut out (0: the whole is resized); pixels `x` are `(scale x - mean) / std`."""

    channels: int
    side: int = 0
    edge: int = 0
    resample: int = 2
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def read(self, value: Any) -> np.ndarray:
        """A file, or its bytes, to `[H, W, C] uint8`.

        Raises:
            ValueError: no picture. UsageError: Pillow is not there.
        """
        image: Any = _pillow()
        try:
            with image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as held:
                found = held.convert("L" if self.channels == 1 else "RGB")
        except (OSError, SyntaxError, image.DecompressionBombError) as error:
            raise ValueError(f"no picture ({error})") from error
        if self.edge:
            short = min(found.size)
            found = found.resize(tuple(int(self.edge * x / short) for x in found.size), self.resample)
            left, top = ((x - self.side) // 2 for x in found.size)
            found = found.crop((left, top, left + self.side, top + self.side))
        elif self.side and found.size != (self.side, self.side):
            found = found.resize((self.side, self.side), self.resample)
        return np.asarray(found, np.uint8).reshape(found.size[1], found.size[0], self.channels)

    def scaled(self, task: Task) -> Task:
        """A task of `"image"` in floats, for one in bytes."""
        mean, std = (np.asarray(x, np.float32) for x in (self.mean, self.std))

        def on(fun: Any) -> Any:
            def call(params: Any, example: Any) -> Any:
                pixels = jnp.asarray(example["image"]).astype(jnp.float32) * self.scale
                return fun(params, {**example, "image": (pixels - mean[None, None]) / std[None, None]})

            return None if fun is None else call

        return dataclasses.replace(
            task, loss=on(task.loss), outputs=on(task.outputs), features=on(task.features)
        )  # fmt: skip


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("pictures are read by Pillow: pip install 'uimjax[images]'") from error
    return Image


def read_pictures(folder: Path, side: int, channels: int) -> Pictures:
    """Of a checkpoint folder; `side`: of the squares that the model takes, 0 for any.

    Raises:
        MissingFileError: the file is not there. CorruptError: it cannot be read. UnsupportedModelError: it asks for
        more than resizing, cutting out the middle, rescaling and normalising, or for another side than the model's.
    """
    path = folder / FILE
    if not path.is_file():
        raise MissingFileError(
            f"{path} is not there, and without it nobody knows how pixels were scaled. Copy it from the model's page, "
            f'or write it: {{"size": {side or 224}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}}'
        )
    try:
        values = json.loads(path.read_text())
        kind = values.get("image_processor_type") or values.get("feature_extractor_type") or KNOWN[0]
    except (ValueError, AttributeError) as error:
        raise CorruptError(f"{path} cannot be read as JSON ({error}). Download it again.") from error
    if not str(kind).startswith(KNOWN):
        raise UnsupportedModelError(f"{path}: {kind} is not built here; {', '.join(KNOWN)} are")
    try:
        square, edge = _size(values, str(kind))
        made = Pictures(
            channels, square, edge, int(values.get("resample", 2)),
            float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0,
            **_normal(values, channels),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"{path} is not understood: {type(error).__name__}: {error}") from error
    if side and made.side != side:
        raise UnsupportedModelError(f"{path} makes pictures of {made.side} and the model takes {side}")
    return made


def _size(values: Mapping[str, Any], kind: str) -> tuple[int, int]:
    """(the side of the squares, what the shorter edge is resized to before; 0: the whole is resized)."""
    size, cut = values.get("size", 224), bool(values.get("do_center_crop")) and not kind.startswith("ConvNext")
    size = {"height": size, "width": size} if isinstance(size, int) else size
    if not values.get("do_resize", True):
        if cut:
            raise ValueError("do_center_crop without do_resize")
        return 0, 0
    if "shortest_edge" in size:
        edge = int(size["shortest_edge"])
        if kind.startswith("ConvNext"):
            return (edge, 0) if edge >= WHOLE else (edge, int(edge / float(values.get("crop_pct", 224 / 256))))
        if not cut:
            raise ValueError("pictures of any width (shortest_edge without do_center_crop)")
        return _square(values["crop_size"]), edge
    whole = _square(size)
    if cut and _square(values["crop_size"]) != whole:
        raise ValueError("squares that are cut again (do_center_crop after a size of height and width)")
    return whole, 0


def _square(size: Any) -> int:
    if isinstance(size, int):
        return size
    if size["height"] != size["width"]:
        raise ValueError(f"pictures of {size['height']} x {size['width']}; squares were wanted")
    return int(size["height"])


def _normal(values: Mapping[str, Any], channels: int) -> dict[str, tuple[float, ...]]:
    if not values.get("do_normalize", True):
        return {}
    mean, std = (values.get(name, [0.5] * channels) for name in ("image_mean", "image_std"))
    if len(mean) not in (1, channels) or len(std) not in (1, channels) or min(std) <= 0:
        raise ValueError(f"image_mean {mean} and image_std {std} for {channels} channels")
    return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
