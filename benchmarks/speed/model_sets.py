"""Shapes of the parameters that optimizers are timed on; weights themselves do not matter.

A set is a list of layers, and a layer the shapes of the parameters that one module owns.
"""

from __future__ import annotations

Shape = tuple[int, ...]
Layers = list[list[Shape]]


def lora() -> Layers:
    """224 pairs of low-rank factors, as one adapts a 7B transformer: many small tensors."""
    return [[(8, 512), (512, 8)]] * 224


def mlp() -> Layers:
    """Three linear layers, 6 tensors, 7 thousand parameters: all overhead."""
    return [_linear(32, 64), _linear(64, 64), _linear(64, 10)]


def vectors() -> Layers:
    """300 tensors of 64, two per layer."""
    return [[(64,), (64,)]] * 150


def resnet50() -> Layers:
    """ResNet-50: 107 layers, 161 tensors, 25,557,032 parameters."""
    layers = _convolution(3, 64, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            layers += _convolution(inputs, width, 1)
            layers += _convolution(width, width, 3)
            layers += _convolution(width, 4 * width, 1)
            if block == 0:
                layers += _convolution(inputs, 4 * width, 1)  # the shortcut
            inputs = 4 * width
    return [*layers, _linear(inputs, 1000)]


def vit_small() -> Layers:
    """ViT-S/16: 75 layers, 152 tensors, 22,050,664 parameters."""
    width = 384
    norm: list[Shape] = [(width,), (width,)]
    stem: list[Shape] = [(1, 1, width), (1, 197, width), (width, 3, 16, 16), (width,)]
    attention = [norm, _linear(width, 3 * width), _linear(width, width)]
    feed_forward = [norm, _linear(width, 4 * width), _linear(4 * width, width)]
    return [stem, *(12 * (attention + feed_forward)), norm, _linear(width, 1000)]


def scalars() -> Layers:
    """10,000 tensors of one element: nothing but bookkeeping."""
    return [[(1,)]] * 10_000


def many_groups() -> Layers:
    """500 layers of one vector of 64."""
    return [[(64,)]] * 500


def transformer() -> Layers:
    """500 layers, a weight, a bias and a norm's scale in turn, 11 million elements."""
    return [[((256, 256), (256,), (256,))[number % 3]] for number in range(500)]


def hundred_million() -> Layers:
    """One tensor of 100 million elements: nothing but memory."""
    return [[(100_000_000,)]]


def one_large() -> Layers:
    """One tensor of 200 million elements: nothing but memory."""
    return [[(200_000_000,)]]


def _linear(inputs: int, outputs: int) -> list[Shape]:
    return [(outputs, inputs), (outputs,)]


def _convolution(inputs: int, outputs: int, size: int) -> Layers:
    """A convolution without bias and the batch norm behind it."""
    return [[(outputs, inputs, size, size)], [(outputs,), (outputs,)]]
