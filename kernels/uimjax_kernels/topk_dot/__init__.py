"""Scaled products of queries and rows, keeping only the top k of both signs."""
