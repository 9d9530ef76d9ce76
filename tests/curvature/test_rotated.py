"""What a curvature in its own basis does to gradients of rank one, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uimjax.curvature import rotated
from uimjax.curvature.rotated import Outer, Rotated


@pytest.mark.parametrize("power", [0.0, -1.0, -2.0])
def test_squares_of_outer_products_are_finite_and_right_at_the_size_of_real_layers(power, rng):
    """At power 0 the weights are ones, and XLA:CPU's product with that constant held NaN now and then."""
    sizes = {"one": (784, 512), "two": (512, 512)}
    values = {path: rng.random((1, *shape)).astype(np.float32) for path, shape in sizes.items()}
    held = {path: rng.normal(size=(100, 1, i + o)).astype(np.float32) for path, (i, o) in sizes.items()}
    inverse = Rotated({}, {path: jnp.asarray(x) for path, x in values.items()}, dict.fromkeys(sizes, 0.1))
    inside = {path: Outer(*(jnp.asarray(x) for x in np.split(held[path], [i], 2))) for path, (i, _) in sizes.items()}
    program = jax.jit(lambda inverse, inside: rotated.square(inverse, inside, power))
    for _ in range(3):
        for path, got in program(inverse, inside).items():
            a, g = (np.asarray(x, np.float64)[:, 0] ** 2 for x in inside[path])
            want = np.einsum("bi,io,bo->b", a, (values[path][0].astype(np.float64) + 0.1) ** power, g)
            np.testing.assert_allclose(got, want, rtol=1e-4)
