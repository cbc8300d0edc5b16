"""Pages made of committed results: docs/benchmarks.md and performance.md, a block of the README."""
