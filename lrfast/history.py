"""Histories of fine-tuning runs."""

from lrfast.finetune._history import History, Stage

__all__ = ["History", "Stage"]
