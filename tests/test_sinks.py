"""What a run writes, read back by TensorBoard's own readers and as JSON."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.histogram import summary_v2
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard.summary.writer import event_file_writer
from tensorboard.util import tensor_util

from uimjax.errors import MalformedRowError, NonFiniteError, OutputError, ShapeError, UsageError
from uimjax.sinks import BUCKETS, JsonLines, Recorder, TensorBoard, buckets


@pytest.fixture(autouse=True)
def _files_in_order(monkeypatch):
    """Files opened in the same second, as tests do, are told apart by a number that sorts as text does: 10 before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def accumulated(folder) -> EventAccumulator:
    """As the server of TensorBoard reads a run."""
    found = EventAccumulator(str(folder), tensor_size_guidance={k: 0 for k in ("scalars", "histograms", "text")})
    found.Reload()
    return found


def tensors(folder, tag) -> list[tuple[int, np.ndarray]]:
    return [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in accumulated(folder).Tensors(tag)]


def plugin(folder, tag) -> str:
    return accumulated(folder).SummaryMetadata(tag).plugin_data.plugin_name


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def strict(text: str):
    """JSON without NaN and Infinity, which other readers refuse."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(word))


class Both:
    """A sink of either kind in one folder."""

    def __init__(self, folder, resume=0):
        self.folder = folder
        self.json = JsonLines(folder / "metrics.jsonl", resume)
        self.board = TensorBoard(folder / "board", resume)

    def __getattr__(self, name):
        return lambda *args: [getattr(sink, name)(*args) for sink in (self.json, self.board)]


@pytest.fixture(params=["json", "board"])
def sink(request, tmp_path) -> Recorder:
    return getattr(Both(tmp_path), request.param)


# ---------------------------------------------------------------- histograms


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=(40, 25)),
        np.random.default_rng(1).integers(-5, 60, size=999),
        np.array([True, False, True]),
        np.array([7.5]),
        np.full(12, -3.0),
        np.array([1.0, np.nextafter(1.0, 2)]),
        np.arange(31.0),
    ],
    ids=["normal", "integers", "bools", "one", "equal", "neighbours", "on the edges"],
)
def test_buckets_are_those_of_tensorboard(values):
    want = tensor_util.make_ndarray(summary_v2.histogram_pb("", values).value[0].tensor)
    found = buckets(values)
    np.testing.assert_array_equal(found.edges[:-1], want[:, 0])
    np.testing.assert_array_equal(found.edges[1:], want[:, 1])
    np.testing.assert_array_equal(found.counts, want[:, 2])
    assert found.counts.sum() == values.size


def test_values_nearer_than_any_width_are_in_the_last_bucket():
    assert buckets([0.0, 5e-324]).counts.tolist() == [0] * (BUCKETS - 1) + [2]  # TensorBoard's divides by 0 here


def test_a_histogram_is_the_same_in_both(tmp_path, rng):
    sink, values = Both(tmp_path), rng.normal(size=(3, 50, 7)).astype(np.float32)
    for step in range(3):
        sink.histogram(step, "first/kernel", jnp.asarray(values[step]))
        sink.histogram(step, "second/kernel", values[step] * 2)
    sink.board.close()
    read = tensors(tmp_path / "board", "first/kernel")
    records = [r for r in lines(tmp_path / "metrics-histograms.jsonl") if r["name"] == "first/kernel"]
    assert [step for step, _ in read] == [r["step"] for r in records] == [0, 1, 2]
    assert plugin(tmp_path / "board", "first/kernel") == "histograms"
    for (_, tensor), record, each in zip(read, records, values.astype(np.float64), strict=True):
        assert tensor.shape == (BUCKETS, 3)
        np.testing.assert_array_equal(tensor[:, 0], record["edges"][:-1])
        np.testing.assert_array_equal(tensor[:, 1], record["edges"][1:])
        np.testing.assert_array_equal(tensor[:, 2], record["counts"])
        np.testing.assert_allclose([record["edges"][0], record["edges"][-1]], [each.min(), each.max()], rtol=1e-15)
        inside = (each >= tensor[3, 0]) & (each < tensor[3, 1])
        assert record["counts"][3] == inside.sum()


def test_sixteen_bit_values_have_a_histogram():
    found = buckets(jnp.array([1.0, 2.0, 2.0], jnp.bfloat16))
    assert (found.counts[0], found.counts[-1], found.edges[0], found.edges[-1]) == (1, 2, 1.0, 2.0)


# ---------------------------------------------------------------- texts


def test_a_text_is_the_same_in_both(tmp_path):
    sink = Both(tmp_path)
    said = ["once <b>upon</b>\n\ta time", "", "häufig 日本 \x1b[31m \u2028 end"]
    for step, text in enumerate(said):
        sink.text(step, "sample", text)
    sink.board.close()
    assert [(s, t.item().decode()) for s, t in tensors(tmp_path / "board", "sample")] == list(enumerate(said))
    assert lines(tmp_path / "metrics-texts.jsonl") == [
        {"step": k, "name": "sample", "text": text} for k, text in enumerate(said)
    ]
    assert plugin(tmp_path / "board", "sample") == "text"


def test_a_lone_surrogate_stops_nothing(tmp_path):
    sink = Both(tmp_path)
    sink.text(0, "half \ud800", "\udfff.")
    sink.hparams({"\ud800": "\ud801"}, {"\ud802": 1.0})
    sink.board.close()
    assert tensors(tmp_path / "board", "half \\ud800")[0][1].item() == b"\\udfff."
    assert lines(tmp_path / "metrics-texts.jsonl")[0]["text"] == "\udfff."
    assert json.loads((tmp_path / "metrics-hparams.json").read_text())["hparams"] == {"\ud800": "\ud801"}


# ---------------------------------------------------------------- hyper-parameters


def sessions(folder):
    """The runs under a folder, as TensorBoard's page of hyper-parameters asks for them."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    backend = backend_context.Context(type("Board", (), {"data_provider": provider})())
    ctx = context.RequestContext()
    statuses = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_RUNNING]
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=10, allowed_statuses=statuses)
    response = list_session_groups.Handler(ctx, backend, str(folder), request).run()
    metadata = backend.hparams_metadata(ctx, str(folder))
    experiment = backend.experiment_from_metadata(ctx, str(folder), True, metadata, None)
    return response.session_groups, experiment


def test_a_sweep_is_read_by_tensorboard(tmp_path):
    for k in range(3):
        run = Both(tmp_path / f"run-{k}")
        for step in range(5):
            run.write(step, {"loss": 1 / (1 + step)})
        choices = {"rate": np.float32(0.5) ** k, "layers": k, "name": f"try-{k}", "tied": k == 1}
        run.hparams(choices, {"accuracy": jnp.asarray(0.25 * k)})
        run.board.close()
        kept = json.loads((tmp_path / f"run-{k}" / "metrics-hparams.json").read_text())
        assert kept == {
            "hparams": {"rate": 0.5**k, "layers": k, "name": f"try-{k}", "tied": k == 1},
            "metrics": {"accuracy": 0.25 * k},
        }
        assert [step for step, _ in tensors(tmp_path / f"run-{k}" / "board", "loss")] == [0, 1, 2, 3, 4]
    groups, experiment = sessions(tmp_path)
    assert len(groups) == 3
    for group in groups:
        (session,) = group.sessions
        k = int(group.hparams["layers"].number_value)
        assert session.name == f"run-{k}/board"
        assert session.status == api_pb2.STATUS_SUCCESS
        assert group.hparams["rate"].number_value == 0.5**k
        assert group.hparams["name"].string_value == f"try-{k}"
        assert group.hparams["tied"].bool_value == (k == 1)
        found = {value.name.tag: value.value for value in session.metric_values}
        assert found == pytest.approx({"loss": 0.2, "hparam/accuracy": 0.25 * k})
    types = {info.name: info.type for info in experiment.hparam_infos}
    assert types == {
        "rate": api_pb2.DATA_TYPE_FLOAT64,
        "layers": api_pb2.DATA_TYPE_FLOAT64,
        "name": api_pb2.DATA_TYPE_STRING,
        "tied": api_pb2.DATA_TYPE_BOOL,
    }


def test_choices_may_be_written_before_anything_came_of_them(tmp_path):
    run = Both(tmp_path)
    run.hparams({"rate": 0.1}, {})
    assert sessions(tmp_path)[0][0].sessions[0].status == api_pb2.STATUS_UNKNOWN
    run.hparams({"rate": 0.1}, {"accuracy": 0.5})
    run.hparams({"rate": 0.1}, {"accuracy": 0.75})
    run.board.close()
    (group,) = sessions(tmp_path)[0]
    assert group.sessions[0].status == api_pb2.STATUS_SUCCESS
    assert [m.value for m in group.sessions[0].metric_values] == [0.75]
    assert json.loads((tmp_path / "metrics-hparams.json").read_text())["metrics"] == {"accuracy": 0.75}


# ---------------------------------------------------------------- resuming


def test_a_resumed_run_keeps_one_record_a_step_of_each_kind(tmp_path):
    def some(sink, steps, word):
        for step in steps:
            sink.write(step, {"loss": float(step)})
            sink.histogram(step, "kernel", np.full(4, step))
            sink.histogram(step, "bias", np.full(4, step))
            sink.text(step, "sample", word)

    first = Both(tmp_path)
    some(first, range(5), "before")
    first.hparams({"rate": 1}, {"accuracy": 0.0})
    first.board.close()
    with (tmp_path / "metrics-histograms.jsonl").open("a") as file:
        file.write('{"step": 5, "na')  # torn by a crash
    again = Both(tmp_path, resume=3)
    some(again, range(3, 7), "after")
    again.hparams({"rate": 1}, {"accuracy": 1.0})
    again.board.close()

    every, said = list(range(7)), ["before"] * 3 + ["after"] * 4
    assert [r["step"] for r in lines(tmp_path / "metrics.jsonl")] == every
    histograms = lines(tmp_path / "metrics-histograms.jsonl")
    assert [(r["step"], r["name"]) for r in histograms] == [(k, n) for k in every for n in ("kernel", "bias")]
    assert [(r["step"], r["text"]) for r in lines(tmp_path / "metrics-texts.jsonl")] == list(enumerate(said))
    assert json.loads((tmp_path / "metrics-hparams.json").read_text())["metrics"] == {"accuracy": 1.0}
    board = tmp_path / "board"
    assert [step for step, _ in tensors(board, "loss")] == every
    assert [(s, t[0, 0]) for s, t in tensors(board, "kernel")] == [(k, k) for k in every]
    assert [t.item().decode() for _, t in tensors(board, "sample")] == said


def test_a_run_that_starts_anew_leaves_nothing_of_the_last(tmp_path):
    for word in ("first", "second"):
        sink = JsonLines(tmp_path / "metrics.jsonl")
        if word == "first":
            sink.hparams({"rate": 1}, {})
            sink.text(0, "other", word)
        sink.text(0, "sample", word)
    assert lines(tmp_path / "metrics-texts.jsonl") == [{"step": 0, "name": "sample", "text": "second"}]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics-texts.jsonl", "metrics.jsonl"]


def test_curves_alone_make_no_further_file(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.write(0, {"loss": 1.0})
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_board_without_the_step_to_resume_at_forgets_nothing(tmp_path):
    for step in range(2):
        board = TensorBoard(tmp_path)
        board.write(step, {"loss": 1.0})
        board.close()
    assert [step for step, _ in tensors(tmp_path, "loss")] == [0, 1]


# ---------------------------------------------------------------- refusals


def test_histograms_of_nothing_or_of_no_numbers_are_refused(sink):
    with pytest.raises(ShapeError, match=r"a histogram of shape \[0, 3\]"):
        sink.histogram(0, "x", np.zeros((0, 3)))
    with pytest.raises(ShapeError, match="could not convert string to float"):
        sink.histogram(0, "x", ["a", "b"])
    with pytest.raises(ShapeError, match="complex128; real numbers"):
        sink.histogram(0, "x", np.ones(3) * 1j)
    with pytest.raises(NonFiniteError, match="a histogram of 3 values, 2 of them NaN or infinite"):
        sink.histogram(0, "x", [1.0, np.nan, np.inf])
    with pytest.raises(NonFiniteError, match="finite distance between them"):
        sink.histogram(0, "x", [-1.7e308, 1.7e308])
    with pytest.raises(UsageError, match="'' arrived as a name"):
        sink.histogram(0, "", [1.0])


def test_what_is_no_text_is_refused(sink):
    with pytest.raises(UsageError, match="a text of type bytes arrived"):
        sink.text(0, "x", b"bytes")
    with pytest.raises(UsageError, match="None arrived as a name"):
        sink.text(0, None, "words")


def test_choices_that_no_page_could_show_are_refused(sink):
    with pytest.raises(UsageError, match="no hyper-parameters arrived"):
        sink.hparams({}, {"accuracy": 1.0})
    with pytest.raises(UsageError, match="hyper-parameter 'clip' is a NoneType.*None as a word"):
        sink.hparams({"clip": None}, {})
    with pytest.raises(UsageError, match="hyper-parameter 'sizes' is a list"):
        sink.hparams({"sizes": [1, 2]}, {})
    with pytest.raises(NonFiniteError, match="hyper-parameter 'rate' is inf"):
        sink.hparams({"rate": np.float64("inf")}, {})
    with pytest.raises(UsageError, match="hyper-parameter 'rate' is int: int too large"):
        sink.hparams({"rate": 10**400}, {})
    with pytest.raises(NonFiniteError, match="metric 'accuracy' is nan"):
        sink.hparams({"rate": 1}, {"accuracy": float("nan")})
    with pytest.raises(UsageError, match="metric 'accuracy' is str"):
        sink.hparams({"rate": 1}, {"accuracy": "high"})


def test_one_name_has_one_kind_in_tensorboard(tmp_path):
    board = TensorBoard(tmp_path)
    board.write(0, {"loss": 1.0})
    with pytest.raises(UsageError, match="'loss' is the name of a scalar already; give the histogram another"):
        board.histogram(0, "loss", [1.0])


def test_a_folder_that_went_away_is_an_output_error(tmp_path):
    sink = JsonLines(tmp_path / "gone" / "metrics.jsonl")
    (tmp_path / "gone" / "metrics.jsonl").unlink()
    (tmp_path / "gone").rmdir()
    with pytest.raises(OutputError, match="cannot append to .*metrics-texts.jsonl"):
        sink.text(0, "x", "words")
    with pytest.raises(OutputError, match="cannot write .*metrics-hparams.json"):
        sink.hparams({"rate": 1}, {})


def test_what_is_written_is_strict_json(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.histogram(np.int64(3), "x", np.arange(4, dtype=np.float16))
    sink.text(np.int32(3), "x", 'quotes " and \n lines')
    sink.hparams({"rate": np.float32(0.5), "layers": jnp.asarray(3)}, {"accuracy": np.float32(0.5)})
    for path in tmp_path.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            assert strict(line)["step"] == 3
    kept = strict((tmp_path / "metrics-hparams.json").read_text())
    assert kept == {"hparams": {"rate": 0.5, "layers": 3}, "metrics": {"accuracy": 0.5}}


def test_a_line_that_is_none_is_named_and_nan_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    JsonLines(path).write(0, {"loss": float("nan"), "margin": 1.0})
    assert strict(path.read_text()) == {"step": 0, "loss": None, "margin": 1.0}
    for odd in ("{not json", '{"epoch": 3}', "[1]", '{"step": "a"}'):
        path.write_text('{"step": 0, "loss": 1.0}\n' + odd + "\n")
        with pytest.raises(MalformedRowError, match="metrics.jsonl, line 2"):
            JsonLines(path, resume=1)
