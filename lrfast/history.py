"""Histories of fine-tuning runs."""

from lrfast._utils.figures import FloatArray as FloatArray
from lrfast.finetune._history import History, Stage
from lrfast.finetune._history import epoch_row as epoch_row
from lrfast.finetune._history import floats as floats

__all__ = ["History", "Stage"]
