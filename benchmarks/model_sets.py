"""Shapes of the parameters that optimizers are timed on; weights themselves do not matter."""

from __future__ import annotations

Shapes = list[tuple[int, ...]]


def lora() -> Shapes:
    """224 pairs of low-rank factors, as one adapts a 7B transformer: many small tensors."""
    return [(8, 512), (512, 8)] * 224


def mlp() -> Shapes:
    """Six tensors, 7 thousand parameters: all overhead."""
    return [(64, 32), (64,), (64, 64), (64,), (10, 64), (10,)]


def vectors() -> Shapes:
    """300 tensors of 64."""
    return [(64,)] * 300


def vit_small() -> Shapes:
    """ViT-S/16: 152 tensors, 22 million parameters."""
    width = 384
    block: Shapes = [
        (width,),
        (width,),
        (3 * width, width),
        (3 * width,),
        (width, width),
        (width,),
        (width,),
        (width,),
        (4 * width, width),
        (4 * width,),
        (width, 4 * width),
        (width,),
    ]
    stem: Shapes = [(1, 1, width), (1, 197, width), (width, 3, 16, 16), (width,)]
    head: Shapes = [(width,), (width,), (1000, width), (1000,)]
    return stem + 12 * block + head


def one_large() -> Shapes:
    """One tensor of 100 million parameters: all bandwidth."""
    return [(100_000_000,)]
