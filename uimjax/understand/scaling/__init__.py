"""Scaling laws: forms, fits with honest intervals, predictions, allocations, and the sweeps that feed them."""
