import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from rlhf_lightning.data.records import RecordError
from rlhf_lightning.data.rows.files import files_of, holds_split, read_rows
from rlhf_lightning.data.rows.readers import MAX_ROW_BYTES, SourceRow, table_rows

QUOTED = 'two\nlines, and "quotes"'
ROWS = [{"text": "a wórd", "n": [1, 2]}, {"text": QUOTED, "n": []}, {"text": "c", "n": None}]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path, split="train", **load):
    return list(read_rows(str(path), split, load))


def values(path, split="train"):
    rows = read(path, split)
    assert all(row.problem is None for row in rows)
    return [row.value for row in rows]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.txt", "a"])
def test_lines(tmp_path, name):
    path = written(tmp_path / name, b"\xef\xbb\xbf" + lines(ROWS[:1]) + b"\n \n" + lines(ROWS[1:]))
    assert read(path) == [SourceRow(f"{path}, line {n}", row) for n, row in zip((1, 4, 5), ROWS, strict=True)]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_json_list(tmp_path, name):
    path = written(tmp_path / name, b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=2).encode())
    assert read(path) == [SourceRow(f"{path}, row {n}", row) for n, row in enumerate(ROWS)]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv(tmp_path, name):
    with (tmp_path / "plain").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["text", "n"], ["a wórd", "1"], ['two\nlines, and "quotes"', ""], ["c", "3"]])
    path = written(tmp_path / name, (tmp_path / "plain").read_bytes() + b"\r\n")
    # A cell may hold line ends; a place is where the row ends.
    assert [(row.place, row.value) for row in read(path)] == [
        (f"{path}, line 2", {"text": "a wórd", "n": "1"}),
        (f"{path}, line 4", {"text": 'two\nlines, and "quotes"', "n": ""}),
        (f"{path}, line 5", {"text": "c", "n": "3"}),
    ]


def test_csv_cells_longer_than_usual(tmp_path):
    path = written(tmp_path / "a.csv", b"text\n" + b"x" * 500_000 + b"\n")
    assert len(values(path)[0]["text"]) == 500_000
    assert csv.field_size_limit() == 131_072


def test_parquet_and_arrow(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=2)
    assert read(tmp_path / "a.parquet") == [
        SourceRow(f"{tmp_path / 'a.parquet'}, row {n}", r) for n, r in enumerate(ROWS)
    ]
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    assert values(file) == ROWS


def test_more_rows_than_a_batch(tmp_path):
    pq.write_table(pa.table({"n": range(2500)}), tmp_path / "a.parquet")
    assert [row.value["n"] for row in read(tmp_path / "a.parquet")] == list(range(2500))
    places = [row.place for row in table_rows(Dataset.from_dict({"n": range(2500)}))]
    assert places[0] == "row 0"
    assert places[-1] == "row 2499"
    assert len(set(places)) == 2500


def test_saved_data_sets(tmp_path):
    DatasetDict(train=Dataset.from_list(ROWS), dev=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "splits")
    assert values(tmp_path / "splits") == ROWS
    assert values(tmp_path / "splits", "dev") == ROWS[:1]
    with pytest.raises(RecordError, match=r"splits cannot be read \(split test; KeyError: 'test'\)\. Mend the path"):
        read(tmp_path / "splits", "test")


def test_broken_saved_data_set(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.write_bytes(b"nonsense")
    with pytest.raises(RecordError, match=r"saved cannot be read \(split train; ArrowInvalid"):
        read(tmp_path / "saved")


# Folders


@pytest.mark.parametrize(
    ("names", "train", "validation", "test"),
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
         ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], [],
         ["data/test-00000-of-00001.parquet"]),
        (["train/x.jsonl.gz", "dev/x.jsonl.gz", "eval.json", "valid1.json"], ["train/x.jsonl.gz"],
         ["dev/x.jsonl.gz", "valid1.json"], ["eval.json"]),
        # The word nearest to the file's own name counts; a part of a word does not.
        (["test_suite/train.jsonl", "latest.jsonl"], ["test_suite/train.jsonl"], [], []),
    ],
)  # fmt: skip
def test_files_of_a_folder(tmp_path, names, train, validation, test):
    for name in names:
        written(tmp_path / name, b"")
    for split, expected in (("train", train), ("validation", validation), ("test", test)):
        found = [file.relative_to(tmp_path).as_posix() for file in files_of(tmp_path, split)]
        assert sorted(found) == sorted(expected)


def test_a_folder_whose_names_say_nothing(tmp_path):
    for name in ("latest.jsonl", "sub/a.csv", "README.md", "dataset_infos.json", "x.txt"):
        written(tmp_path / name, b"")
    for split in ("train", "test"):
        assert files_of(tmp_path, split) == [tmp_path / "latest.jsonl", tmp_path / "sub" / "a.csv"]


def test_which_splits_a_set_has(tmp_path):
    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "splits")
    written(tmp_path / "plain" / "latest.jsonl", b"")
    written(tmp_path / "named" / "test.jsonl", b"")
    written(tmp_path / "named" / "other.jsonl", b"")
    (tmp_path / "empty").mkdir()
    held = {
        name: [split for split in ("train", "validation", "test") if holds_split(tmp_path / name, split)]
        for name in ("saved", "splits", "plain", "plain/latest.jsonl", "named", "empty", "gone")
    }
    assert held == {
        "saved": ["train"],
        "splits": ["train", "validation"],
        "plain": ["train"],
        "plain/latest.jsonl": ["train"],
        "named": ["test"],
        "empty": [],
        "gone": [],
    }


def test_a_folder_of_several_kinds(tmp_path):
    written(tmp_path / "train-1.jsonl", lines(ROWS[:1]))
    written(tmp_path / "train-2.json.gz", json.dumps(ROWS[1:]).encode())
    written(tmp_path / "test.jsonl", lines(ROWS[2:]))
    assert values(tmp_path) == ROWS
    assert values(tmp_path, "test") == ROWS[2:]
    with pytest.raises(
        RecordError, match=r"holds no \.jsonl, \.json, \.csv, \.parquet, \.arrow file of the split valid"
    ):
        read(tmp_path, "validation")


# The hub: the same call, on files of this machine


def test_load_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for task, extra in (("one", "x"), ("two", "y")):
        table = pa.Table.from_pylist([{"inputs": f"{task} in", "targets": "out", extra: 1}])
        (tmp_path / "set" / f"task_{task}").mkdir(parents=True)
        pq.write_table(table, tmp_path / "set" / f"task_{task}" / "train-00000-of-00001.parquet")
    files = {"train": str(tmp_path / "set" / "task_*" / "train-*.parquet")}
    rows = read("parquet", data_files=files, columns=["inputs", "targets"])
    assert [row.place for row in rows] == ["parquet (train), row 0", "parquet (train), row 1"]
    assert [row.value for row in rows] == [{"inputs": f"{task} in", "targets": "out"} for task in ("one", "two")]
    with pytest.raises(
        RecordError, match=r"parquet is no file here, and the hub does not give it \(split test; .*'split'"
    ):
        read("parquet", split="test", data_files=files)


def test_an_unknown_id():
    with pytest.raises(
        RecordError, match=r"nobody/nothing is no file here, and the hub does not give it \(split train;"
    ):
        read("nobody/nothing")


# What cannot be read


def test_a_long_line_is_not_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * (2 * MAX_ROW_BYTES + 10) + b'"}\n' + lines(ROWS[2:]))
    long, last = read(path)
    assert long.place == f"{path}, line 1"
    assert long.problem is not None
    assert "longer than 8,000,000 bytes" in long.problem
    assert long.value == '{"text": "' + "x" * 990
    assert last == SourceRow(f"{path}, line 2", ROWS[2])


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.parquet"])
def test_long_rows_elsewhere(tmp_path, name):
    cells = ["x" * 3_000_000] * 3
    if name == "a.json":
        written(tmp_path / name, json.dumps([{"cells": cells}, {"cells": []}]).encode())
    elif name == "a.csv":
        written(tmp_path / name, b"a,b,c\n" + ",".join(cells).encode() + b"\n1,2,3\n")
    else:
        pq.write_table(pa.Table.from_pylist([{"cells": cells}, {"cells": []}]), tmp_path / name)
    first, second = read(tmp_path / name)
    assert first.problem is not None
    assert "longer than 8,000,000 bytes" in first.problem
    assert second.problem is None


def test_a_broken_stream_keeps_what_came_before(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(lines({"text": f"{n} {n * n % 977}"} for n in range(20000)))
    path.write_bytes(packed[: len(packed) // 2])
    *rows, last = read(path)
    assert len(rows) > 5000
    assert [row.value["text"] for row in rows] == [f"{n} {n * n % 977}" for n in range(len(rows))]
    assert last.place == f"{path}, line {len(rows)}"
    assert last.problem is not None
    assert "cannot be read beyond this place (Compressed file ended" in last.problem


def test_broken_utf8_in_one_row_of_a_table(tmp_path):
    texts = pa.array([b"a", b"\xff\xfe", b"c"]).cast(pa.binary())
    broken = pa.StringArray.from_buffers(3, texts.buffers()[1], texts.buffers()[2])
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    first, second, third = read(tmp_path / "a.parquet")
    assert (first.value, third.value) == ({"text": "a"}, {"text": "c"})
    assert (second.place, second.problem) == (
        f"{tmp_path / 'a.parquet'}, row 1",
        "broken UTF-8 (invalid start byte). Save the text as UTF-8.",
    )
