"""Tables of training dynamics: what is written is what is read, and what cannot be read says why."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import uimjax as uj
from uimjax.errors import (
    CorruptError,
    DataError,
    MismatchError,
    MissingFileError,
    OutputError,
    ShapeError,
    UnknownNameError,
    UsageError,
)
from uimjax.understand.dynamics import elsewhere
from uimjax.understand.dynamics import table as tables

N, CLASSES = 7, uj.dynamics.Collector(1).what


def statistics(seed=0):
    """Of seven examples over four epochs; the last is never met."""
    collector = uj.dynamics.Collector(N, ring=3, at=(1,))
    state, rng, update = collector.init(), np.random.default_rng(seed), jax.jit(collector.update)
    for epoch in range(4):
        logits = jnp.asarray(rng.normal(size=(N - 1, 3)), jnp.float32)
        state = update(
            state, jnp.asarray(rng.permutation(N - 1)), logits=logits, labels=jnp.arange(N - 1) % 3, epoch=epoch
        )
    return collector.finish(state)


def of_tokens(what):
    collector = uj.dynamics.Collector(3, what, tokens=4)
    rng = np.random.default_rng(0)
    labels = jnp.asarray([[0, 1, -1, -1], [2, 1, 0, 1]])
    logits = jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)
    return collector.finish(
        jax.jit(collector.update)(collector.init(), jnp.asarray([2, 0]), logits=logits, labels=labels)
    )


def equal(mine, theirs):
    for name in tables.PER_EXAMPLE:
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)
    assert mine.chosen == theirs.chosen
    for name in ("el2n", "grand"):
        np.testing.assert_array_equal(mine.at[name], theirs.at[name])
    np.testing.assert_array_equal(mine.losses, theirs.losses)
    assert (mine.tokens is None) == (theirs.tokens is None)
    if mine.tokens is not None:
        equal(mine.tokens, theirs.tokens)


def test_what_is_written_is_what_is_read(tmp_path):
    found = statistics()
    ids = [f"example {k}" for k in range(N)]
    how = uj.dynamics.Definitions(never_learned=float("inf"), variability="widened", el2n_squared=True)
    path = tables.write(tmp_path, found, run="r1", step=12, ids=ids, labels=np.arange(N) % 3, groups=["a"] * N,
                        seed=4, definitions=how, digests={"data": "12ab"}, margins="probabilities")  # fmt: skip
    assert path == tmp_path / "dynamics" / "step-00000012-seed-4.parquet"
    back = tables.read(path)
    equal(back.statistics, found)
    assert back.ids.tolist() == ids
    assert back.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert back.groups.tolist() == ["a"] * N
    np.testing.assert_array_equal(back.losses, found.losses)
    wanted = uj.dynamics.scores(found, how, "probabilities")
    assert wanted["aum"].formula == "mean of p_y - max_{k != y} p_k"
    assert list(back.scores) == list(wanted)
    for name, score in wanted.items():
        np.testing.assert_array_equal(back.scores[name].values, score.values, err_msg=name)
        assert back.scores[name][1:] == score[1:]
    told = back.metadata
    assert (told["run"], told["step"], told["seed"], told["missing"], told["repeated"]) == ("r1", 12, 4, 1, 0)
    assert told["definitions"] == {
        "never_learned": "infinity", "variability": "widened", "el2n_squared": True, "margins": "probabilities",
    }  # fmt: skip
    assert told["digests"] == {"data": "12ab"}
    assert told["uimjax"] == uj.__version__


def test_the_columns_are_plain_parquet(tmp_path):
    """What other readers see: keys, nulls where nothing was met, a list of losses."""
    held = parquet.read_table(tables.write(tmp_path, statistics(), run="r1", step=3))
    assert held.column_names[:4] == ["run", "step", "seed", "id"]
    assert held["run"].to_pylist() == ["r1"] * N
    assert held["id"].to_pylist() == list(range(N))
    assert held["aum"].to_pylist()[-1] is None
    assert held["aum"].null_count == 1
    assert len(held["losses"].to_pylist()[0]) == 3
    assert held["statistic_met"].to_pylist() == [4] * (N - 1) + [0]


@pytest.mark.parametrize("what", [CLASSES, ("loss",)])
def test_tokens_stand_beside(tmp_path, what):
    found = of_tokens(what)
    path = tables.write(tmp_path, found, run="r", step=0, ids=["x", "y", "z"])
    equal(tables.read(tmp_path).statistics, found)
    inner = parquet.read_table(tmp_path / "dynamics" / "step-00000000-tokens.parquet")
    keys = list(zip(inner["id"].to_pylist(), inner["position"].to_pylist(), strict=True))
    assert keys == [("x", 0), ("x", 1), ("x", 2), ("x", 3), ("z", 0), ("z", 1)]
    with pytest.raises(DataError, match="holds tokens; a table of examples was wanted"):
        tables.read(path.with_name("step-00000000-tokens.parquet"))
    path.with_name("step-00000000-tokens.parquet").unlink()
    with pytest.raises(MissingFileError, match="tokens.parquet is missing; write the statistics of that step again"):
        tables.read(path)


def test_the_newest_step_is_read_and_seeds_as_a_list(tmp_path):
    for step in (100, 20):
        for seed in (1, 0):
            tables.write(tmp_path, statistics(seed), run="r", step=step, seed=seed)
    assert tables.steps_of(tmp_path) == [20, 100]
    assert tables.read(tmp_path, seed=1).metadata["step"] == 100
    assert [t.metadata["seed"] for t in tables.read_seeds(tmp_path / "dynamics", 20)] == [0, 1]
    with pytest.raises(UsageError, match=r"step 100 of the seeds 0, 1; give seed=, or take all: read_seeds"):
        tables.read(tmp_path)
    with pytest.raises(UsageError, match="seed 7 is not among the seeds of step 20 in .*: 0, 1"):
        tables.read(tmp_path, 20, 7)
    with pytest.raises(UsageError, match="step 90 is not in .*; the nearest is 100 of 2: 20, 100"):
        tables.read(tmp_path, 90, 0)


def test_means_over_seeds(tmp_path):
    many = []
    for seed in range(3):
        tables.write(tmp_path, statistics(seed), run="r", step=1, seed=seed)
        many.append(statistics(seed))
    found = uj.dynamics.averaged(tables.read_seeds(tmp_path))
    for k in range(N - 1):
        slow = sum(float(s.el2n[k]) for s in many) / 3
        assert found.scores["el2n"].values[k] == pytest.approx(slow, rel=1e-12)
        assert found.statistics.el2n[k] == pytest.approx(slow, rel=1e-12)
        assert found.scores["correctness"].values[k] == pytest.approx(sum(int(s.correct[k]) for s in many) / 3)
    assert np.isnan(found.scores["el2n"].values[-1])
    assert found.metadata["seeds"] == [0, 1, 2]
    assert found.losses.shape == (N, 3)


def test_an_example_that_one_seed_never_met_is_a_mean_over_the_others():
    one, two = (tables.tabled(statistics(k), run="r", step=0) for k in range(2))
    values = one.scores["aum"].values.copy()
    values[0] = np.nan
    one.scores["aum"] = one.scores["aum"]._replace(values=values)
    assert uj.dynamics.averaged([one, two]).scores["aum"].values[0] == two.scores["aum"].values[0]


def test_averages_refuse_tables_that_do_not_belong_together():
    one = tables.tabled(statistics(), run="r", step=0)
    other = tables.tabled(statistics(), run="r", step=0, ids=np.arange(N) + 1, labels=np.arange(N))
    with pytest.raises(MismatchError, match="table 1 has other ids, labels than table 0"):
        uj.dynamics.averaged([one, other])
    squared = tables.tabled(statistics(), run="r", step=0, definitions=uj.dynamics.Definitions(el2n_squared=True))
    with pytest.raises(MismatchError, match="other definitions"):
        uj.dynamics.averaged([one, squared])
    with pytest.raises(UsageError, match="no tables arrived"):
        uj.dynamics.averaged([])


def test_what_was_written_stays(tmp_path):
    path = tables.write(tmp_path, statistics(), run="r", step=1)
    before = path.read_bytes()
    tables.write(tmp_path, statistics(), run="r", step=1)
    assert path.read_bytes() == before
    with pytest.raises(OutputError, match="is there already, with other rows: another run writes to this folder"):
        tables.write(tmp_path, statistics(1), run="r", step=1)
    assert path.read_bytes() == before
    tables.write(tmp_path, statistics(1), run="r", step=1, replace=True)
    equal(tables.read(path).statistics, statistics(1))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_columns_that_do_not_fit():
    found = statistics()
    with pytest.raises(ShapeError, match=r"labels of shape \[2\] arrived for the statistics of 7 examples"):
        tables.tabled(found, run="r", step=0, labels=[0, 1])
    with pytest.raises(DataError, match="id 3 names 2 examples; each id should name one"):
        tables.tabled(found, run="r", step=0, ids=[0, 1, 2, 3, 3, 5, 6])
    with pytest.raises(DataError, match="ids of type float64 arrived; integers or strings"):
        tables.tabled(found, run="r", step=0, ids=np.arange(N) / 2)
    with pytest.raises(UsageError, match="step=-1 arrived"):
        tables.tabled(found, run="r", step=-1)
    with pytest.raises(UnknownNameError, match="unknown kind of margin 'logit'. Did you mean 'logits'"):
        tables.tabled(found, run="r", step=0, margins="logit")


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(MissingFileError, match="holds no table of training dynamics"):
        tables.read(tmp_path)
    with pytest.raises(MissingFileError, match="holds no table of training dynamics"):
        tables.read(tmp_path / "nowhere")
    foreign = tmp_path / "step-00000001.parquet"
    parquet.write_table(pa.table({"id": [1]}), foreign)
    with pytest.raises(DataError, match="a Parquet file of something else; .*uimjax dynamics import LOG --out RUN"):
        tables.read(foreign)
    foreign.write_text("id,loss\n")
    with pytest.raises(CorruptError, match="is damaged or no Parquet file"):
        tables.read(foreign)


def test_a_later_version_is_refused(tmp_path):
    path = tables.write(tmp_path, statistics(), run="r", step=1)
    held = parquet.read_table(path)
    said = json.dumps(json.loads(held.schema.metadata[tables.HEADER]) | {"version": 99, "uimjax": "9.0"})
    head = {tables.HEADER: said, tables.DIGEST: tables._digest(said, held.column_names)}
    parquet.write_table(held.replace_schema_metadata(head), path)
    with pytest.raises(MismatchError, match=r"of version 99, written by uimjax 9.0; .* Install a newer uimjax"):
        tables.read(path)


def test_flipped_bytes_are_noticed_where_they_change_anything(tmp_path):
    path = tables.write(tmp_path, statistics(), run="r", step=1)
    whole, before = path.read_bytes(), parquet.read_table(path)
    noticed = 0
    for at in range(4, len(whole), 211):
        held = bytearray(whole)
        held[at] ^= 0xFF
        path.write_bytes(bytes(held))
        try:
            tables.read(path)
        except (CorruptError, DataError) as error:  # DataError: the name of the header itself is hit
            assert any(part in str(error) for part in ("is damaged", "of something else"))  # noqa: PT017  # one of two
            noticed += 1
        else:
            assert parquet.read_table(path).equals(before)  # bounds of pages, which nobody reads here
    assert noticed > 20


def test_a_table_of_the_first_version_is_read():
    found = tables.read(Path(__file__).parent / "version-1.parquet")
    assert (found.metadata["version"], found.metadata["run"]) == (1, "old")
    np.testing.assert_allclose(found.scores["el2n"].values, [0.63912909, 0.62121101, 1.14019668, 0.57902805])
    assert np.isnan(found.statistics.el2n_squared).all()
    assert found.statistics.lost.tolist() == [0] * 4


def test_means_over_seeds_are_of_counts_alone(tmp_path):
    """-1 says that there is no count: never right, or not collected."""
    one, two = statistics(0), statistics(1)
    one, two = (s._replace(first=np.where(s.met > 0, k, -1)) for k, s in ((2, one), (4, two)))
    one.first[0] = -1
    found = uj.dynamics.averaged([tables.tabled(s, run="r", step=0, seed=k) for k, s in enumerate((one, two))])
    np.testing.assert_array_equal(found.statistics.first, [4, 3, 3, 3, 3, 3, np.nan])
    assert found.statistics.met.tolist() == [4] * (N - 1) + [0]
    bare = tables.tabled(of_tokens(("loss",)), run="r", step=0)
    assert np.isnan(uj.dynamics.averaged([bare, bare]).statistics.correct).all()
    rows = [json.loads(x) for x in elsewhere.write_cartography(found, tmp_path / "map.jsonl").read_text().splitlines()]
    wanted = (np.stack([one.correct, two.correct]).mean(0))[: N - 1]
    assert [row["correctness"] for row in rows] == wanted.tolist()
    assert (wanted % 1 != 0).any()
    other = one._replace(losses=one.losses[:, 1:])
    with pytest.raises(MismatchError, match="table 1 has other rings than table 0"):
        uj.dynamics.averaged([tables.tabled(s, run="r", step=0) for s in (one, other)])


def test_a_map_that_is_written_and_read_says_the_same(tmp_path):
    mine = tables.tabled(statistics(), run="r", step=0)
    back = elsewhere.coordinates(elsewhere.write_cartography(mine, tmp_path / "map.jsonl"))
    for name in ("confidence", "variability", "correctness", "threshold_closeness"):
        np.testing.assert_allclose(back.scores[name].values, mine.scores[name].values[: N - 1], err_msg=name)


def test_steps_and_seeds_are_whole_numbers_of_any_kind_and_nothing_is_missing(tmp_path):
    seen = statistics()
    for seed in np.arange(2):
        path = tables.write(tmp_path, seen, run="r", step=np.int32(3), seed=seed)
        assert path.name == f"step-00000003-seed-{seed}.parquet"
    for wrong in ({"step": 3.0}, {"step": 3, "seed": "a"}):
        with pytest.raises(UsageError, match="whole numbers were wanted"):
            tables.tabled(seen, run="r", **wrong)
    for missing in (["a", None, *"bcdef"], [1.0, np.nan, 2.0, 3.0, 4.0, 5.0, 6.0]):
        with pytest.raises(DataError, match=r"labels: row 1 has none \(1 of 7\)"):
            tables.tabled(seen, run="r", step=3, labels=missing)
