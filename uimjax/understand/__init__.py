"""Understand: what happens to each example in training, what representations are like, how losses grow with scale."""
