"""How well one trains with the rates that rules read off a range test.

``python -m benchmarks.suggestions --help`` has the options.
"""
