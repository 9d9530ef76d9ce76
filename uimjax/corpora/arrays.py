"""Arrays that were written as they came, made files that NumPy maps."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np


def as_npy(root: Path, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    """The bytes of `NAME.raw` behind a header, as `NAME.npy`."""
    raw, path = root / f"{name}.raw", root / f"{name}.npy"
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with path.open("wb") as out, raw.open("rb") as held:
        np.lib.format.write_array_header_1_0(out, header)
        shutil.copyfileobj(held, out, 1 << 20)
    raw.unlink()
