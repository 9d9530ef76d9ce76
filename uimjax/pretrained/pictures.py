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
SHORTER = ("ConvNext", "Bit")  # that mean the shorter edge where the size is one number
WHOLE = 384  # from this side on ConvNext resizes to a square and cuts nothing


@dataclass(frozen=True)
class Pictures:
    """`side` of squares (0: pictures stay as they are); `edge`: what the shorter edge is resized to before the middle
    is cut out (0: the whole is resized), or with `squeezed` both edges; pixels `x` are `(scale x - mean) / std`."""

    channels: int
    side: int = 0
    edge: int = 0
    squeezed: bool = False
    resample: int = 2
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def read(self, value: Any) -> np.ndarray:
        """A file, or its bytes, to `[H, W, C] uint8`.

        Raises:
            ValueError: no picture. UsageError: Pillow is not there.
        """
        image, turned = _pillow()
        try:
            with image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as held:
                if held.mode.startswith(("I", "F")):
                    raise ValueError(f"pixels of mode {held.mode}, not of 8 bits; convert it first")
                found = turned(held).convert("L" if self.channels == 1 else "RGB")
        except (OSError, SyntaxError, image.DecompressionBombError) as error:
            raise ValueError(f"no picture ({error})") from error
        if self.edge:
            short = min(found.size)
            size = [self.edge if self.squeezed else int(self.edge * x / short) for x in found.size]
            found = found.resize(tuple(size), self.resample)
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


def _pillow() -> tuple[Any, Any]:
    """(its module of images, what turns a picture as its camera was held)."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UsageError("pictures are read by Pillow: pip install 'uimjax[images]'") from error
    return Image, ImageOps.exif_transpose


def read_pictures(folder: Path, side: int, channels: int, kind: str = KNOWN[0]) -> Pictures:
    """Of a checkpoint folder; `side`: of the squares that the model takes, 0 for any; `kind`: the processor that a file
    is for which does not say so. Each processor has defaults of its own; a field that matters and is not there is
    refused.

    Raises:
        MissingFileError: the file is not there. CorruptError: it cannot be read. UnsupportedModelError: it asks for
        more than resizing, cutting out the middle, rescaling and normalising, or for another side than the model's.
    """
    path = folder / FILE
    if not path.is_file():
        raise MissingFileError(
            f"{path} is not there, and without it nobody knows how pixels were scaled. Copy it from the model's page, "
            f'or write down what it was trained with: {{"size": {side or 224}, "resample": 2, "image_mean": [...], '
            '"image_std": [...]}'
        )
    try:
        values = json.loads(path.read_text())
        kind = values.get("image_processor_type") or values.get("feature_extractor_type") or kind
    except (ValueError, AttributeError) as error:
        raise CorruptError(f"{path} cannot be read as JSON ({error}). Download it again.") from error
    if not str(kind).startswith(KNOWN):
        raise UnsupportedModelError(f"{path}: {kind} is not built here; {', '.join(KNOWN)} are")
    try:
        resized = bool(values.get("do_resize", True))
        made = Pictures(
            channels, *_size(values, str(kind)), int(values["resample"]) if resized else 2,
            float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 1.0,
            **_normal(values, channels),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"{path} is not understood: {type(error).__name__}: {error}") from error
    if side and made.side != side:
        raise UnsupportedModelError(f"{path} makes pictures of {made.side} and the model takes {side}")
    return made


def _size(values: Mapping[str, Any], kind: str) -> tuple[int, int, bool]:
    """(`side`, `edge`, `squeezed`) as `Pictures` has them."""
    cut = not kind.startswith("ConvNext") and bool(values.get("do_center_crop", not kind.startswith("ViT")))
    if not values.get("do_resize", True):
        if cut:
            raise ValueError("do_center_crop without do_resize")
        return 0, 0, False
    size = values["size"]
    if isinstance(size, int):
        size = {"shortest_edge": size} if kind.startswith(SHORTER) else {"height": size, "width": size}
    if "shortest_edge" in size:
        edge = int(size["shortest_edge"])
        if kind.startswith("ConvNext"):
            return edge, 0 if edge >= WHOLE else int(edge / float(values["crop_pct"])), False
        if not cut:
            raise ValueError("pictures of any width (shortest_edge without do_center_crop)")
        return _square(values["crop_size"]), edge, False
    whole = _square(size)
    if cut and _square(values["crop_size"]) != whole:
        return _square(values["crop_size"]), whole, True
    return whole, 0, False


def _square(size: Any) -> int:
    if isinstance(size, int):
        return size
    if size["height"] != size["width"]:
        raise ValueError(f"pictures of {size['height']} x {size['width']}; squares were wanted")
    return int(size["height"])


def _normal(values: Mapping[str, Any], channels: int) -> dict[str, tuple[float, ...]]:
    if not values.get("do_normalize", True):
        return {}
    mean, std = values["image_mean"], values["image_std"]
    if len(mean) not in (1, channels) or len(std) not in (1, channels) or min(std) <= 0:
        raise ValueError(f"image_mean {mean} and image_std {std} for {channels} channels")
    return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
