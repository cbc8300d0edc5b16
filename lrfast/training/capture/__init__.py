"""Whole training steps as CUDA graphs."""

from lrfast.training.capture._step import CapturedStep, RecaptureNeeded, capture

__all__ = ["CapturedStep", "RecaptureNeeded", "capture"]
