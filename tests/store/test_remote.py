"""Indexes at a URL: memory://, and a local HTTP server that knows ranges and loses requests."""

import contextlib
import http.server
import re
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest

import uimjax as uj
from tests.interpret.test_index import digest, made
from uimjax import store
from uimjax.errors import CorruptError, MismatchError, MissingFileError, OutputError, UsageError
from uimjax.interpret import moving
from uimjax.store import remote


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("i") / "index"
    task, params, data, measurement, queries = made(np.random.default_rng(0), 50)
    uj.build_index(task, params, data, folder, sketch=uj.Sketch(3), batch_size=8, shard_rows=10, coding="int8")
    return folder, task, params, data, measurement, queries


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files, and parts of them; `lost` requests are answered with 503 first."""

    lost = 0
    asked: list[str] = []

    def do_GET(self):
        Ranges.asked.append(self.path)
        if Ranges.lost:
            Ranges.lost -= 1
            return self.send_error(503)
        try:
            data = Path(self.translate_path(self.path)).read_bytes()
        except OSError:
            return self.send_error(404)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(found[1]), int(found[2] or len(data) - 1)) if found else (0, len(data) - 1)
        part = data[first : last + 1]
        self.send_response(206 if found else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if found:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)
        return None

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    """The URL of a folder."""
    handler = type("Here", (Ranges,), {"__init__": lambda self, *a: Ranges.__init__(self, *a, directory=str(folder))})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.usefixtures("memory")
def test_an_index_at_a_url_answers_as_the_one_on_disk(case):
    folder, *rest = case
    assert moving.copy_index(folder, "memory://bucket/one") == 5
    want, found = (uj.trace(where, *rest, k=7, each=True) for where in (folder, "memory://bucket/one"))
    for a, b in zip(want[:4], found[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    assert uj.verify_index("memory://bucket/one") == []
    assert uj.open_index("memory://bucket/one").price == uj.open_index(folder).price
    total = uj.totals("memory://bucket/one", *rest, np.arange(50) % 2)
    np.testing.assert_array_equal(total.total, uj.totals(folder, *rest, np.arange(50) % 2).total)


def test_a_copy_goes_on_checks_every_byte_and_takes_no_other_place(case, memory, tmp_path):
    folder, task, params, data, *_ = case

    def stopping(items, *_args, **_more):
        yield from items[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moving.copy_index(folder, "memory://b/i", stopping)
    with pytest.raises(MissingFileError, match="holds no index"):
        uj.open_index("memory://b/i")
    memory.pipe_file("/b/i/shards/000001.parquet", b"x" * len(memory.cat_file("/b/i/shards/000001.parquet")))
    assert moving.copy_index(folder, "memory://b/i") == 4  # all but the first
    assert moving.copy_index(folder, "memory://b/i") == 0
    assert moving.copy_index("memory://b/i", tmp_path / "back") == 5
    assert digest(tmp_path / "back") == digest(folder)
    other = tmp_path / "other"
    uj.build_index(task, params, data, other, sketch=uj.Sketch(2), batch_size=8)
    with pytest.raises(MismatchError, match="memory://b/i holds another index"):
        moving.copy_index(other, "memory://b/i")
    memory.pipe_file("/b/i/shards/000003.parquet", b"damaged")
    damaged = "memory://b/i/shards/000003.parquet"
    assert uj.verify_index("memory://b/i") == [f"shard 3: {damaged} differs from what was written"]
    with pytest.raises(CorruptError, match=r"000003.parquet differs"):
        moving.copy_index("memory://b/i", tmp_path / "again")
    memory.rm_file("/b/i/shards/000003.parquet")
    assert uj.verify_index("memory://b/i") == [f"shard 3: {damaged} is missing"]


def test_an_index_on_a_web_server_is_read_and_lost_requests_are_tried_again(case, monkeypatch):
    folder, *rest = case
    monkeypatch.setattr(remote, "WAIT_S", 0.001)
    with served(folder.parent) as url:
        want, found = (uj.trace(where, *rest, k=7) for where in (folder, f"{url}/index"))
        np.testing.assert_array_equal(want.proponents, found.proponents)
        assert uj.verify_index(f"{url}/index") == []
        file = store.place(f"{url}/index/shards/000002.parquet")
        whole = (folder / "shards" / "000002.parquet").read_bytes()
        Ranges.lost, Ranges.asked = 3, []
        assert file.read_bytes() == whole
        assert len(Ranges.asked) == 4
        Ranges.lost = 100
        with pytest.raises(OutputError, match="could not be reached in 4 tries"):
            file.read_bytes()
        Ranges.lost = 0
        with pytest.raises(MissingFileError, match="none is not there"):
            store.place(f"{url}/index/none").read_bytes()
        with pytest.raises(MissingFileError, match="holds no index"):
            uj.open_index(f"{url}/nowhere")
        with pytest.raises(OutputError, match="cannot write"):
            moving.copy_index(folder, f"{url}/copy")


def test_nothing_is_built_at_a_url_and_unknown_places_are_named(case):
    folder, task, params, data, *_ = case
    for build in (uj.build_index, uj.append_index, uj.repair_index):
        with pytest.raises(UsageError, match="uimjax index copy FOLDER s3://bucket/i"):
            build(task, params, data, "s3://bucket/i")
    with pytest.raises(UsageError, match="uimjax index copy"):
        uj.merge_indexes([folder, folder], "s3://bucket/i")
    with pytest.raises(UsageError, match="[Pp]rotocol"):
        uj.open_index("nowhere://bucket/i")
