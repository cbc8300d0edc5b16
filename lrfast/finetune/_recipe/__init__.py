"""The recipe: a plan of two stages, its learning rates, and a report of what was done."""
