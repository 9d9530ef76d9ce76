"""Residual networks of images `[H, W, C]` (He et al. 2016, arXiv 1512.03385), batch norm in evaluation mode."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx


@dataclass(frozen=True)
class ResNetShape:
    """`widths` and `depths` of the stages. `stem`: a 7x7 convolution and a pool, each of stride 2, or a 3x3 ("small").
    Layers of two 3x3 convolutions, or of three with the middle one a quarter as wide (`bottleneck`; its stride then
    lies on the 3x3, or with `stride_first` on the 1x1 before). `shortcut`: a 1x1 convolution where shapes differ, or
    every second pixel with channels of zeros ("pad")."""

    classes: int
    channels: int = 3
    first: int = 64
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    stem: Literal["large", "small"] = "large"
    shortcut: Literal["conv", "pad"] = "conv"
    halved_first: bool = False
    stride_first: bool = False


def layers_of(choice: ResNetShape) -> list[list[tuple[int, int, int]]]:
    """(channels in, channels out, stride) of the layers of each stage."""
    out, inputs = [], choice.first
    for k, (width, depth) in enumerate(zip(choice.widths, choice.depths, strict=True)):
        strides = [2 if n == 0 and (k > 0 or choice.halved_first) else 1 for n in range(depth)]
        out.append([(inputs if n == 0 else width, width, stride) for n, stride in enumerate(strides)])
        inputs = width
    return out


def has_shortcut(choice: ResNetShape, inputs: int, outputs: int, stride: int) -> bool:
    """Is there a convolution beside the layer?"""
    return choice.shortcut == "conv" and (stride != 1 or inputs != outputs)


class Convolution(nnx.Module):
    """A square convolution, padded by half its size, and its batch norm."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, rngs: nnx.Rngs):
        pad = [(size // 2, size // 2)] * 2  # not SAME: that pads unevenly where there is a stride
        self.conv = nnx.Conv(inputs, outputs, (size, size), strides=stride, padding=pad, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, use_running_average=True, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.norm(self.conv(x))


class Layer(nnx.Module):
    def __init__(self, choice: ResNetShape, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs):
        self.stride, self.grown = stride, outputs - inputs
        if choice.bottleneck:
            inner, first = outputs // 4, stride if choice.stride_first else 1
            plan = [(inputs, inner, 1, first), (inner, inner, 3, stride // first), (inner, outputs, 1, 1)]
        else:
            plan = [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)]
        self.layer = nnx.List([Convolution(*each, rngs) for each in plan])
        if has_shortcut(choice, inputs, outputs, stride):
            self.shortcut = Convolution(inputs, outputs, 1, stride, rngs)

    def __call__(self, x: Any) -> Any:
        y = x
        for k, part in enumerate(self.layer):
            y = part(y) if k == len(self.layer) - 1 else nnx.relu(part(y))
        if hasattr(self, "shortcut"):
            x = self.shortcut(x)
        elif self.stride != 1 or self.grown:
            before = self.grown // 2
            x = jnp.pad(x[:: self.stride, :: self.stride], ((0, 0), (0, 0), (before, self.grown - before)))
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    """Logits; `features`: the mean over pixels of the last stage."""

    def __init__(self, choice: ResNetShape, rngs: nnx.Rngs):
        self.choice = choice
        size, stride = (7, 2) if choice.stem == "large" else (3, 1)
        self.stem = Convolution(choice.channels, choice.first, size, stride, rngs)
        plan = layers_of(choice)
        self.stages = nnx.List([nnx.List([Layer(choice, *each, rngs) for each in stage]) for stage in plan])
        self.head = nnx.Linear(choice.widths[-1], choice.classes, rngs=rngs)

    def features(self, image: Any) -> Any:
        x = nnx.relu(self.stem(image))
        if self.choice.stem == "large":
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3, 3, 1), (2, 2, 1), ((1, 1), (1, 1), (0, 0)))
        for stage in self.stages:
            for layer in stage:
                x = layer(x)
        return x.mean((0, 1))

    def __call__(self, image: Any) -> Any:
        return self.head(self.features(image))
