"""Mitigate: from traced rows to an edit, from an edit to new parameters, from those to a verdict with controls."""
