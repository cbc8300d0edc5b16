"""The command line."""

from lrfast.tools.cli import main

__all__ = ["main"]
