"""One line of numbers a checkpoint: each as its own function has it, and what is refused."""

import numpy as np
import pytest

from uimjax.errors import ShapeError, UsageError
from uimjax.understand.representation.moments import moments_of
from uimjax.understand.representation.series import over_series
from uimjax.understand.representation.similarity import cka
from uimjax.understand.representation.spectrum import spectrum_of_moments


@pytest.mark.parametrize("centred", [False, True])
def test_each_number_is_its_own_functions(rng, centred):
    x = rng.exponential(size=(60, 5))
    features = {0: rng.normal(size=(60, 4)), 10: x + rng.normal(size=(60, 5)), 20: x}
    given = ((step, np.split(each, [7, 33]) if step else each) for step, each in features.items())
    table = over_series(given, centred)
    assert [line["step"] for line in table] == [0, 10, 20]
    for line, each in zip(table, features.values(), strict=True):
        wanted = spectrum_of_moments(moments_of(each), centred)._asdict()
        assert set(line) == set(wanted) - {"singular_values"} | {"step", "cka_to_last"}
        for name in set(line) - {"step", "cka_to_last"}:
            np.testing.assert_allclose(line[name], wanted[name], rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(line["cka_to_last"], cka(each, x), rtol=1e-12)


def test_what_is_refused(rng):
    x = rng.normal(size=(20, 3))
    with pytest.raises(UsageError, match="no checkpoints"):
        over_series([])
    with pytest.raises(UsageError, match="features of step 5 can be read only once .generator."):
        over_series([(0, x), (5, (each for each in [x]))])
    with pytest.raises(ShapeError, match="feature set 1 ends after 19 rows"):
        over_series([(0, x), (5, x[:19])])
