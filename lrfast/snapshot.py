"""Snapshots of a training set-up in memory."""

from lrfast.training._snapshot import (
    Engine,
    GlobalRandom,
    Snapshot,
    Stateful,
    bytes_needed,
    is_out_of_memory,
    preserved,
    sizes,
)

__all__ = [
    "Engine",
    "GlobalRandom",
    "Snapshot",
    "Stateful",
    "bytes_needed",
    "is_out_of_memory",
    "preserved",
    "sizes",
]
