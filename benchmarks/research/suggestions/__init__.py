"""How well one trains with the rates that rules read off a range test.

``python -m benchmarks.research.suggestions --help`` has the options.
"""
