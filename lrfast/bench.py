"""Timing of an optimizer against lrfast, on equal work."""

from lrfast.tools.bench import BenchResult, bench

__all__ = ["BenchResult", "bench"]
