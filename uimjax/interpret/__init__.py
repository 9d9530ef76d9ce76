"""Interpret: from a failure to the training rows that caused it."""
