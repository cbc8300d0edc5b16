"""Diagnosis of an installation."""

from lrfast.tools.doctor import Diagnosis, Finding, diagnose

__all__ = ["Diagnosis", "Finding", "diagnose"]
