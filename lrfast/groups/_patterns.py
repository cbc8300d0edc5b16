"""Name patterns: globs that pick parameters by name, or all of a module by its path."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate

CATCH_ALL = "*"


def compile_pattern(pattern: str) -> Callable[[str], object]:
    """Return a test for parameter names.

    A glob, whose ``*`` also matches dots, matches the whole name of a parameter or the whole path
    of a module that holds it: ``layers.1`` picks ``layers.1.fc.weight`` but not
    ``layers.10.fc.weight``. Case counts.
    """
    return re.compile(f"(?:{translate(pattern)})|(?:{translate(pattern + '.*')})").match
