"""The one reader of tables: every kind gives the same columns, and what cannot be read is named with its line."""

import gzip
import json
import math

import pyarrow as pa
import pytest
from pyarrow import parquet

from uimjax import tables
from uimjax.errors import DataError, MalformedRowError, MissingFileError, UsageError

HELD = {"id": ["a", "b", "c"], "N": [1, 2, 3], "loss": [0.5, None, 1e-3]}


def written(path, held=HELD):
    rows = [dict(zip(held, row, strict=True)) for row in zip(*held.values(), strict=True)]
    ending = tables.kind(path)
    if ending == "parquet":
        parquet.write_table(pa.table(held), path)
        return path
    if ending in tables.JSON_LINES:
        text = "\n\n".join(json.dumps({k: v for k, v in row.items() if v is not None}) for row in rows)
    else:
        between = "\t" if ending == "tsv" else ","
        cells = [list(held), *([("" if v is None else str(v)) for v in row.values()] for row in rows)]
        text = "".join(between.join(row) + "\n" for row in cells)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(
    "name", ["t.csv", "t.CSV", "t.csv.gz", "t.tsv", "t.tsv.gz", "t.parquet", "t.jsonl", "t.jsonl.gz", "t.ndjson"]
)
def test_every_kind_gives_the_same_columns(tmp_path, name):
    assert tables.read(written(tmp_path / name)) == HELD


@pytest.mark.parametrize("name", ["t.txt", "t.txt.gz"])
def test_endings_that_a_caller_reads_as_csv(tmp_path, name):
    with pytest.raises(UsageError, match=r"a table ends in .csv, .tsv, .parquet or .jsonl, not in '.txt'"):
        tables.read(written(tmp_path / name))
    assert tables.read(tmp_path / name, commas=("csv", "txt")) == HELD


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_columns_of_text_stay_as_they_are_written(tmp_path, name):
    path = written(tmp_path / name, {"id": ["007", "1e3"], "value": [1, 2]})
    assert tables.read(path, text=("id", "elsewhere")) == {"id": ["007", "1e3"], "value": [1, 2]}
    assert tables.read(path)["id"] == [7, 1000]


def test_lines_have_their_numbers_and_may_begin_with_a_mark_of_bytes(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"b": "\xc3\xa9", "c": NaN}')
    (first, one), (third, two) = tables.lines(path)
    assert (first, third, one, two["b"]) == (1, 3, {"a": 1}, "é")
    assert math.isnan(two["c"])
    assert tables.read(path)["a"] == [1, None]
    with pytest.raises(MalformedRowError, match="line 3: not JSON .NaN is no number"):
        list(tables.lines(path, finite=True))
    with pytest.raises(MalformedRowError, match="line 1: the line is longer than 0 MiB"):
        list(tables.lines(path, cap=4))


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("t.csv", b"a,b\n1,2\n3\n", "line 3: 1 fields for 2 columns"),
        ("t.csv", b"a,b\r\n\r\n1,2\r\n\r\n3,4,5\r\n", "line 5: 3 fields for 2 columns"),  # empty lines have numbers too
        ("t.tsv", b"a\tb\n1\t2\t3\n", "line 2: 3 fields for 2 columns"),
        ("t.jsonl", b'{"a": 1}\n\n{"a": \n', "line 3: not JSON"),
        ("t.jsonl", b"[1]", "line 1: a JSON object was wanted, list arrived"),
        ("t.jsonl", b'{"a": 1}\n{"a": "\xff"}', "line 2: it cannot be read as UTF-8 text"),
        ("t.jsonl", b"[" * 100_000, "line 1: not JSON"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, name, content, match, gz):
    path = tmp_path / f"{name}{gz}"
    path.write_bytes(gzip.compress(content, mtime=0) if gz else content)
    with pytest.raises(MalformedRowError, match=match):
        tables.read(path)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("t.csv", b"", "cannot be read as a table: Empty"),
        ("t.csv", b"a,a\n1,2\n", "has two columns 'a'; rename one"),
        ("t.csv", b"a,b\n1,\xff\n", "column 'b' is no UTF-8 text"),
        ("t.csv", b"\xff,b\n1,2\n", "cannot be read as a table"),
        ("t.csv.gz", b"a,b\n1,2\n", "cannot be read as a table"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:-9], "cannot be read as a table"),
        ("t.parquet", b"PAR1 no table", "cannot be read as a table"),
        ("t.jsonl.gz", b'{"a": 1}', "cannot be read beyond line 0"),
        ("t.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "cannot be read beyond line"),
    ],
)
def test_other_damage(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=match):
        tables.read(tmp_path / name)


def test_what_is_missing_and_what_is_no_table(tmp_path):
    with pytest.raises(MissingFileError, match=r"none.csv is not a file; a law .* was wanted"):
        tables.read(tmp_path / "none.csv", "a law")
    with pytest.raises(MissingFileError, match="JSON lines were wanted"):
        list(tables.lines(tmp_path / "none.jsonl"))
    with pytest.raises(MissingFileError):
        tables.read(tmp_path)
    for name, shown in (("t.xlsx", "'.xlsx'"), ("t", "''")):
        (tmp_path / name).write_text("a,b\n")
        with pytest.raises(UsageError, match=f"not in {shown}"):
            tables.read(tmp_path / name)
