"""The range test within the warm-up against the separate one, on tasks of the study."""
