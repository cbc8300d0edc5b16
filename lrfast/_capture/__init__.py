"""Whole training steps as CUDA graphs."""

from lrfast._capture._step import CapturedStep, RecaptureNeeded, capture

__all__ = ["CapturedStep", "RecaptureNeeded", "capture"]
