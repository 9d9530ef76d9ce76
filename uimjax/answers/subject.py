"""The model that is asked about, opened as a config names it: a checkpoint folder, or the reader's own module."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from uimjax.answers.story import Subject
from uimjax.errors import UnsupportedModelError
from uimjax.models.blocks import Shape
from uimjax.pretrained.loading import load
from uimjax.pretrained.words import need_tokenizer

DTYPES = {"": None, "float32": jnp.float32, "bfloat16": jnp.bfloat16}


def open_subject(config: Any, mesh: Any = None) -> tuple[Subject, int]:
    """(the model, the most tokens of a row, 0 for no limit).

    Raises: as `load`; MissingFileError: no tokenizer. UnsupportedModelError: no language model with a loss a token.
    """
    how = {"mesh": mesh, "dtype": DTYPES[config.dtype], "scanned": config.scanned, "remat": config.remat}
    its = load(config.model, **how)
    layers = its.choice
    if not isinstance(layers, Shape):
        raise UnsupportedModelError(
            f"{config.model} is a {its.family.types[0]}; documents are traced for decoders, which have a loss a token"
        )
    task = dataclasses.replace(its.task, include=config.include, exclude=config.exclude)
    tokenizer = need_tokenizer(its.tokenizer, Path(config.model))
    return Subject(task, its.params, tokenizer), layers.length if layers.positions == "learned" else 0
