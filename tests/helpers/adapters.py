"""LoRA adapters by hand, on frozen weights of several kinds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTH = 64


class Packed(nn.Module):
    """A linear layer of int8 weights with a scale per row, as a parameter or as a buffer."""

    codes: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, as_buffer: bool) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        codes = (linear.weight.detach() / scale).round().to(torch.int8)
        if as_buffer:
            self.register_buffer("codes", codes)
        else:
            self.codes = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the product with the weights that the codes stand for."""
        return nn.functional.linear(inputs, self.codes * self.scale)


class LoRA(nn.Module):
    """A frozen layer and two trained matrices of rank 4."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(4, inputs) / 8)
        self.lora_B = nn.Parameter(torch.zeros(outputs, 4))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the base's output and the adapter's."""
        outputs: Tensor = self.base(inputs) + inputs @ self.lora_A.T @ self.lora_B.T
        return outputs


# What is frozen beside the adapters.
BASES: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "float32": lambda linear: linear,
    "bfloat16": lambda linear: nn.Sequential(Cast(torch.bfloat16), linear.bfloat16(), Cast()),
    "int8 parameter": lambda linear: Packed(linear, as_buffer=False),
    "int8 buffer": lambda linear: Packed(linear, as_buffer=True),
}


class Cast(nn.Module):
    """A change of type."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the inputs in this type."""
        return inputs.to(self.dtype)


def make_adapted(base: str = "float32") -> nn.Sequential:
    """Two adapted layers and a frozen norm between them; always the same."""
    state = torch.get_rng_state()
    torch.manual_seed(5)
    first, last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH)
    norm = nn.LayerNorm(WIDTH).requires_grad_(False)
    layers = [LoRA(BASES[base](first), 4, WIDTH), norm, LoRA(BASES[base](last), WIDTH, WIDTH)]
    torch.set_rng_state(state)
    return nn.Sequential(*layers)
