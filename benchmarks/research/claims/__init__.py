"""What the literature says of schedules and of fine-tuning, tried on small real tasks.

``python -m benchmarks.research.claims --help`` has the options.
"""
