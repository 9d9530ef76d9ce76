"""Squares of per-example gradients, summed over examples, without a gradient an example in memory."""
