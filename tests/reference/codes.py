"""States in 8 bits from their definition, as tables of the numbers that codes stand for.

The oracle of the tests; imports nothing of lrfast. Steele, Lea & Flood, "Fast Splittable
Pseudorandom Number Generators", 2014; MurmurHash3's finalizer; L'Ecuyer, "Tables of linear
congruential generators of different sizes and good lattice structure", 1999.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]

BLOCK = 256
_MASK = 2**64 - 1


def numbers(positive: bool) -> Array:
    """What the codes without a sign stand for at scale 0, but for the last, which is no number."""
    code = np.arange(255 if positive else 127)
    value = 2.0 ** (code // 8) * (1 + code % 8 / 8)
    if positive:
        value[0] = 0.0
        return value * 2.0**-127
    return (value - 1) * 2.0**-126


def decode(codes: Codes, scales: Codes, positive: bool) -> Array:
    """The numbers behind codes, in float64."""
    power = 2.0 ** np.repeat(scales, BLOCK)[: codes.size].astype(np.float64)
    if positive:
        return np.append(numbers(True), np.inf)[codes] * power
    magnitude = np.append(numbers(False), np.nan)[codes & 127] * power
    return np.where(codes & 128, -magnitude, magnitude)


def encode(values: Array, positive: bool, noise: npt.NDArray[np.uint16]) -> tuple[Codes, Codes]:
    """The codes of finite numbers, up or down by 16 bits of noise for each, and their scales."""
    table = numbers(positive)
    padded = np.append(values, np.zeros(-values.size % BLOCK))
    largest = np.abs(padded).reshape(-1, BLOCK).max(axis=1)
    with np.errstate(divide="ignore"):
        scales = np.maximum(np.ceil(np.log2(largest / table[-1])), 0).astype(np.uint8)
    scaled = np.abs(values) / 2.0 ** np.repeat(scales, BLOCK)[: values.size].astype(np.float64)
    code = np.searchsorted(table, scaled, side="right") - 1
    above = np.minimum(code + 1, table.size - 1)
    gap = np.where(above > code, table[above] - table[code], 1.0)
    chance = (scaled - table[code]) / gap
    code = np.where(chance + (noise + 0.5) / 65536 >= 1, above, code)
    if positive:
        code = np.where(values > 0, np.maximum(code, 1), code)
        return code.astype(np.uint8), scales
    return (code | np.where(np.signbit(values), 128, 0)).astype(np.uint8), scales


def _mix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def noise(numel: int, seed: int, tensor: int, step: int, which: int) -> npt.NDArray[np.uint16]:
    """16 bits for each element of one of a tensor's states (counted from 1) at a step."""
    key = _mix((_mix((seed + tensor) & _MASK) + step) & _MASK) & 0xFFFFFFFF
    pairs = np.arange((numel + 1) // 2, dtype=np.uint32) ^ np.uint32(key)
    pairs ^= pairs >> np.uint32(16)
    pairs *= np.uint32(0x85EBCA6B)
    pairs ^= pairs >> np.uint32(13)
    pairs *= np.uint32(0xC2B2AE35)
    for _ in range(which):
        pairs *= np.uint32(2891336453)
    pairs ^= pairs >> np.uint32(16)
    halves = np.stack([pairs & np.uint32(0xFFFF), pairs >> np.uint32(16)], axis=1)
    return halves.ravel()[:numel].astype(np.uint16)
