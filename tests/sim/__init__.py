"""A CUDA device without a GPU: streams are queues that run in seeded random order (README.md)."""
