"""Diagnosis of an installation."""

from lrfast.tools.doctor import (
    NEEDED,
    OLDEST_TORCH,
    OPTIONAL,
    Diagnosis,
    Finding,
    Status,
    diagnose,
)

__all__ = ["NEEDED", "OLDEST_TORCH", "OPTIONAL", "Diagnosis", "Finding", "Status", "diagnose"]
