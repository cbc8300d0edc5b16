"""Histories and range tests as data frames; needs ``pandas``."""

from __future__ import annotations

from lrfast._utils.arguments import checked
from lrfast._utils.optional import importing
from lrfast.finetune._history import History
from lrfast.range_test import RangeTest

with importing("lrfast.integrations.tables needs pandas", "pandas", extra="pandas"):
    import pandas as pd

__all__ = ["epochs", "points", "steps", "suggestions"]


@checked
def steps(history: History) -> pd.DataFrame:
    """Return one row per step: "stage", "loss", "momentum" and the learning rates "lr_0", ...

    Example:
        >>> steps(History()).shape
        (0, 0)
    """
    frames = []
    for stage in history.stages:
        columns = {"loss": stage.losses, "momentum": stage.momentum}
        columns |= {f"lr_{g}": stage.rates[:, g] for g in range(stage.rates.shape[1])}
        frame = pd.DataFrame(columns)
        frame.insert(0, "stage", stage.name)
        frames.append(frame)
    together = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return together.rename_axis("step")


@checked
def epochs(history: History) -> pd.DataFrame:
    """Return one row of validation results per epoch, indexed by its last step."""
    return pd.DataFrame(history.epochs).set_index("step") if history.epochs else pd.DataFrame()


@checked
def points(result: RangeTest) -> pd.DataFrame:
    """Return "loss", "smoothed" and "derivative" of each point, indexed by its learning rate."""
    columns = {"loss": result.losses, "smoothed": result.smoothed, "derivative": result.derivative}
    return pd.DataFrame(columns, index=pd.Index(result.lrs, name="lr"))


@checked
def suggestions(result: RangeTest) -> pd.DataFrame:
    """Return "lr" (NaN: no suggestion), "confidence" and "reason" of each suggestion method."""
    names = ["lr", "confidence", "reason"]
    rows = [[getattr(answer, name) for name in names] for answer in result.suggestions.values()]
    frame = pd.DataFrame(rows, index=list(result.suggestions), columns=names)
    return frame.astype({"lr": float}).rename_axis("rule")
