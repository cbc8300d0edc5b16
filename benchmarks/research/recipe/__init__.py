"""What `FineTuner.recipe()` reaches, and what its defaults were chosen on.

``python -m benchmarks.research.recipe --help`` has the options.
"""
