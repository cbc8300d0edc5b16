"""Norms and learning rates that an optimizer records."""

from lrfast.optim._optimizer import Telemetry

__all__ = ["Telemetry"]
