"""ABL's isolation: the loss that is held at a level, and a trigger that is found by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uimjax import training
from uimjax.errors import UnknownNameError, UsageError
from uimjax.mitigate import isolation
from uimjax.models import classifiers
from uimjax.steps import Recipe
from uimjax.task import Task

TASK = Task(lambda w, x: x * w**2)


@pytest.mark.parametrize(("kind", "values"), [("flooding", [0.8, 0.5, 2.0]), ("ascent", [-0.2, 0.0, 2.0])])
def test_below_the_level_the_loss_turns_round(kind, values):
    for loss, value in zip([0.2, 0.5, 2.0], values, strict=True):
        assert float(isolation.held(jnp.asarray(loss), 0.5, kind)) == pytest.approx(value)
    assert float(jax.grad(isolation.held)(0.2, 0.5, kind)) == -1
    assert float(jax.grad(isolation.held)(2.0, 0.5, kind)) == 1


@pytest.mark.parametrize("kind", isolation.KINDS)
def test_pictures_with_a_trigger_are_isolated(kind, rng):
    """Noisy pictures of ten classes that are hard to tell apart; 5% carry a bright quarter and the label 0."""
    means, labels = 0.25 * rng.normal(size=(10, 8, 8, 1)), rng.integers(10, size=1000)
    images = (means[labels] + rng.normal(size=(1000, 8, 8, 1))).astype(np.float32)
    images[:50, 4:, 4:], labels[:50] = 3.0, 0
    task, params = classifiers.build("mlp", (8, 8, 1), 10, 0)
    data = {"image": images, "label": labels.astype(np.int32)}
    early = Recipe(epochs=4, batch_size=50, learning_rate=1e-3, schedule="constant")
    found = isolation.isolate(task, params, data, early, share=0.05, kind=kind)
    assert np.mean(found.rows < 50) > 0.8
    assert (np.diff(found.losses[found.rows]) >= 0).all()
    late = Recipe(epochs=24, batch_size=50, learning_rate=1e-3, schedule="constant")
    found = isolation.isolate(task, params, data, late, share=0.05, kind=kind)
    assert found.losses[:50].mean() < 0.1
    assert found.losses[50:].mean() == pytest.approx(0.5, abs=0.2), "the others are held at the level"
    plain = training.fit(task, params, data, late).example_loss[-1]
    assert plain[50:].mean() < 0.2, "which a training without it does not do"


def test_what_makes_no_sense_is_refused():
    for wrong, error in (
        ({"kind": "flood"}, UnknownNameError),
        ({"share": 1.0}, UsageError),
        ({"level": 0.0}, UsageError),
    ):
        with pytest.raises(error):
            isolation.isolate(TASK, jnp.ones(()), np.ones(4, np.float32), Recipe(1, 2), **wrong)
