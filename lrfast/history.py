"""Histories of fine-tuning runs."""

from lrfast.finetune._history import FloatArray, History, Stage, epoch_row, floats

__all__ = ["FloatArray", "History", "Stage", "epoch_row", "floats"]
