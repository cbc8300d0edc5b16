"""``accuracy`` over the shapes of outputs and targets that torch's losses take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from tuners import make_tuner

from lrfast import accuracy

F = torch.nn.functional
CLASSES = torch.tensor([[2, 0, 1, 1], [0, 1, 2, 0], [1, 1, 0, 2]])  # [batch, places]
LABELS = torch.tensor([0, 1, 1])
SEVERAL = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1]])
IMAGES = CLASSES.reshape(3, 2, 2)


def scores(dim: int = 1) -> Callable[[Tensor], Tensor]:
    """Return what makes outputs, of which the largest along a dimension is the class."""
    return lambda classes: 5.0 * F.one_hot(classes, 3).movedim(-1, dim) - 2.0


def logits(labels: Tensor) -> Tensor:
    return (2.0 * labels - 1) * 3.0


def soft(classes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Probabilities of the classes, smoothed."""
    return (F.one_hot(classes, 3).movedim(-1, 1) * 0.7 + 0.1).to(dtype)


# What makes outputs of predictions, the right predictions, and the targets.
KINDS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, Tensor]] = {
    "classes": (scores(), CLASSES[:, 0], CLASSES[:, 0]),
    "segmentation": (scores(), IMAGES, IMAGES),
    "sequences": (scores(), CLASSES, CLASSES),
    "a language model": (scores(-1), CLASSES, CLASSES),
    "predicted classes": (lambda classes: classes, CLASSES, CLASSES),
    "one logit, [N]": (logits, LABELS, LABELS.float()),
    "one logit, [N, 1]": (lambda x: logits(x)[:, None], LABELS, LABELS.float()[:, None]),
    "one logit, [N, 1] against [N]": (lambda x: logits(x)[:, None], LABELS, LABELS.float()),
    "one logit, [N] against [N, 1]": (logits, LABELS, LABELS.float()[:, None]),
    "one logit, whole numbers": (logits, LABELS, LABELS),
    "one logit, truth values": (logits, LABELS, LABELS.bool()),
    "one probability": (lambda x: 0.2 + 0.6 * x, LABELS, LABELS.float()),
    "one logit for each pixel": (lambda x: logits(x)[:, None], IMAGES.clamp(max=1), IMAGES > 0),
    "one-hot": (scores(), CLASSES[:, 0], F.one_hot(CLASSES[:, 0], 3).float()),
    "soft targets": (scores(), CLASSES[:, 0], soft(CLASSES[:, 0])),
    "half": (lambda x: scores()(x).half(), CLASSES[:, 0], soft(CLASSES[:, 0], torch.half)),
    "soft targets of pixels": (scores(), IMAGES, soft(IMAGES)),
    "several labels": (logits, SEVERAL, SEVERAL.float()),
    "several labels, whole numbers": (logits, SEVERAL, SEVERAL),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_of_right_predictions(kind: str) -> None:
    make, truth, targets = KINDS[kind]
    found = accuracy(make(truth), targets)
    assert found.shape == () and found.dtype == torch.float64 and found.item() == 1.0
    wrong = truth.clone()
    wrong[0] = (truth[0] + 1) % (3 if truth.max() == 2 else 2)
    assert accuracy(make(wrong), targets).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", ["classes", "segmentation", "a language model"])
def test_ignored_targets_do_not_count(kind: str) -> None:
    make, truth, targets = KINDS[kind]
    outputs, kept = make(truth), targets.clone().flatten()
    kept[0] = -100
    wrong = truth.clone().flatten()
    wrong[:2] = (wrong[:2] + 1) % 3  # the ignored one and another
    found = accuracy(make(wrong.reshape(truth.shape)), kept.reshape(targets.shape))
    assert found.item() == pytest.approx(1 - 1 / (targets.numel() - 1))
    assert accuracy(outputs, torch.full_like(targets, -100)).isnan()


@pytest.mark.parametrize(
    ("outputs", "targets", "error", "message"),
    [
        (torch.ones(4, 3), torch.ones(5), ValueError, r"targets must .*\[5\] for \[4, 3\]"),
        (torch.ones(4, 3), torch.ones(4, 1), ValueError, r"targets must .*\[4, 1\] for \[4, 3\]"),
        (torch.ones(4, 3), torch.ones(4, 2), ValueError, r"targets must .*\[4, 2\] for \[4, 3\]"),
        ((torch.ones(4),), torch.ones(4), TypeError, "outputs must be a tensor, got tuple; pass"),
        (torch.ones(4, 3), [1, 2, 0, 1], TypeError, "targets must be a tensor, got list; pass"),
    ],
)  # fmt: skip
def test_what_does_not_fit(outputs: Any, targets: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        accuracy(outputs, targets)


def test_metrics_return_one_number() -> None:
    """Python's and numpy's count as well as tensors; all else is refused by name."""
    batch = (torch.ones(4, 4), torch.tensor([0, 1, 2, 0]))
    metrics = {"plain": lambda o, t: 0.25, "tensor": lambda o, t: torch.tensor([0.5])}
    found = make_tuner(val_loader=[batch], metrics=metrics).validate()
    assert (found["plain"], found["tensor"]) == (0.25, 0.5)
    tuner = make_tuner(val_loader=[batch], metrics={"rows": lambda o, t: o[:, 0]})
    with pytest.raises(TypeError, match=r"metrics\['rows'\] must return one number, got a tensor"):
        tuner.validate()
