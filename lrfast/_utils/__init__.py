"""Helpers that know nothing of lrfast."""
