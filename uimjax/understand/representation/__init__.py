"""Representations and the curvature at them: spectra, similarities, dimensions, sharpness."""
