"""Diagnosis of an installation."""

from lrfast.tools.doctor import NEEDED as NEEDED
from lrfast.tools.doctor import OLDEST_TORCH as OLDEST_TORCH
from lrfast.tools.doctor import OPTIONAL as OPTIONAL
from lrfast.tools.doctor import Diagnosis, Finding, diagnose
from lrfast.tools.doctor import Status as Status

__all__ = ["Diagnosis", "Finding", "diagnose"]
