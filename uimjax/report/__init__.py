"""Report: what a person reads."""
