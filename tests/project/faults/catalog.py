"""All seeded faults."""

from __future__ import annotations

from .in_csrc import IN_CSRC
from .in_lrfast import IN_LRFAST

FAULTS = [*IN_CSRC, *IN_LRFAST]
