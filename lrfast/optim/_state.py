"""Tensors of optimizer state in the shape, dtype, device and layout that the engine needs."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lrfast._utils.async_copy import note_use
from lrfast._utils.extension import extension

# States that have a dtype of their own; all others are moments of the gradient.
SCALARS = ("step", "beta1_product", "mu_product", "weight_sum", "lr_max")
ROWS = "second_momentum_buffer"  # of a matrix, [outputs, 1]: NorMuon's
# What a half parameter lacks of its weight; csrc/core/masters.h has the arithmetic.
MASTER = "master_bits"
NOT_MOMENTS = (*SCALARS, "ema", ROWS, MASTER)
# Behind the name of a state in 8 bits, which takes two tensors; csrc/bindings/parameter.cpp has
# them, too. torch's optimizers miss the plain name, and raise.
CODES, SCALES = "_codes", "_scales"
MOMENTUM = "momentum_buffer"


def zeros_like(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros in the engine's memory layout, which is dense even if ``param`` is not."""
    if hasattr(param, "_local_tensor"):  # a DTensor's state is a DTensor, for its checkpoints
        return torch.zeros_like(param, dtype=dtype)
    strides = extension().layout_strides(param)
    return torch.empty_strided(param.shape, strides, dtype=dtype, device=param.device).zero_()


def as_engine_state(name: str, value: Any, param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a state on its parameter's device, in the engine's memory layout."""
    if not isinstance(value, Tensor) or value.shape != param.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"state {name!r} must have its parameter's shape {tuple(param.shape)}, got {got}"
        )
    note_use(value)
    return zeros_like(param, dtype).copy_(value)


def base_name(name: Any) -> str:
    """Return the name of the state that a tensor is, or is half of."""
    return str(name).removesuffix(CODES).removesuffix(SCALES)


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a DTensor, or an ordinary tensor."""
    part: Tensor = getattr(tensor, "_local_tensor", tensor)
    return part


def _placed(part: Tensor, whole: Any) -> Tensor:
    """Return this process's part as a DTensor, if ``whole`` is one."""
    if not hasattr(whole, "_local_tensor"):
        return part
    from torch.distributed.tensor import DTensor

    placed: Tensor = DTensor.from_local(
        part, whole.device_mesh, whole.placements, run_check=False,
        shape=whole.shape, stride=whole.stride(),
    )  # fmt: skip
    return placed


def _in_memory(part: Tensor) -> Tensor:
    """Return a view [numel] of a dense tensor's elements, in the order of memory."""
    return part.as_strided((part.numel(),), (1,))


def decoded(state: dict[str, Any], name: str, positive: bool) -> Tensor:
    """Return a state in 8 bits as float32, in the layout of its codes."""
    state = dict(state)
    _gather_scales(state, name, positive)
    codes, scales = local_part(state[name + CODES]), state[name + SCALES]
    for tensor in (codes, scales):
        note_use(tensor)
    wide: Tensor = extension().decode_state(codes.cpu(), scales.cpu(), positive)
    return _placed(wide.to(codes.device), state[name + CODES])


def with_spread_scales(state: dict[str, Any], always: bool) -> dict[str, Any]:
    """Return a state with a scale for each element, laid out and placed as the codes.

    So a checkpoint may cut both anywhere, and what reads it in the same blocks finds the same bits.
    States that no process shares stay as they are, unless ``always``.
    """
    block, spread = int(extension().code_block), {}
    for key in [key for key in state if str(key).endswith(CODES)]:
        codes, scales = state[key], state.get(name := str(key).removesuffix(CODES) + SCALES)
        # A state dict may have brought anything for a parameter that cannot train.
        if not isinstance(codes, Tensor) or not isinstance(scales, Tensor):
            continue
        if (always or hasattr(codes, "_local_tensor")) and scales.shape == (count_scales(codes),):
            own = torch.empty_like(local_part(codes))
            _in_memory(own).copy_(scales.repeat_interleave(block)[: own.numel()])
            spread[name] = _placed(own, codes)
    return state | spread if spread else state


def _gather_scales(state: dict[str, Any], name: str, positive: bool) -> None:
    """Bring spread scales to one for each block, whose bits stay if it was a block before.

    A block with elements of several is decoded and encoded, rounded to nearest.
    """
    codes, each = state[name + CODES], state[name + SCALES]
    if each.shape != codes.shape:
        return
    engine, own = extension(), local_part(codes).cpu().clone()  # dense
    block, count = int(engine.code_block), own.numel()
    scales = torch.empty_like(own).copy_(local_part(each))
    old, of_each = _in_memory(own), _in_memory(scales)
    firsts = of_each[::block].clone()
    mixed = of_each != firsts.repeat_interleave(block)[:count]
    if bool(mixed.any()):
        wide = torch.empty(count)
        for scale in of_each.unique():
            alike = old[of_each == scale]
            several = scale.repeat(-(-len(alike) // block))
            wide[of_each == scale] = engine.decode_state(alike, several, positive)
        new, new_scales = engine.encode_state(wide, positive)
        numbers = torch.arange(count) // block
        touched = torch.zeros(len(firsts), dtype=torch.bool).index_fill_(0, numbers[mixed], True)
        firsts = torch.where(touched, new_scales, firsts)
        own = torch.empty_like(own)
        _in_memory(own).copy_(torch.where(touched[numbers], new, old))
        state[name + CODES] = _placed(own.to(codes.device), codes)
    state[name + SCALES] = firsts.to(codes.device)


def convert(
    state: dict[str, Any], name: str, param: Tensor, dtype: torch.dtype, positive: bool
) -> None:
    """Bring a state to a dtype, uint8 for 8 bits, in the engine's memory layout and device.

    One in 8 bits that is there already keeps its bits.
    """
    is_coded = name + CODES in state
    if dtype is torch.uint8 and is_coded:
        _gather_scales(state, name, positive)
        codes, layout = (
            local_part(state[name + CODES]),
            extension().layout_strides(local_part(param)),
        )
        if codes.device == param.device and list(codes.stride()) == layout:
            return
    value = decoded(state, name, positive) if is_coded else state.get(name)
    if dtype is torch.uint8:
        wide = as_engine_state(name, value, param, torch.float32)
        codes, scales = extension().encode_state(local_part(wide).cpu(), positive)
        state[name + CODES] = _placed(codes.to(param.device), param)
        state[name + SCALES] = scales.to(param.device)
        state.pop(name, None)
    else:
        state[name] = as_engine_state(name, value, param, dtype)
        for suffix in (CODES, SCALES):
            state.pop(name + suffix, None)


def make_codes(state: dict[str, Any], name: str, param: Tensor) -> None:
    """Make a state of zeros in 8 bits, without a synchronisation."""
    state[name + CODES] = zeros_like(param, torch.uint8)
    blocks = count_scales(param)
    state[name + SCALES] = torch.zeros(blocks, dtype=torch.uint8, device=param.device)


def master_weight(param: Tensor, bits: Tensor) -> Tensor:
    """Return the float32 weight of a half parameter and its master bits."""
    for tensor in (param, bits):
        note_use(tensor)
    own = local_part(param.detach())
    half = torch.empty_like(own, device="cpu").copy_(own)  # dense
    placed = torch.empty_like(half, dtype=bits.dtype).copy_(local_part(bits))
    weight: Tensor = extension().join_masters(half, placed)
    return _placed(weight.to(param.device), param)


def as_master_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return master bits of either precision: 8 more zeros, or rounded to 8 fewer."""
    return _placed(_converted(local_part(bits), dtype), bits)


def _converted(bits: Tensor, dtype: torch.dtype) -> Tensor:
    if bits.dtype is dtype:
        return bits
    if dtype is torch.int16:
        return bits.to(dtype) * 256
    rest = bits.to(torch.int32)
    rounded = (rest + 127 + (rest >> 8 & 1)) >> 8  # ties to even
    return rounded.clamp_(max=127).to(dtype)  # beyond it the parameter would be another one


def count_scales(param: Tensor) -> int:
    """Return the number of blocks that a parameter's states in 8 bits have on this process."""
    return -(-local_part(param).numel() // int(extension().code_block))


def as_scalar(value: Any, param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a number as a tensor [] on its parameter's device, without a synchronisation."""
    if isinstance(value, Tensor):
        note_use(value)
        return value.detach().reshape(()).to(param.device, dtype)
    return torch.full((), value, dtype=dtype, device=param.device)


def average_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype of a weight's EMA: half types would lose most of its steps."""
    is_half = param.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if is_half else param.dtype


def count_dtype(count: Any) -> torch.dtype:
    """Return the dtype of a count of updates, as torch has it: float64 if that is the default."""
    own = count.dtype if isinstance(count, Tensor) else torch.get_default_dtype()
    return torch.float64 if own is torch.float64 else torch.float32


def restore_dtypes(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Undo torch's cast of loaded states to the parameter's dtype if it loses digits.

    float32 moments of a half parameter stay float32, and the product of beta1 stays float64; a
    state too wide for the engine is narrowed when it is first used.
    """
    saved_ids: Iterable[int] = chain.from_iterable(
        group["params"] for group in state_dict["param_groups"]
    )
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    for saved_id, param in zip(saved_ids, params, strict=True):
        loaded = optimizer.state.get(param, {})
        for name, value in state_dict["state"].get(saved_id, {}).items():
            if not isinstance(value, Tensor) or not isinstance(loaded.get(name), Tensor):
                continue
            # Codes and master bits are numbers to torch.
            is_bits = value.dtype in (torch.uint8, torch.int8, torch.int16)
            if is_bits or value.dtype.itemsize > loaded[name].dtype.itemsize:
                loaded[name] = value.to(param.device, copy=True)


def clear_unstarted_momentum(
    optimizer: torch.optim.Optimizer, counts: list[tuple[Tensor, Tensor]], state: dict[str, Any]
) -> None:
    """Save momentum buffers that no applied step has filled as None, as torch's SGD does.

    The engine knows them by a count that torch's state dict has no place for.
    """
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    ids = {id(param): index for index, param in enumerate(params)}
    began = torch.stack([count.cpu() for _, count in counts]).tolist() if counts else []
    for (param, _), count in zip(counts, began, strict=True):
        packed = state["state"].get(ids.get(id(param)), {})
        kept = {name: value for name, value in packed.items() if base_name(name) != MOMENTUM}
        if count == 0 and len(kept) < len(packed):
            state["state"][ids[id(param)]] = kept | {MOMENTUM: None}
