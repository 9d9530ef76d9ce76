"""Audit: one file a weakness, and the scorecard."""
