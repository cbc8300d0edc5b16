"""Norms and learning rates that an optimizer records."""

from lrfast.optim._telemetry import Telemetry

__all__ = ["Telemetry"]
