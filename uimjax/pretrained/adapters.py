"""LoRA adapters as `peft` saves them (adapter_config.json, adapter_model.safetensors), beside a model of ours."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uimjax.errors import CorruptError, MissingFileError, UnsupportedModelError
from uimjax.models.blocks import PARTS, Lora, Shape
from uimjax.pretrained.base import TURNED, Family, Leaf
from uimjax.pretrained.folder import Tensor, of_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PLAIN = {  # of a config: what is known to change the numbers, and the values that it may have here
    "use_dora": (False,), "bias": ("none",), "modules_to_save": (), "layers_to_transform": (), "layers_pattern": (),
    "rank_pattern": ({},), "alpha_pattern": ({},), "lora_bias": (False,), "trainable_token_indices": (),
    "target_parameters": (), "exclude_modules": (), "layer_replication": (), "alora_invocation_tokens": (),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),  # others change the base as well
}  # fmt: skip


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(its config, its tensors by name).

    Raises:
        MissingFileError, CorruptError; UnsupportedModelError: another method than LoRA, or a variant of it.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise MissingFileError(
                f"{folder} has no {name}; a LoRA adapter as peft's save_pretrained writes it was wanted"
            )
    try:
        values = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise CorruptError(f"{folder / CONFIG} is not JSON: {error}") from error
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        kind = values.get("peft_type") if isinstance(values, dict) else type(values).__name__
        raise UnsupportedModelError(f"{folder / CONFIG}: {kind} is not built here; LORA is")
    for name, allowed in PLAIN.items():
        found = values.get(name)
        if found and found not in allowed:
            raise UnsupportedModelError(f"{folder / CONFIG}: {name} is {found!r}, which is not built here")
    return values, of_files(folder, [WEIGHTS])


def adapted(family: Family, choice: Any, values: Mapping[str, Any], where: str) -> Shape:
    """The choice with the adapter's. Raises UnsupportedModelError: a layer that has no adapter here."""
    if not isinstance(choice, Shape):
        raise UnsupportedModelError(f"{where}: adapters are read for decoders; this is a {family.types[0]}")
    modules = {_module(leaf): leaf for leaf in family.leaves(choice) if leaf.ours.endswith("/kernel")}
    targets = values.get("target_modules")
    chosen = [leaf for module, leaf in modules.items() if _is_target(module, targets)]
    if not chosen:
        known = ", ".join(sorted({module.rsplit(".", 1)[-1] for module in modules}))
        raise UnsupportedModelError(f"{where}: target_modules {targets} are none of {known}")
    if fused := [leaf for leaf in chosen if leaf.parts > 1]:
        raise UnsupportedModelError(
            f"{where}: {_module(fused[0])} is {fused[0].parts} layers in one, and an adapter on all of them is not "
            "built here. Merge it (merge_and_unload of peft) and load the model that comes out."
        )
    rank = values.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise UnsupportedModelError(f"{where}: r is {rank!r}; a rank of 1 or more was wanted")
    alpha = float(values.get("lora_alpha", rank))
    scale = alpha / rank**0.5 if values.get("use_rslora") else alpha / rank
    parts = {leaf.ours.split("/")[-2] for leaf in chosen}
    if odd := parts - set(PARTS):
        raise UnsupportedModelError(f"{where}: an adapter of {', '.join(sorted(odd))} is not built here")
    return dataclasses.replace(choice, lora=Lora(rank, scale, tuple(part for part in PARTS if part in parts)))


def adapter_leaves(family: Family, choice: Any) -> list[Leaf]:
    """The adapter's tensors, where the choice has one: theirs are A `[rank, in]` and B `[out, rank]`."""
    if getattr(choice, "lora", None) is None:
        return []
    leaves = []
    for leaf in family.leaves(choice):
        if leaf.ours.endswith("/kernel") and leaf.ours.split("/")[-2] in choice.lora.parts:
            for ours, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
                name = f"{PREFIX}{_module(leaf)}.{theirs}.weight"
                leaves.append(Leaf(leaf.ours.removesuffix("kernel") + ours, name, TURNED))
    return leaves


def is_adapters(name: str) -> bool:
    """Is a tensor of that name an adapter's?"""
    return name.startswith(PREFIX)


def _module(leaf: Leaf) -> str:
    return leaf.theirs.removesuffix(".weight")


def _is_target(module: str, targets: Any) -> bool:
    """By peft's rule: a list names ends of modules, a text is a pattern of all of it; "all-linear" is all of blocks."""
    if targets == "all-linear":
        return "{i}" in module
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, module.replace("{i}", "0")) is not None
        except re.error as error:
            raise UnsupportedModelError(f"target_modules {targets!r} is no pattern: {error}") from error
    return "{i}" in module and any(module == its or module.endswith(f".{its}") for its in targets or ())
