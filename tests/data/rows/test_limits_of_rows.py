"""Absurd rows and files are refused by file and line; none blocks, fills the memory or breaks off with a traceback."""

import gzip
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.data.records import MAX_COMPLETIONS, Comparison, Prompt, RecordError
from rlhf_lightning.data.rows import readers
from rlhf_lightning.data.rows.readers import MAX_DEPTH, file_rows
from rlhf_lightning.data.rows.records_of import read_records
from rlhf_lightning.data.sources import FileData


def refused(path: Path, kind: type = Prompt) -> str:
    with pytest.raises(RecordError) as error:
        list(read_records(str(path), kind))
    return str(error.value)


def test_a_ranking_has_a_largest_number_of_responses(tmp_path: Path) -> None:
    file = tmp_path / "comparisons.jsonl"
    for count in (MAX_COMPLETIONS, MAX_COMPLETIONS + 1, 10_000):
        row = {"prompt": "a", "completions": [f"{n}" for n in range(count)], "ranks": list(range(1, count + 1))}
        file.write_text(json.dumps(row) + "\n")
        if count == MAX_COMPLETIONS:
            assert len(next(iter(read_records(str(file), Comparison))).completions) == count
        else:
            pairs = f"{count * (count - 1) // 2:,}"
            assert f"{file}, line 1: field 'completions' has {count:,} responses" in (said := refused(file, Comparison))
            assert f"{pairs} pairs" in said


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_refused_and_never_opened(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompts{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(tmp_path)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)
    else:
        path.symlink_to("/dev/zero")
    assert f"{path} is a {kind}" in refused(path)
    if kind != "device":  # also in a folder
        assert f"{path} is a {kind}" in refused(tmp_path)
    for source in (path, tmp_path):
        with pytest.raises(RecordError, match=f"is a {kind}, not a file"):
            FileData(None, {"prompts": {"train": str(source)}})


def test_a_broken_link_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    assert f"{tmp_path / 'b.jsonl'}" in refused(tmp_path)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 5_000, 1_000_000])
def test_nested_rows_are_refused_by_place(opening: str, suffix: str, depth: int, tmp_path: Path) -> None:
    file = tmp_path / f"prompts{suffix}"
    bomb = opening * depth + "1" + ("]" if opening == "[" else "}") * depth
    row = '{"prompt": "a", "more": ' + bomb + "}"
    file.write_text(f"[{row}]" if suffix == ".json" else f'{{"prompt": "b"}}\n{row}\n')
    said = refused(file)
    assert str(file) in said
    assert "nested" in said
    assert suffix == ".json" or "line 2" in said


def test_brackets_in_texts_are_no_nesting(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    text = '[{"' * 1000 + "\\"
    file.write_text(json.dumps({"prompt": text, "fields": {"a": [[["x"]]]}}) + "\n")
    assert [record.prompt for record in read_records(str(file), Prompt)] == [text]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".jsonl.gz", ".csv.gz", ".json", ".json.gz"])
def test_an_endless_line_is_refused_before_it_is_held(suffix: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(readers, "MAX_CELL", 16_000)
    monkeypatch.setattr(readers, "MAX_LIST_BYTES", 100_000)
    file = tmp_path / f"prompts{suffix}"
    start = {".csv": b"prompt\n", ".json": b'[{"prompt": "'}.get(suffix.removesuffix(".gz"), b'{"prompt": "')
    with (gzip.open if suffix.endswith("gz") else open)(file, "wb") as stream:
        stream.write(start + b"a" * 1_000_000)
    assert str(file) in (said := refused(file))
    assert "longer than" in said


def test_the_rows_around_an_endless_line_are_read(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 1000)
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b'{"prompt": "a"}\n' + b"x" * 10_000 + b'\n{"prompt": "b"}\n')
    rows = list(file_rows(file))
    assert [row.problem is None for row in rows] == [True, False, True]
