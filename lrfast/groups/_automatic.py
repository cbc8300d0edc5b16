"""The automatic cut of a module tree into blocks, ordered from body to head."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lrfast.groups._norms import is_norm

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

# Names of heads in torchvision, timm and transformers. "fc" is left out: if it is registered first
# it may be the first layer, as in generators.
_HEAD = re.compile(
    r"((lm|mc|cls|mlm|classification|prediction|decode|output)_)?heads?(_dist)?"
    r"|classifier|cls|score|logits(_proj)?|qa_outputs|predictions"
)
_LAST_NORM = re.compile(r"(final|last|post|out|output)_?(layer)?_?(norm|ln|bn)|ln_(f|final|post)")


@dataclass
class Block:
    """A candidate for a group, whose parameters other blocks may hold too."""

    parts: list[tuple[str, list[Tensor]]]  # each with the path of its module
    kind: str = "body"
    direct: list[Tensor] = field(default_factory=list)  # of the modules around, put in front
    options: Mapping[str, Any] = field(default_factory=dict)  # of the param group it was given as


def automatic_blocks(model: nn.Module) -> list[Block]:
    """Return the blocks into which `layer_groups` cuts a model."""
    path, module = "", model
    while len(children := _with_parameters(module)) == 1 and not _direct(module):
        name, module = children[0]
        path = f"{path}.{name}" if path else name
    blocks: list[Block] = []
    _add_blocks(blocks, path, module)
    return blocks


def _add_blocks(blocks: list[Block], path: str, module: nn.Module) -> None:
    first = len(blocks)
    classes = Counter(type(child) for child in module.children())
    is_list = isinstance(module, nn.ModuleList)
    for name, child in _body_to_head(module):
        child_path = f"{path}.{name}" if path else name
        is_element = isinstance(module, _CONTAINERS) and (is_list or classes[type(child)] > 1)
        if isinstance(child, _CONTAINERS) or _holds_layers(child, is_element):
            _add_blocks(blocks, child_path, child)
            continue
        kind = _kind(name, child)
        part: tuple[str, list[Tensor]] = (child_path, list(child.parameters()))
        if blocks and _joins(blocks[-1], kind, child_path):
            blocks[-1].parts.append(part)
        else:
            blocks.append(Block([part], kind))
    if direct := _direct(module):
        if first == len(blocks):
            blocks.append(Block([(path or type(module).__name__, [])]))
        blocks[first].direct[:0] = direct


def _joins(last: Block, kind: str, path: str) -> bool:
    if kind in ("norm", "first norm", "last norm"):
        return True
    if kind == "head":  # head_dist is a second head beside the first one
        return last.kind == "head" and path.startswith(f"{last.parts[0][0]}_")
    return kind == last.kind == "embedding"


def _body_to_head(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the children with parameters, those of a container in the order of registration."""
    children = _with_parameters(module)
    if isinstance(module, _CONTAINERS):
        return children
    ranks = {"embedding": 0, "first norm": 0, "body": 1, "norm": 1, "last norm": 2, "head": 3}
    return sorted(children, key=lambda child: ranks[_kind(*child)])


def is_head(name: str) -> bool:
    """Tell by a child's name whether it is a model's head."""
    return _HEAD.fullmatch(name) is not None


def _kind(name: str, module: nn.Module) -> str:
    if is_norm(module):
        if "embed" in name.lower():
            return "first norm"
        return "last norm" if _LAST_NORM.fullmatch(name.lower()) else "norm"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    # A layer named embedding without a table may be the last one of a face recogniser.
    if "embed" in name.lower() and any(isinstance(m, nn.Embedding) for m in module.modules()):
        return "embedding"
    return "head" if is_head(name) else "body"


def _holds_layers(module: nn.Module, is_element: bool) -> bool:
    """Tell whether at least half of the weights, embeddings aside, lie in stacks of blocks.

    In an element of a list only stacks right below it count: deeper ones are parts of one layer,
    such as experts or heads of attention.
    """
    tables = [m for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    outside = _size(module.parameters()) - _size(p for table in tables for p in table.parameters())
    return 0 < outside <= 2 * _stacked_size(module, is_element)


def _stacked_size(module: nn.Module, right_below: bool) -> int:
    total = 0
    for child in module.children():
        if _is_stack(child):
            total += _size(child.parameters())
        elif not right_below:
            total += _stacked_size(child, right_below)
    return total


def _is_stack(module: nn.Module) -> bool:
    """Tell whether a module is a container that repeats a block, or a ModuleList of one."""
    if not isinstance(module, _CONTAINERS):
        return False
    # A block has more weights than the one of a unit with its norm and activation.
    weights = [
        (type(m), sum(not is_lazy(p) and p.dim() > 1 for p in m.parameters()))
        for m in module.children()
    ]
    blocks = Counter(kind for kind, count in weights if count > 1)
    single = isinstance(module, nn.ModuleList) and blocks.total() == 1
    return single or max(blocks.values(), default=0) > 1


def _size(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters if not is_lazy(p))


def _with_parameters(module: nn.Module) -> list[tuple[str, nn.Module]]:
    children = module.named_children()
    return [(name, child) for name, child in children if any(True for _ in child.parameters())]


def _direct(module: nn.Module) -> list[Tensor]:
    return list(module.parameters(recurse=False))
