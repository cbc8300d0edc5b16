"""Predicted times of a step on GPUs: from its bytes, its instructions and the launches it takes.

Instructions and loads come from the machine code (`make cuda-check` writes kernels.json), the GPUs'
limits from their data sheets (gpus.json). What stands in capitals below is assumed.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from tools.kernel_loops import ISSUED, bytes_of_element

HERE = Path(__file__).resolve().parent
SHARE = 0.92  # of the data sheet's bandwidth, for passes that read and write
LATENCY = 700e-9  # seconds from a load to its value while memory is busy
LAUNCH = 3e-6  # seconds of a launch's start and end on the GPU

BLOCK, PER_PROCESSOR = 512, 2  # csrc/cuda/step.cu: threads, and blocks that are resident at once
CHUNK, SMALL_CHUNK, SMALL_MODEL = 32768, 16384, 256 * 32768  # csrc/bindings/device.h


@dataclass(frozen=True)
class Gpu:
    """A GPU's limits, by its data sheet."""

    arch: str
    bandwidth: float  # bytes per second
    processors: int
    clock: float  # of the multiprocessors, the highest, in Hz


@dataclass(frozen=True)
class Loop:
    """What a kernel's loop over elements does, by its machine code."""

    moved: int  # bytes of an element, loaded and stored
    loaded: int  # bytes of it that are loaded
    in_flight: int  # bytes that one thread loads at once
    instructions: float  # for an element


@dataclass(frozen=True)
class Prediction:
    """A kernel's time in seconds, and what it waits for."""

    seconds: float
    bound: str


def gpus() -> dict[str, Gpu]:
    """Returns the GPUs that pages speak of, by name."""
    return {
        name: Gpu(**facts) for name, facts in json.loads((HERE / "gpus.json").read_text()).items()
    }


def find_loop(arch: str, kernel: str, param: str, state: str, states: int) -> Loop:
    """Returns a loop as it was compiled for an architecture."""
    archs = json.loads((HERE / "kernels.json").read_text())["archs"]
    loaded, stored = bytes_of_element(kernel, param, state, states)
    for row in archs[arch]["loops"]:
        if kernel in row[0] and row[1:4] == [param, state, states]:
            return Loop(loaded + stored, loaded, row[5], row[6])
    raise KeyError(f"{kernel} has no loop for {param} with {states} states of {state} on {arch}")


def predict(gpu: Gpu, loop: Loop, elements: int) -> Prediction:
    """Returns one kernel's time: rounds of chunks, each as slow as the slowest of three limits."""
    chunk = SMALL_CHUNK if elements < SMALL_MODEL else CHUNK
    chunks = math.ceil(elements / chunk)
    active = min(chunks, gpu.processors * PER_PROCESSOR)
    busy = min(gpu.processors, active)
    part = min(chunk, elements)  # of a block, in one round
    limits = {
        "memory": part * loop.moved * active / (SHARE * gpu.bandwidth),
        "instructions": part * loop.instructions * active / (busy * ISSUED * gpu.clock),
        "loads": part * loop.loaded / (loop.in_flight * BLOCK) * LATENCY,
    }
    bound = max(limits, key=lambda name: limits[name])
    rounds = chunks / active if chunks > 4 * active else math.ceil(chunks / active)
    return Prediction(rounds * limits[bound] + LAUNCH, bound)
