"""The dynamics of training: what each example does to the loss, step by step, in fixed memory per example."""
