"""Timings of whole training steps."""
