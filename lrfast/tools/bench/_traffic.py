"""The memory that a step has to move: what no implementation of it can be faster than."""

from __future__ import annotations


def bytes_moved(
    param: int, states: int, average: int = 0, *, takes_norm: bool = False, zeroes: bool = False
) -> int:
    """Return the bytes that one step of the engine reads and writes.

    Parameter, states and average are each read and written, the gradient is read. A norm, which
    clipping needs before the first update, reads the gradient once more; zeroing writes it.

    Args:
        param: Bytes of the parameters, and of their gradients.
        states: Bytes of all their states.
        average: Bytes of the weights' moving average.
        takes_norm: Whether gradients are clipped, recorded or looked through for infinities.
        zeroes: Whether gradients are set to zero.

    Returns:
        Bytes; per element, where the arguments are.

    Example:
        >>> bytes_moved(4, 8)  # AdamW in float32
        28
    """
    return (3 + takes_norm + zeroes) * param + 2 * states + 2 * average
