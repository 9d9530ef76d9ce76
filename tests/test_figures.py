"""Pictures of what is understood of a training: the SVG, the numbers in it, and the sentence that reads it."""

import csv
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from uimjax.errors import NonFiniteError, OutputError, ShapeError, UsageError
from uimjax.report import figures, figures_dynamics, figures_representation, figures_scaling

HOSTILE = [
    "</text><script>alert(1)</script>",
    "\x1b[31m\x00red",
    "\ud800half",
    "a.b[0]['c']\\",
    "=cmd()|' /C calc'!A0",
    "new\nline\ttab",
    "\u202eevil",
    "x" * 100_000,
    "datum.x + 1; ${signal}",
    '{"signal": "1"} & <b>',
    "",
    "same",
    "same",
]


def texts(figure: figures.Figure) -> list[str]:
    """What is written in a picture; it must be XML, of one size, with its sentence as the description."""
    root = ElementTree.fromstring(figure.svg)
    assert root.tag.endswith("svg")
    assert 200 < float(root.attrib["width"]) < 750
    assert not [e for e in root.iter() if e.tag.rpartition("}")[2] in ("script", "image", "a", "foreignObject")]
    reading = figure.reading
    assert reading.endswith(".")
    assert reading.isprintable()
    assert (root.attrib["role"], root.attrib["aria-label"]) == ("img", reading)
    return ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("text")]


def marks(figure: figures.Figure, kind: str) -> int:
    """How many marks of a kind, as "symbol", are drawn beside those of axes and legends."""
    root = ElementTree.fromstring(figure.svg)
    groups = [
        e for e in root.iter() if f"mark-{kind}" in e.attrib.get("class", "") and "role-mark" in e.attrib["class"]
    ]
    return sum(len(e) for e in groups)


def column(figure: figures.Figure, key: str, **only) -> list:
    return [row[key] for row in figure.rows if all(row[k] == v for k, v in only.items())]


# ---------------------------------------------------------------- the data map


def examples(rng, count=300):
    met = rng.random((count, 20)) * rng.random((count, 1))
    return met.mean(1), met.std(1), (met > 0.5).mean(1)


def by_hand(confidence, variability):
    """The regions, one example at a time."""
    count = len(confidence)
    third = count // 3
    spread, certain = stats.rankdata(variability), stats.rankdata(confidence)
    found = []
    for k in range(count):
        if spread[k] > count - third:
            found.append("ambiguous")
        elif certain[k] > count - third:
            found.append("easy-to-learn")
        else:
            found.append("hard-to-learn" if certain[k] <= third else "between")
    return found


def test_a_data_map_draws_and_counts_every_example(rng):
    confidence, variability, correctness = examples(rng)
    figure = figures_dynamics.data_map(confidence, variability, correctness)
    assert column(figure, "example") == list(range(300))
    assert column(figure, "confidence") == confidence.tolist()
    assert column(figure, "variability") == variability.tolist()
    assert column(figure, "correctness") == correctness.tolist()
    region = by_hand(confidence, variability)
    assert column(figure, "region") == region
    counted = {name: region.count(name) for name in set(region)}
    inside = {name: np.array(region) == name for name in counted}
    assert "Of 300 examples, by thirds of the ranks" in figure.reading
    least = f"{variability[inside['ambiguous']].min():.3g}"
    assert f"100 ambiguous (variability {least} and above)" in figure.reading
    assert f"{counted['easy-to-learn']} easy-to-learn (confidence" in figure.reading
    most = f"{confidence[inside['hard-to-learn']].max():.3g}"
    assert f"{counted['hard-to-learn']} hard-to-learn (confidence up to {most})" in figure.reading
    assert f"right in {correctness[inside['hard-to-learn']].mean():.0%} of epochs" in figure.reading
    written = texts(figure)
    for text in ("ambiguous", "easy-to-learn", "hard-to-learn", "correctness(share of epochs)"):
        assert text in written
    assert "confidence (mean probability of the label)" in written
    assert marks(figure, "symbol") == 300


def test_the_groups_of_a_data_map_are_told_apart(rng):
    confidence, variability, correctness = examples(rng)
    groups = ["flipped" if c < 0.12 else "clean" for c in confidence]
    figure = figures_dynamics.data_map(confidence, variability, correctness, groups)
    assert column(figure, "group") == groups
    hard = [g for g, r in zip(groups, by_hand(confidence, variability), strict=True) if r == "hard-to-learn"]
    told = f'"flipped" has the largest share of hard-to-learn, {hard.count("flipped")} of {groups.count("flipped")}'
    assert told in figure.reading
    assert {"clean", "flipped"} <= set(texts(figure))
    assert {colour.upper() for colour in re.findall(r'fill="(#[0-9a-fA-F]{6})"', figure.svg)} >= set(
        figures.COLOURS[:2]
    )


def test_of_many_groups_the_smallest_are_one(rng):
    confidence, variability, correctness = examples(rng)
    groups = [f"source {min(int(k**0.5), 11)}" for k in range(300)]
    figure = figures_dynamics.data_map(confidence, variability, correctness, groups)
    largest = sorted(set(groups), key=lambda g: -groups.count(g))[:6]
    assert [g if g in largest else "6 other groups" for g in groups] == column(figure, "group")
    assert set(texts(figure)) >= {*largest, "6 other groups"}


def test_a_large_data_map_is_sampled_and_counted_whole(rng):
    confidence, variability, correctness = examples(rng, 6000)
    figure = figures_dynamics.data_map(confidence, variability, correctness)
    other = figures_dynamics.data_map(confidence, variability, correctness, seed=1)
    assert figure.rows != other.rows
    assert figure.reading == other.reading
    assert len(figure.rows) == len({row["example"] for row in figure.rows}) == 5000
    assert all(row["confidence"] == confidence[row["example"]] for row in figure.rows)
    assert figure.reading.startswith("Of 6,000 examples")
    assert figure.reading.endswith("; a sample of 5,000 is drawn.")
    assert len(figure.svg) < 1.2e6


def test_a_data_map_of_one_example_is_drawn():
    assert "1 ambiguous" in figures_dynamics.data_map([0.5], [0.0], [1]).reading


# ---------------------------------------------------------------- trajectories and detection


def test_trajectories_are_drawn_with_their_bands(rng):
    curves = np.array([[2.0, 1.0, 0.25], [2.5, 2.25, 2.0]])
    figure = figures_dynamics.trajectories(
        [0, 10, 20], curves, ["early", "never"], [750, 250], curves - 0.1, curves + 0.1, "interquartile range"
    )
    early = {"cluster": "early (n = 750)"}
    assert column(figure, "step", **early) == [0, 10, 20]
    assert column(figure, "mean") == curves.reshape(-1).tolist()
    np.testing.assert_array_equal(column(figure, "low"), (curves - 0.1).reshape(-1))
    np.testing.assert_array_equal(column(figure, "high"), (curves + 0.1).reshape(-1))
    assert figure.reading == (
        'From step 0 to 20, "never (n = 250)" ends highest of 2 clusters, its mean loss going from 2.5 to 2, and '
        '"early (n = 750)" ends lowest, from 2 to 0.25; the largest, "early (n = 750)", holds 75% of 1,000 examples; '
        "the band is the interquartile range."
    )
    assert set(texts(figure)) >= {"early (n = 750)", "never (n = 250)", "step", "loss (nats)"}
    assert (marks(figure, "line"), marks(figure, "area")) == (2, 2)
    long = figures_dynamics.trajectories(np.arange(20_000), rng.random((2, 20_000)), ["a", "b"])
    assert len(long.rows) == 5000
    assert column(long, "step", cluster="a")[-1] == 19_999
    assert "2,500 of 20,000 steps are drawn" in long.reading


def test_detection_is_sorted_and_held_against_chance():
    figure = figures_dynamics.detection(
        ["forgetting", "AUM", "GraNd"], [0.9, 0.98, 0.48], [0.85, 0.97, 0.45], [0.94, 0.99, 0.53], "flips", "95%"
    )
    assert column(figure, "score") == ["AUM", "forgetting", "GraNd"]
    assert column(figure, "auroc") == [0.98, 0.9, 0.48]
    assert column(figure, "low") == [0.97, 0.85, 0.45]
    assert column(figure, "high") == [0.99, 0.94, 0.53]
    assert figure.reading == (
        "AUM finds flips best, with an area of 0.98 (0.97 to 0.99), GraNd worst of 3 scores, with 0.48 (0.45 to 0.53); "
        "1 of 3 intervals include 0.5, which is chance (95%)."
    )
    written = texts(figure)
    assert [t for t in written if t in ("AUM", "forgetting", "GraNd")] == ["AUM", "forgetting", "GraNd"]
    assert "0.4" in [t.rstrip("0") for t in written]
    assert marks(figure, "symbol") == 3
    plain = figures_dynamics.detection(["a", "b"], [0.3, 0.6])
    assert "1 of 2 is not above 0.5" in plain.reading
    assert "low" not in plain.rows[0]


# ---------------------------------------------------------------- representation


def test_spectra_are_drawn_from_the_largest_down(rng):
    early, late = rng.random(64) + 1, np.arange(1, 33.0) ** -2
    figure = figures_representation.spectrum({"step 0": early, "step 10": late})
    assert column(figure, "value", name="step 0") == sorted(early, reverse=True)
    assert column(figure, "rank", name="step 10") == list(range(1, 33))
    counted = []
    for values in (early, late):
        squares = sorted(values**2, reverse=True)
        counted.append(next(k for k in range(1, 65) if sum(squares[:k]) >= 0.9 * sum(squares)))
    assert figure.reading == (
        f'90% of the sum of squares is held by the first {counted[0]} of 64 in "step 0" and by the first {counted[1]} '
        f'of 32 in "step 10", where the largest singular value goes from {early.max():.3g} to 1.'
    )
    assert set(texts(figure)) >= {"step 0", "step 10", "rank", "singular value"}
    assert marks(figure, "line") == 2


def test_zeros_have_no_place_in_a_spectrum():
    figure = figures_representation.spectrum({"only": [0.0, 4.0, 3.0, 0.0]})
    assert column(figure, "value") == [4, 3]
    assert figure.reading == (
        'In "only" the largest singular value is 4, and the first 2 of 4 hold 90% of the sum of squares; 2 zeros are '
        "not drawn."
    )


def test_a_long_spectrum_is_thinned_evenly_on_its_axis():
    figure = figures_representation.spectrum({"a": np.arange(1, 9001.0), "b": [1.0]})
    ranks = column(figure, "rank", name="a")
    assert ranks[:40] == list(range(1, 41))
    assert ranks[-1] == 9000
    assert len(figure.rows) <= 5000
    assert "some ranks are drawn" in figure.reading


def test_a_density_says_how_much_is_negative():
    grid = np.linspace(-2, 6, 1601)
    values = 0.75 * stats.norm.pdf(grid, 1, 0.3) + 0.25 * stats.norm.pdf(grid, -1, 0.2)
    figure = figures_representation.density(grid, values, values / 10)
    np.testing.assert_array_equal(column(figure, "eigenvalue"), grid)
    np.testing.assert_array_equal(column(figure, "density"), values)
    np.testing.assert_array_equal(column(figure, "error"), values / 10)
    assert figure.reading == (
        "From -2 to 6 the density peaks at 1, and 25.0% of it lies below 0; the band is one standard error to either "
        "side."
    )
    assert set(texts(figure)) >= {"eigenvalue of the Hessian", "density", "0.01", "1e-6"}
    zero = np.where(np.abs(grid - 1) < 0.5, values, 0)  # nothing between: drawn out of sight, listed as it is
    assert 0 in column(figures_representation.density(grid, zero), "density")
    assert "100.0% of it lies below 0" in figures_representation.density(grid - 9, values).reading
    known = figures_representation.density(grid, values, below=0.25)  # smoothing spreads a peak at 0 to both sides
    assert "25.0% of the eigenvalues lie below 0" in known.reading


def test_a_matrix_prints_its_numbers():
    values = [[1, 0.75, 0.125], [0.75, 1, 0.5], [0.125, 0.5, 1]]
    figure = figures_representation.matrix(values, ["a", "b", "c"])
    assert column(figure, "value") == sum(values, [])
    assert [(row["row"], row["column"]) for row in figure.rows][:4] == [("a", "a"), ("a", "b"), ("a", "c"), ("b", "a")]
    assert figure.reading == (
        'Of 3 pairs "a" and "b" (0.75) are most alike by CKA and "a" and "c" (0.125) least, the median being 0.5.'
    )
    written = texts(figure)
    assert (written.count("0.75"), written.count("0.50"), written.count("a")) == (2, 2, 2)
    assert written.count("1.00") == 3
    across = figures_representation.matrix([[0.5, -0.25]], ["a"], ["x", "y"], "unbiased CKA")
    assert '"a" and "y" (-0.25) least' in across.reading
    assert {"a", "x", "y", "unbiased CKA"} <= set(texts(across))
    large = figures_representation.matrix(np.eye(13), [f"layer {k}" for k in range(13)])
    assert "1.00" not in texts(large)


def test_quantities_have_a_panel_each():
    x = [0.0, 0.2, 0.4]
    given = {"SVE": ([3, 3.2, 3.5], [2.9, 3.1, 3.4], [3.1, 3.3, 3.6]), "LSVR": ([2, 1.5, 1.75], [1, 1, 1], [3, 3, 3])}
    figure = figures_representation.against(x, given, "label noise", "standard error over 5 seeds")
    for name, arrays in given.items():
        assert column(figure, "x", quantity=name) == x
        for part, values in zip(("mean", "low", "high"), arrays, strict=True):
            assert column(figure, part, quantity=name) == values
    assert figure.reading == (
        "As label noise goes from 0 to 0.4, SVE rises from 3 to 3.5 (bands apart) and LSVR falls from 2 to 1.75 (bands "
        "overlap); bands: standard error over 5 seeds."
    )
    assert set(texts(figure)) >= {"SVE", "LSVR", "label noise"}
    assert marks(figure, "area") == 2


# ---------------------------------------------------------------- scaling


def law(x):
    return 2 + 100 * np.asarray(x) ** -0.15


def test_a_law_is_read_against_what_was_held_out():
    x = np.geomspace(1e17, 1e22, 50)
    curve = figures_scaling.Law(x, law(x), 0.95 * law(x), 1.05 * law(x))
    at = np.geomspace(1e17, 1e20, 4)
    points = [
        (a, law(a) * off, f"N = {k % 2}") for k, (a, off) in enumerate(zip(at, [1, 1.01, 0.99, 1.03], strict=True))
    ]
    held = [figures_scaling.HeldOut(1e21, 2.5, 2.4, 2.6, "7B"), (1e22, 2.75, 2.25, 2.5, "30B")]
    figure = figures_scaling.scaling(points, curve, held)
    assert column(figure, "x", kind="fitted") == at.tolist()
    assert column(figure, "loss", kind="fitted") == [p[1] for p in points]
    assert column(figure, "label", kind="fitted") == ["N = 0", "N = 1", "N = 0", "N = 1"]
    drawn = [
        [row[k] for k in ("x", "loss", "low", "high", "label")] for row in figure.rows if row["kind"] == "held out"
    ]
    assert drawn == [list(h) for h in held]
    for name, values in zip(("x", "loss", "low", "high"), curve, strict=True):
        assert column(figure, name, kind="law") == values.tolist()
    assert figure.reading == (
        "The law is fitted to 4 runs, from 1e17 to 1e20 in training compute (FLOPs), whose losses are 1.00% off it in "
        'the median; of 2 held out, 1 lies inside the predicted interval, and the largest, "30B" at 1e22, has a loss '
        "of 2.75, above its interval (2.25 to 2.5)."
    )
    assert set(texts(figure)) >= {"N = 0", "N = 1", "held out", "1e18", "1e21", "loss (nats per token)"}
    assert (marks(figure, "symbol"), marks(figure, "area"), marks(figure, "rule")) == (6, 1, 2)
    one = figures_scaling.scaling(points, curve, held[:1]).reading
    assert one.endswith('; the run held out, "7B" at 1e21, has a loss of 2.5, inside its interval (2.4 to 2.6).')
    none = figures_scaling.scaling([(a, b, "") for a, b, _ in points], curve)
    end = float(law(1e22))
    assert none.reading.endswith(f"{end:.3g} (bootstrap band {0.95 * end:.3g} to {1.05 * end:.3g}) at 1e22.")
    assert "fitted" in texts(none)


def test_isoflop_profiles_give_the_power_of_compute():
    profiles = []
    for compute in (1e20, 1e18, 1e19):
        best = 1e8 * (compute / 1e18) ** 0.5
        sizes, fine = best * np.array([0.25, 1, 4]), best * np.geomspace(0.25, 4, 20)
        least = 3 - np.log10(compute / 1e18) / 4
        losses, curve = (least + 0.1 * np.log(n / best) ** 2 for n in (sizes, fine))
        profiles.append(figures_scaling.Profile(compute, sizes, losses, fine, curve, best, least))
    figure = figures_scaling.isoflop(profiles)
    assert column(figure, "compute", kind="minimum") == [1e18, 1e19, 1e20]
    for p in profiles:
        assert column(figure, "size", kind="run", compute=p.compute) == p.sizes.tolist()
        assert column(figure, "loss", kind="run", compute=p.compute) == p.losses.tolist()
        assert column(figure, "loss", kind="curve", compute=p.compute) == p.curve_losses.tolist()
    assert figure.reading == (
        "From 1e18 to 1e20 FLOPs the size of least loss goes from 1e8 to 1e9, as compute to the power 0.50 over 3 "
        "budgets, and the least loss from 3 to 2.5."
    )
    assert set(texts(figure)) >= {"1e18", "1e19", "1e20", "compute (FLOPs)", "model size (parameters)"}
    assert (marks(figure, "line"), marks(figure, "symbol")) == (3, 12)
    edge = profiles[0]._replace(best_size=profiles[0].sizes[-1])
    assert "; 1 of 2 minima is not between the sizes" in figures_scaling.isoflop([edge, profiles[1]]).reading
    alone = figures_scaling.isoflop(profiles[1:2]).reading
    assert alone == "At 1e18 FLOPs the loss is least, 3, at a size of 1e8."


# ---------------------------------------------------------------- what all pictures share


def test_a_picture_is_the_same_each_time(rng):
    values = rng.random((3, 40))
    for draw in (
        lambda: figures_dynamics.data_map(*values),
        lambda: figures_representation.density(np.arange(40), values[0], values[1]),
        lambda: figures_representation.against(np.arange(40), {"a": (values[0], values[0], values[0] + 1)}),
    ):
        assert draw() == draw()
    one, other = (figures_dynamics.data_map(*values[:, :n]).svg for n in (20, 30))
    names = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (one, other)]
    assert all(names)
    assert not names[0] & names[1]  # in one page they would be mixed up
    assert all(f"url(#{name})" in one for name in names[0])


# ---------------------------------------------------------------- what users name


def hostile(rng):
    """Every picture, with every name and title that a user gives."""
    count, title = len(HOSTILE), HOSTILE[0]
    one = rng.random(count)
    ends = rng.random(3), np.zeros(3), np.ones(3)
    yield figures_dynamics.data_map(one, one, one, HOSTILE)
    yield figures_dynamics.trajectories([0, 1], rng.random((count, 2)), HOSTILE, x_title=title, y_title=HOSTILE[8])
    yield figures_dynamics.detection(HOSTILE, one, target=title)
    yield figures_representation.spectrum({name: [3, 1] for name in HOSTILE}, title)
    yield figures_representation.density([0, 1], [1, 2], [0, 0], title, HOSTILE[1])
    yield figures_representation.matrix(rng.random((count, count)), HOSTILE, title=HOSTILE[9])
    yield figures_representation.against([0, 1, 2], {name: ends for name in HOSTILE}, title, HOSTILE[1])
    points = [(1.0 + k, 2.0, name) for k, name in enumerate(HOSTILE[:4])]
    held = [(9.0, 1.0, 0.5, 2.0, HOSTILE[4])]
    yield figures_scaling.scaling(points, ([1, 9], [2, 1], [1, 1], [3, 2]), held, title, HOSTILE[8], HOSTILE[1])
    yield figures_scaling.isoflop([(1e18, [1, 2], [1, 2], [1, 2], [1, 2], 1, 1)], title, HOSTILE[8])


def test_names_are_shown_and_never_run(rng, tmp_path):
    for number, figure in enumerate(hostile(rng)):
        assert texts(figure)
        assert "<script" not in figure.svg
        _, table, _ = figures.write(figure, tmp_path, f"picture {number}")
        assert not set(table.read_text()) & set("\x00\x1b\u202e")
        with table.open(newline="") as file:
            assert not any(cell.startswith(("=", "@")) for line in csv.reader(file) for cell in line)


def test_names_that_are_shown_alike_are_told_apart():
    same = "x" * 200
    shown = figures.labels("names", ["a", "a", same + "1" + same, same + "2" + same, "a\n", ""])
    assert shown[:2] == ["a", "a (2)"]
    assert shown[4:] == ["a[U+000A]", "(no name)"]
    assert len(set(shown)) == 6
    assert max(map(len, shown)) < 90
    figure = figures_dynamics.detection(["a", "a"], [0.5, 0.75])
    assert marks(figure, "symbol") == 2
    assert {"a", "a (2)"} <= set(texts(figure))


# ---------------------------------------------------------------- files


def test_a_picture_is_written_as_three_files(tmp_path):
    figure = figures_dynamics.trajectories([0, 1], [[0.1, 1e-20]], ['=1+1, or "two"'])
    paths = figures.write(figure, tmp_path / "new", "curves")
    assert [p.name for p in paths] == ["curves.svg", "curves.csv", "curves.txt"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["curves.csv", "curves.svg", "curves.txt"]
    assert paths[0].read_text() == figure.svg
    assert paths[2].read_text() == figure.reading + "\n"
    with paths[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean"]) for row in rows] == [0.1, 1e-20]
    assert rows[0]["cluster"] == '\'=1+1, or "two"'
    for name in ("", "a/b", "..", ".hidden", "a\0b"):
        with pytest.raises(UsageError, match="as the name of a picture"):
            figures.write(figure, tmp_path, name)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write to"):
        figures.write(figure, tmp_path / "file", "curves")


def test_rows_of_several_kinds_share_a_table(tmp_path):
    figure = figures_scaling.scaling([(1, 2, "a")], ([1, 2], [2, 2], [1, 1], [3, 3]))
    with figures.write(figure, tmp_path, "law")[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["fitted", "law", "law"]
    assert [row["low"] for row in rows] == ["", "1.0", "1.0"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.12345, "0.123"),
        (-2.5, "-2.5"),
        (99.96, "100"),
        (1234.5, "1,234"),
        (6e18, "6e18"),
        (1.23e-7, "1.23e-7"),
    ],
)
def test_numbers_are_short(value, shown):
    assert figures.short(value) == shown


@pytest.mark.parametrize(("low", "high"), [(2.0, 2.6), (1.0, 9.0), (1, 512), (1e17, 1e23), (1e-9, 1e12), (0.99, 1.01)])
def test_a_logarithmic_axis_has_a_handful_of_ticks(low, high):
    ticks = figures._ticks(low, high)
    assert 3 <= len(ticks) <= 10
    assert all(low <= tick <= high for tick in ticks)
    assert all(float(f"{tick:.4g}") == tick for tick in ticks)


# ---------------------------------------------------------------- refusals

ONES = np.ones(3)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ShapeError, r"confidence of shape \[0\] arrived, which is empty",
         lambda: figures_dynamics.data_map([], [], [])),
        (ShapeError, r"variability of shape \[2\] arrived; \[3\] was",
         lambda: figures_dynamics.data_map(ONES, [0, 0], ONES)),
        (ShapeError, r"2 groups arrived; \[3\]", lambda: figures_dynamics.data_map(ONES, ONES, ONES, ["a", "b"])),
        (NonFiniteError, r"correctness has 1 of 3 values NaN.* first at \[1\]",
         lambda: figures_dynamics.data_map(ONES, ONES, [1, np.nan, 1])),
        (UsageError, "correctness goes from 4 to 5; values from 0 to 1 .*divide a count",
         lambda: figures_dynamics.data_map(ONES, ONES, [4, 5, 5])),
        (UsageError, r"variability goes from -1 to 1; values from 0 on",
         lambda: figures_dynamics.data_map(ONES, [-1, 0, 1], ONES)),
        (ShapeError, "confidence: could not convert", lambda: figures_dynamics.data_map(["x"], [1], [1])),
        (UsageError, "steps does not rise: 1 is followed by 1",
         lambda: figures_dynamics.trajectories([0, 1, 1], [ONES], ["a"])),
        (ShapeError, r"curves of shape \[3\] arrived; \[K, 3\]",
         lambda: figures_dynamics.trajectories([0, 1, 2], ONES, ["a"])),
        (ShapeError, r"2 names arrived; \[1\]", lambda: figures_dynamics.trajectories([0, 1, 2], [ONES], ["a", "b"])),
        (ShapeError, "one end of an interval",
         lambda: figures_dynamics.trajectories([0, 1, 2], [ONES], ["a"], low=[ONES])),
        (UsageError, "low lies above high in 1 places",
         lambda: figures_dynamics.detection(["a"], [0.5], [0.6], [0.4])),
        (ShapeError, r"1 names arrived; \[3\]", lambda: figures_dynamics.detection("abc", ONES)),
        (ShapeError, "0 spectra arrived", lambda: figures_representation.spectrum({})),
        (UsageError, "singular value of a: 2 zeros", lambda: figures_representation.spectrum({"a": [0, 0]})),
        (NonFiniteError, "singular value of a has 1 of 2", lambda: figures_representation.spectrum({"a": [1, np.inf]})),
        (UsageError, "the density is 0 throughout", lambda: figures_representation.density([0, 1], [0, 0])),
        (ShapeError, r"errors of shape \[1\] arrived; \[2\]",
         lambda: figures_representation.density([0, 1], [1, 1], [1])),
        (ShapeError, r"CKA of shape \[2, 2\] arrived; \[3, 3\]",
         lambda: figures_representation.matrix(np.eye(2), ["a", "b", "c"])),
        (UsageError, "CKA of 80 x 80; at most 5,000 cells",
         lambda: figures_representation.matrix(np.eye(80), [f"{k}" for k in range(80)])),
        (ShapeError, "SVE: 2 arrays arrived", lambda: figures_representation.against([0], {"SVE": ([1], [1])})),
        (ShapeError, "0 quantities arrived", lambda: figures_representation.against([0], {})),
        (ShapeError, "0 points arrived", lambda: figures_scaling.scaling([], ([1], [1], [1], [1]))),
        (UsageError, "loss of the points goes down to 0; values above 0",
         lambda: figures_scaling.scaling([(1, 0, "")], ([1], [1], [1], [1]))),
        (ShapeError, "a curve of 2 arrays", lambda: figures_scaling.scaling([(1, 1, "")], ([1], [1]))),
        (UsageError, "x of the curve begins at 0", lambda: figures_scaling.scaling([(1, 1, "")], ([0], [1], [1], [1]))),
        (NonFiniteError, "the held-out runs .* has 1 of 4",
         lambda: figures_scaling.scaling([(1, 1, "")], ([1], [1], [1], [1]), [(1, np.nan, 1, 1, "")])),
        (ShapeError, "0 profiles arrived", lambda: figures_scaling.isoflop([])),
        (UsageError, "a compute budget arrived twice",
         lambda: figures_scaling.isoflop([(1e18, [1, 2], [1, 2], [1, 2], [1, 2], 1, 1)] * 2)),
        (ShapeError, r"losses of the budget 1 of shape \[1\] arrived; \[2\]",
         lambda: figures_scaling.isoflop([(1, [1, 2], [1], [1, 2], [1, 2], 1, 1)])),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(error, match, call):
    with pytest.raises(error, match=match):
        call()
