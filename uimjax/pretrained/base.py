"""What a family of models is: how its config is read, and which of its tensors is which of our parameters."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx

from uimjax.errors import UnsupportedModelError
from uimjax.models.blocks import Shape
from uimjax.task import Task


@dataclass(frozen=True)
class Leaf:
    """One of our parameters, `ours`, from one of their tensors, `theirs`; `{i}` in both is a layer's number.

    Their first `squeezed` axes are of 1, and go. Axis `along` then holds `parts` of ours side by side (within each of
    `heads`, where there are several); ours is number `part`. Then the axes are turned: `ours = theirs.transpose(axes)`.
    """

    ours: str
    theirs: str
    axes: tuple[int, ...] = ()
    part: int = 0
    parts: int = 1
    heads: int = 1
    along: int = 0
    squeezed: int = 0

    def take(self, x: Any) -> Any:
        """Ours of theirs."""
        x = x.reshape(x.shape[self.squeezed :])
        if self.parts > 1:
            before, size, after = x.shape[: self.along], x.shape[self.along], x.shape[self.along + 1 :]
            cut = x.reshape(*before, self.heads, self.parts, size // self.heads // self.parts, *after)
            x = jnp.take(cut, self.part, self.along + 1).reshape(*before, size // self.parts, *after)
        return x.transpose(self.axes) if self.axes else x

    def put(self, every: Sequence[Any]) -> Any:
        """Theirs of all parts of ours, in order."""
        back = [x.transpose([self.axes.index(k) for k in range(x.ndim)]) if self.axes else x for x in every]
        if self.parts == 1:
            return back[0].reshape((1,) * self.squeezed + back[0].shape)
        before, size, after = back[0].shape[: self.along], back[0].shape[self.along], back[0].shape[self.along + 1 :]
        cut = [x.reshape(*before, self.heads, 1, size // self.heads, *after) for x in back]
        return jnp.concatenate(cut, self.along + 1).reshape(*before, size * self.parts, *after)


ACTS = {"gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "relu": "relu"}
TURNED = (1, 0)  # their linear layers hold [out, in]


def linear_leaves(ours: str, theirs: str, bias: bool) -> list[Leaf]:
    """A linear layer `[out, in]` of theirs, `[in, out]` of ours."""
    leaves = [Leaf(f"{ours}/kernel", f"{theirs}.weight", TURNED)]
    return leaves + ([Leaf(f"{ours}/bias", f"{theirs}.bias")] if bias else [])


def norm_leaves(ours: str, theirs: str, bias: bool) -> list[Leaf]:
    leaves = [Leaf(f"{ours}/scale", f"{theirs}.weight")]
    return leaves + ([Leaf(f"{ours}/bias", f"{theirs}.bias")] if bias else [])


@dataclass(frozen=True)
class Family:
    """`read` makes a choice of their config; `make` a module of the choice; `leaves` its table; `task(graph, state,
    choice)` what it is trained on. `architectures`: what the config may call it; `prefix`: what tensors of the bare
    model go without; `ignored`: tensors that are no parameters of it (patterns); `tied`: tensors that may be there
    beside what they must equal; `renamed`: endings of older names; `words`: it reads tokens."""

    types: tuple[str, ...]
    architectures: tuple[str, ...]
    read: Callable[["Config"], Any]
    make: Callable[[Any, nnx.Rngs], nnx.Module]
    leaves: Callable[[Any], list[Leaf]]
    task: Callable[[Any, Any, Any], Task]
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    tied: Callable[[Any], dict[str, str]] = lambda _: {}
    renamed: tuple[tuple[str, str], ...] = ()
    words: bool = True

    def is_ignored(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def layered(choice: Any) -> Shape | None:
    """The layers of a choice, if they are a transformer's."""
    return choice if isinstance(choice, Shape) else getattr(choice, "layer", None)


OWN = "Give the model as a Flax module of your own instead."


class Config:
    """A config.json: what is asked for by name, with the family's default; what is known to change the numbers and is
    not built here is refused."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    @property
    def kind(self) -> str:
        return self.values["model_type"]

    def get(self, name: str, default: Any = None) -> Any:
        """As it stands; null counts as left out."""
        found = self.values.get(name)
        return default if found is None else found

    def need(self, name: str, *others: str) -> Any:
        """Under any of these names. Raises UnsupportedModelError."""
        for each in (name, *others):
            if self.values.get(each) is not None:
                return self.values[each]
        raise UnsupportedModelError(f"{self.where} has no {name}; is it the config of a {self.kind}?")

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse anything but these, and what is left out."""
        found = self.values.get(name)
        if found is not None and found not in allowed:
            known = " or ".join(map(repr, allowed))
            raise UnsupportedModelError(f"{self.where}: {name} is {found!r}, and {known} is built here. {OWN}")

    def choice(self, name: str, known: Mapping[str, Any], default: str) -> Any:
        """What one of the `known` values of a name comes to."""
        self.only(name, *known)
        return known[self.get(name, default)]

    def dictionary(self, name: str) -> dict[str, Any]:
        found = self.get(name, {})
        if not isinstance(found, dict):
            raise UnsupportedModelError(f"{self.where}: {name} is {found!r}; a dictionary was wanted")
        return {key: value for key, value in found.items() if value is not None}
