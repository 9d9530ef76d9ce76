"""CKA and principal angles: against n x n kernels and dense algebra, their invariances, and what they refuse."""

import tracemalloc

import numpy as np
import pytest

from uimjax.errors import NonFiniteError, ShapeError, UnknownNameError, UsageError
from uimjax.understand.representation.similarity import KINDS, cka, cka_matrix, principal_angles


def hsic_1(k, l):  # noqa: E741  # the formula's letter
    """Song et al. 2012, equation 5, by whole kernels."""
    n, ones = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    both = np.trace(k @ l) + (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return (both - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3))


def hsic_0(k, l):  # noqa: E741
    centre = np.eye(len(k)) - 1 / len(k)
    return np.trace(k @ centre @ l @ centre) / (len(k) - 1) ** 2


def by_kernels(x, y, kind, batch_size):
    """HSIC by its definition, on all rows or summed over batches."""
    parts = [slice(None)]
    if kind == "minibatch":
        parts = [slice(k, k + batch_size) for k in range(0, len(x) - batch_size + 1, batch_size)]
    hsic = hsic_0 if kind == "biased" else hsic_1

    def total(a, b):
        return sum(hsic(a[part] @ a[part].T, b[part] @ b[part].T) for part in parts)

    return total(x, y) / np.sqrt(total(x, x) * total(y, y))


@pytest.fixture
def pair(rng):
    x = rng.exponential(size=(50, 5))
    return x, np.tanh(x @ rng.normal(size=(5, 3))) + 0.3 * rng.normal(size=(50, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_as_whole_kernels_have_it(pair, kind):
    np.testing.assert_allclose(cka(*pair, kind, 8), by_kernels(*pair, kind, 8), rtol=1e-11)
    few = [each[:4] for each in pair]
    np.testing.assert_allclose(cka(*few, kind, 4), by_kernels(*few, kind, 4), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_how_rows_arrive_changes_nothing(pair, kind):
    x, y = pair
    wanted = cka(x, y, kind, 8)
    for cuts_x, cuts_y in (([3, 20], [49]), (list(range(1, 50)), [])):
        found = cka(iter(np.split(x, cuts_x)), np.split(y, cuts_y), kind, 8)
        np.testing.assert_allclose(found, wanted, rtol=1e-13)


@pytest.mark.parametrize("kind", ["biased", "unbiased"])
def test_the_order_of_rows_and_the_chunks_change_nothing(pair, kind, rng):
    order = rng.permutation(50)
    wanted = cka(*pair, kind)
    np.testing.assert_allclose(cka(*(each[order] for each in pair), kind), wanted, rtol=1e-12)
    np.testing.assert_allclose(cka(*pair, kind, batch_size=7), wanted, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_rotation_scale_and_shift_change_nothing(pair, kind, rng):
    x, y = pair
    turned = 0.01 * x @ np.linalg.qr(rng.normal(size=(5, 5)))[0] + 7
    np.testing.assert_allclose(cka(turned, y, kind, 8), cka(x, y, kind, 8), rtol=1e-9)
    np.testing.assert_allclose(cka(turned, x, kind, 8), 1, rtol=1e-9)
    np.testing.assert_allclose(cka(x + 1e6, y, kind, 8), cka(x, y, kind, 8), rtol=1e-7)


def test_of_independent_features_the_unbiased_kinds_say_none(rng):
    x, y = rng.normal(size=(400, 300)), rng.normal(size=(400, 300))
    assert cka(x, y, "biased") > 0.4
    assert abs(cka(x, y, "unbiased")) < 0.02
    assert abs(cka(x, y, "minibatch", 100)) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_is_all_the_pairs(pair, kind, rng):
    sets = [*pair, rng.normal(size=(50, 2))]
    found = cka_matrix([iter(np.array_split(each, k + 2)) for k, each in enumerate(sets)], kind, 8)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-14)
    for i in range(3):
        for j in range(i):
            np.testing.assert_allclose(found[i, j], cka(sets[i], sets[j], kind, 8), rtol=1e-13)


def test_memory_does_not_grow_with_the_rows(rng):
    x = rng.normal(size=(500, 8))
    tracemalloc.start()
    cka((x for _ in range(100)), (x[:, :4] for _ in range(100)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20  # all rows would be 5 MiB, and their kernel 19 GiB


def test_what_cka_refuses(pair):
    x, y = pair
    with pytest.raises(UnknownNameError, match="unknown kind of CKA 'unbised'. Did you mean 'unbiased'"):
        cka(x, y, "unbised")
    with pytest.raises(ShapeError, match="feature set 1 ends after 30 rows and set 0 goes on"):
        cka(x, y[:30], batch_size=8)
    with pytest.raises(ShapeError, match="feature set 0 ends after 48 rows and set 1 goes on"):
        cka(x[:48], y, batch_size=8)
    with pytest.raises(ShapeError, match="3 rows, and the unbiased CKA takes 4 or more"):
        cka(x[:3], y[:3])
    with pytest.raises(ShapeError, match="50 rows do not fill one batch of 256"):
        cka(x, y, "minibatch")
    with pytest.raises(UsageError, match="batch_size=3; HSIC_1 takes at least 4"):
        cka(x, y, "minibatch", 3)
    with pytest.raises(ShapeError, match="no feature sets"):
        cka_matrix([])
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        cka(x, y * np.nan)
    for kind in KINDS:
        with pytest.raises(NonFiniteError, match="feature set 1 is the same in all rows"):
            cka(x, np.full((50, 2), 0.1), kind, 8)


def test_angles_of_a_known_turn(rng):
    """Rows in the plane of the first two axes, against rows in that plane turned by 0.3 about the first axis."""
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]]
    x, y = (rng.normal(size=(n, 2)) @ np.eye(2, 4) for n in (30, 20))
    found = principal_angles(x, y @ turn, 2)
    assert found.space == "features"
    np.testing.assert_allclose(found.radians, [0.3, 0], atol=1e-12)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("width", [6, 4])
def test_angles_as_dense_algebra_has_them(rng, width, centred):
    x, y = rng.normal(size=(40, 6)) + 2, rng.normal(size=(40, width))
    found = principal_angles(x, y, 3, centred)
    bases = []
    for each in (x, y):
        each = each - each.mean(0) if centred else each
        kernel = each.T @ each if width == 6 else each @ each.T
        bases.append(np.linalg.eigh(kernel)[1][:, -3:])
    cosines = np.linalg.svd(bases[0].T @ bases[1])[1]
    np.testing.assert_allclose(np.cos(found.radians), cosines[::-1], rtol=1e-9)
    assert found.space == ("features" if width == 6 else "rows")


def test_angles_of_rows_do_not_change_under_maps_of_the_features(rng):
    x = rng.normal(size=(40, 3))
    found = principal_angles(x, x @ rng.normal(size=(3, 5)), 3)
    np.testing.assert_allclose(found.radians, 0, atol=1e-7)


def test_what_angles_refuse(rng):
    x = rng.normal(size=(20, 4))
    with pytest.raises(ShapeError, match=r"\[20, 4\] and \[19, 3\] share neither"):
        principal_angles(x, x[:19, :3], 2)
    for k in (0, 3):
        with pytest.raises(UsageError, match=rf"k={k} directions .* of rank 2; 1 to 2 were wanted"):
            principal_angles(x[:, :2] @ rng.normal(size=(2, 4)), x, k)
    with pytest.raises(ShapeError, match=r"the second features of shape \[20\]"):
        principal_angles(x, x[:, 0], 1)
