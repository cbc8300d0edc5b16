"""Histories and range tests as data frames; needs ``pandas``."""

from __future__ import annotations

import pandas as pd

from lrfast.finetune._history import History
from lrfast.range_test import RangeTest


def steps(history: History) -> pd.DataFrame:
    """Return one row per step: "stage", "loss", "momentum" and the groups' rates "lr_0", ...

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


def epochs(history: History) -> pd.DataFrame:
    """Return one row per epoch, by the step at which it ended: what validation measured."""
    return pd.DataFrame(history.epochs).set_index("step") if history.epochs else pd.DataFrame()


def points(result: RangeTest) -> pd.DataFrame:
    """Return one row per point of a range test, by its rate: "loss", "smoothed", "derivative"."""
    columns = {"loss": result.losses, "smoothed": result.smoothed, "derivative": result.derivative}
    return pd.DataFrame(columns, index=pd.Index(result.lrs, name="lr"))


def suggestions(result: RangeTest) -> pd.DataFrame:
    """Return one row per rule: "lr", NaN where it declined, "confidence" and "reason"."""
    rows = {
        rule: (answer.lr, answer.confidence, answer.reason)
        for rule, answer in result.suggestions.items()
    }
    names = ["lr", "confidence", "reason"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=names)
    return frame.astype({"lr": float}).rename_axis("rule")
