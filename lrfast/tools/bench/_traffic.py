"""Memory traffic of a step: the lower limit of its time."""

from __future__ import annotations


def bytes_moved(
    param: int, states: int, average: int = 0, *, takes_norm: bool = False, zeroes: bool = False
) -> int:
    """Return the bytes that one step of the engine reads and writes.

    Parameters, states and EMA are read and written, gradients are read. A norm reads the gradients
    once more, before the first update; zeroing writes them.

    Args:
        param: Bytes of the parameters, and of their gradients; or all arguments per element.
        states: Bytes of all their states.
        average: Bytes of the weights' EMA; default 0.
        takes_norm: Whether a norm is taken, to clip, record or find infinities; default False.
        zeroes: Whether gradients are set to zero; default False.

    Example:
        >>> bytes_moved(4, 8)  # AdamW in float32
        28
    """
    return (3 + takes_norm + zeroes) * param + 2 * states + 2 * average
