"""Representations and the curvature at them, against slow twins and known numbers."""
