"""Turns committed results into docs/benchmarks.md, its plots, and a block of the README."""
