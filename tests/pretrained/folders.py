"""Checkpoint folders made from the reference: small, of any family, whole or broken."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import models

from tests.pretrained.reference import FILE, drawn

REFERENCE = json.loads(FILE.read_text())["models"]


def state(name: str) -> dict[str, np.ndarray]:
    return {key: drawn(key, shape) for key, shape in REFERENCE[name]["tensors"].items()}


def write(folder: Path, name: str, words: int | None = None, files: int = 1, **changed: Any) -> Path:
    """A folder as `save_pretrained` writes it; `words` of its tokenizer, None: no tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = REFERENCE[name]["config"] | changed
    (folder / "config.json").write_text(json.dumps(config))
    held = state(name)
    if files == 1:
        save_file(held, folder / "model.safetensors", {"format": "pt"})
    else:
        names = sorted(held)
        where = {key: f"model-{k % files + 1:05d}-of-{files:05d}.safetensors" for k, key in enumerate(names)}
        for file in set(where.values()):
            save_file({key: held[key] for key in names if where[key] == file}, folder / file, {"format": "pt"})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    if words is not None:
        vocabulary = {f"w{k}": k for k in range(words)}
        engine = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
        engine.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
        engine.save(str(folder / "tokenizer.json"))
    return folder
