"""Malformed files, each with its sentence; and rows at random through every reader."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError, Text
from rlhf_lightning.data.sources import read_records
from rlhf_lightning.data.tokens import Tokenization

pytestmark = pytest.mark.usefixtures("types_as_users_have_them")

DEMO, PAIR, TEXT = {"prompt": "a", "response": "b"}, {"prompt": "a", "completions": ["b", "c"]}, {"text": "a"}
RANK = {"columns": {"ranks": {"rank": "scores", "best": "highest"}}}


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def ranked(*ranks):
    return jsonl(
        PAIR | {"ranks": [1, 2]}, {"prompt": "a", "completions": ["b", "c", "d"][: len(ranks)], "ranks": ranks}
    )


def chat(*roles):
    return jsonl({"prompt": [{"role": role, "content": "hi"} for role in roles]})


def parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


MALFORMED = {
    "wrong column": ("a.jsonl", jsonl({"q": "x"}), Prompt, {"columns": {"prompt": "question"}},
                     ["a.jsonl, line 1: column 'question' is missing; the row has q", "Mend 'columns'"]),
    "missing field": ("a.jsonl", jsonl(DEMO, {"prompt": "x"}), Demonstration, {},
                      ["line 2: field 'response' is missing", "this row has prompt", "Name the column"]),
    "null field": ("a.jsonl", jsonl({"text": None}), Text, {}, ["line 1: field 'text' is missing"]),
    "empty file": ("a.jsonl", b"", Prompt, {}, ["a.jsonl holds no prompt", "name another, or set the entry to null"]),
    "blank file": ("a.csv", b"\n\n", Prompt, {}, ["a.csv holds no prompt"]),
    "header alone": ("a.csv", b"prompt\n", Prompt, {}, ["a.csv holds no prompt"]),
    "empty list": ("a.json", b"[]", Prompt, {}, ["a.json holds no prompt"]),
    "empty table": ("a.parquet", parquet([TEXT])[:4] + b"", Text, {}, ["a.parquet: the file cannot be read ("]),
    "ranks with a gap": ("a.jsonl", ranked(1, 3, 3), Comparison, {},
                         ["line 2: field 'ranks' holds [1, 3, 3]", "neither dense", "Number them anew"]),
    "ranks from 2": ("a.jsonl", ranked(2, 3, 4), Comparison, {}, ["line 2: field 'ranks' holds [2, 3, 4]", "anew"]),
    "ranks from 0": ("a.jsonl", ranked(0, 1), Comparison, {},
             ["field 'ranks' must hold 2 whole numbers from 1", "[0, 1]"]),
    "half ranks": ("a.jsonl", ranked(1, 1.5), Comparison, {}, ["field 'ranks' must hold 2 whole numbers", "[1, 1.5]"]),
    "ranks and completions": ("a.jsonl", jsonl(PAIR | {"ranks": [1, 2, 3]}), Comparison, {},
                              ["line 1: field 'ranks' must hold 2 whole", "one per completion, got [1, 2, 3]"]),
    "K = 1": ("a.jsonl", ranked(1), Comparison, {},
              ["line 2: field 'completions' must be a list of at least 2", "got ['b']", "leave the row out"]),
    "empty prompt": ("a.jsonl", jsonl(DEMO, DEMO | {"prompt": " "}), Demonstration, {},
                     ["line 2: field 'prompt' is empty", "fill it or leave the row out"]),
    "empty response": ("a.json", json.dumps([DEMO, DEMO | {"response": "\n"}]).encode(), Demonstration, {},
                       ["a.json, row 1: field 'response' is empty"]),
    "number for text": ("a.jsonl", jsonl({"text": 5}), Text, {}, ["line 1: field 'text' must be a string, got 5"]),
    "object for prompt": ("a.jsonl", jsonl({"prompt": {"text": "x"}}), Prompt, {},
                          ["field 'prompt' must be a string or a list of", "got {'text': 'x'}"]),
    "number for labeler": ("a.jsonl", jsonl(PAIR | {"ranks": [1, 2], "labeler": 7}), Comparison, {},
                           ["field 'labeler' must be a string where it is given, got 7"]),
    "list for a row": ("a.jsonl", jsonl(TEXT, ["a"]), Text, {}, ["line 2: a row must be a JSON object, got ['a']"]),
    "no gzip": ("a.jsonl.gz", jsonl(TEXT), Text, {},
                ["a.jsonl.gz: the file cannot be read (Not a gzipped file", "Fetch or write it again"]),
    "cut gzip": ("a.jsonl.gz", gzip.compress(jsonl(*[TEXT] * 9))[:-9], Text, {},
                 ["the file cannot be read beyond this place (Compressed file ended before", "Fetch"]),
    "damaged gzip": ("a.jsonl.gz", gzip.compress(jsonl(*[TEXT] * 9))[:-6] + b"000000", Text, {},
                     ["a.jsonl.gz, line 9: the file cannot be read beyond this place (CRC check failed"]),
    "broken UTF-8": ("a.jsonl", jsonl(TEXT) + b'{"text": "\xff\xfe"}\n', Text, {},
                     ["line 2: broken UTF-8 (invalid start byte at byte 10)", "Save the file as UTF-8"]),
    "broken UTF-8 in CSV": ("a.csv", b"text\na\n\xff\xfe\n", Text, {},
                            ["a.csv, line 3: field 'text' holds broken UTF-8 at character 0", "as UTF-8"]),
    "half a surrogate pair": ("a.jsonl", b'{"text": "\\ud800"}\n', Text, {},
                              ["line 1: field 'text' holds broken UTF-8 at character 0, got '\\ud800'"]),
    "UTF-16": ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), Text, {}, ["line 1: broken UTF-8", "Save the file as"]),
    "cut off": ("a.jsonl", jsonl(TEXT) + b'{"text": "and th', Text, {},
                ["line 2: the last line is cut off (Unterminated string", "Write the file again, or take"]),
    "no JSON": ("a.jsonl", b"{text: a}\n" + jsonl(TEXT), Text, {},
                ["line 1: no JSON (Expecting property name", "Each line must hold one JSON object"]),
    "deep JSON": ("a.jsonl", b"[" * 200_000 + b"\n", Text, {}, ["line 1: no JSON (", "recursion"]),
    "cut JSON list": ("a.json", b'[{"text": "a"}, {"text"', Text, {},
             ["a.json: no JSON list (", "Write the file again"]),
    "same id twice": ("a.jsonl", jsonl({"id": 1} | TEXT, {"id": 2} | TEXT, {"id": 1} | TEXT), Text, {},
                      ["a.jsonl, line 3: field 'id' is 1, as at", "a.jsonl, line 1. Leave one of the rows out"]),
    "10 MB": ("a.jsonl", jsonl(TEXT, {"text": "x" * 10_000_000}), Text, {},
              ["line 2: the row is longer than 8,000,000 bytes", "Mend its line ends, split it, or leave it out"]),
    "system in between": ("a.jsonl", chat("user", "system", "user"), Prompt, {},
                          ["line 1: field 'prompt' has the roles 'user, system, user'", "Put the messages in order"]),
    "two users": ("a.jsonl", chat("user", "user"), Prompt, {}, ["has the roles 'user, user'", "must take turns"]),
    "assistant first": ("a.jsonl", chat("assistant", "user"), Prompt, {}, ["has the roles 'assistant, user'"]),
    "assistant last": ("a.jsonl", chat("user", "assistant"), Prompt, {}, ["the user first and last"]),
    "NaN score": ("a.jsonl", b'{"prompt": "a", "completions": ["b", "c"], "scores": [1.5, NaN]}\n', Comparison, RANK,
                  ["line 1: column 'scores' holds the score nan, which is no finite number", "leave the row out"]),
    "null score": ("a.jsonl", jsonl(PAIR | {"scores": [1, None]}), Comparison, RANK,
             ["column 'scores' holds the score None"]),
    "one score too few": ("a.jsonl", jsonl(PAIR | {"scores": [1]}), Comparison, RANK, ["'ranks' must hold 2", "[1]"]),
    "no such label": ("a.jsonl", jsonl(PAIR | {"label": "x"}), Comparison,
                      {"columns": {"ranks": {"column": "label", "values": {"a": [1, 2]}}}},
                      ["column 'label' holds 'x', for which 'values' has no entry; it has 'a'", "Add the entry"]),
    "cells": ("a.csv", b"prompt,response\na,b\na,b,c\n", Demonstration, {},
              ["a.csv, line 3: the line has 3 cells, the header 2", "Quote cells that hold commas"]),
    "open quote": ("a.csv", b'text\na\n"b\nc\n', Text, {},
                   ["a.csv, line 2: the file cannot be read beyond this place (unexpected end of data"]),
    "column twice": ("a.csv", b"text,text\na,b\n", Text, {},
             ["a.csv, line 1: the header names a column twice (text, text)"]),
    "no parquet": ("a.parquet", b"text\na\n" * 9, Text, {},
             ["a.parquet: the file cannot be read (", "Fetch or write it"]),
    "cut parquet": ("a.parquet", parquet([TEXT] * 9)[:-9], Text, {}, ["a.parquet: the file cannot be read ("]),
    "no arrow": ("a.arrow", b"text", Text, {}, ["a.arrow: the file cannot be read ("]),
    "different dialogues": ("a.jsonl", jsonl({"chosen": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D",
                                              "rejected": "\n\nHuman: A\n\nAssistant: X"}), Comparison, {},
                            ["fields 'chosen' and 'rejected' must be the same up to the last reply, got '\\n\\nH"]),
    "orphan": ("a.jsonl", jsonl({"message_id": "b", "parent_id": "a", "role": "assistant", "text": "x"}), Comparison,
               {"shape": "message_trees"}, ["line 1: field 'parent_id' is 'a', which leads to no first message"]),
    "no such shape": ("a.jsonl", jsonl(TEXT), Text, {"shape": "tree"}, ["'shape' is 'tree'; it must be message_trees"]),
}  # fmt: skip


def test_there_are_enough():
    assert len(MALFORMED) >= 30


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_a_sentence(tmp_path, name):
    file, content, kind, options, expected = MALFORMED[name]
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(RecordError) as raised:
        read_records({"path": str(path), **options}, kind)
    first = str(raised.value).splitlines()[0]
    for words in expected:
        assert words in first
    assert first.endswith((".", ")."))


def test_a_folder_without_files(tmp_path):
    with pytest.raises(
        RecordError, match=f"{tmp_path} holds no .jsonl, .* file of the split train. Name the files after"
    ):
        read_records(tmp_path, Text)


# At random

WORDS = st.one_of(
    st.none(), st.integers(-1, 3), st.sampled_from(["", "a", "b c", "\ud800"]), st.booleans(), st.floats()
)
MESSAGES = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["system", "user", "assistant", 3]), "content": WORDS}
)
VALUES = st.one_of(WORDS, st.lists(WORDS, max_size=3), st.lists(MESSAGES, max_size=3), MESSAGES)
COLUMNS = ["prompt", "response", "completions", "ranks", "text", "chosen", "rejected", "messages", "id", "labeler"]
GOOD = st.sampled_from([TEXT, DEMO, PAIR | {"ranks": [1, 1]}, PAIR | {"ranks": [2, 1]}])
ROWS = st.lists(st.one_of(GOOD, st.dictionaries(st.sampled_from(COLUMNS), VALUES), WORDS), max_size=8)
KINDS = st.sampled_from([Demonstration, Comparison, Prompt, Text])


def records_and_problems(source, kind):
    """Records, malformed rows and whether anything was left."""
    problems = []
    try:
        records, message = read_records(source, kind, problems), ""
    except RecordError as error:
        records, message = [], str(error)
    assert records or "holds no" in message
    return records, problems if records else None


def check_count(source, kind, count):
    records, problems = records_and_problems(source, kind)
    assert all(isinstance(record, kind) for record in records)
    if problems is not None:
        assert len(records) + len(problems) == count
        assert all(row.place and row.problem for row in problems)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("random")


@given(ROWS, KINDS, st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"]))
def test_no_row_of_json_is_lost(folder, rows, kind, name):
    content = jsonl(*rows) if ".jsonl" in name else json.dumps(rows).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    check_count({"path": str(folder / name)}, kind, len(rows))


@given(st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES), max_size=8), KINDS)
def test_no_row_of_a_table_is_lost(folder, rows, kind):
    # One type per column, as tables have it.
    table = [{name: json.dumps(value) if name != "ranks" else [1, 2] for name, value in row.items()} for row in rows]
    columns = {name: [row.get(name) for row in table] for name in COLUMNS}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    check_count({"path": str(folder / "a.parquet")}, kind, len(rows))
    check_count(
        {"path": str(folder / "a.parquet"), "columns": {"completions": ["prompt", "response"]}}, kind, len(rows)
    )


@given(st.binary(max_size=60) | st.text('{}[]":,\n atexprom1', max_size=60).map(str.encode), KINDS)
def test_any_bytes_are_lines(folder, content, kind):
    (folder / "b.jsonl").write_bytes(content)
    check_count({"path": str(folder / "b.jsonl")}, kind, sum(bool(line.strip()) for line in content.split(b"\n")))


@given(
    st.binary(max_size=60) | st.text('[{}]":,\n atexprom1', max_size=60).map(str.encode),
    st.sampled_from(["c.jsonl.gz", "c.json", "c.json.gz", "c.csv", "c.csv.gz", "c.parquet", "c.arrow"]),
    st.booleans(),
    KINDS,
)
def test_any_bytes_are_records_or_problems(folder, content, name, packed, kind):
    (folder / name).write_bytes(gzip.compress(content) if packed and name.endswith(".gz") else content)
    source = {"path": str(folder / name), "columns": {"text": "{text}"}}
    records, problems = records_and_problems(source, kind)
    assert records or problems is None


@given(ROWS, st.sampled_from(["message_trees", {"group_by": "prompt"}]), KINDS)
def test_any_rows_have_a_shape(folder, rows, shape, kind):
    (folder / "d.jsonl").write_bytes(jsonl(*rows))
    records_and_problems({"path": str(folder / "d.jsonl"), "shape": shape}, kind)


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), max_size=8))
def test_every_ranking_is_an_example_a_problem_or_a_tie(folder, tokenizer, rankings):
    rows = [{"prompt": "w3", "completions": ["w4"] * len(ranks), "ranks": ranks} for ranks in rankings]
    (folder / "e.jsonl").write_bytes(jsonl(*rows))
    records, problems = records_and_problems(folder / "e.jsonl", Comparison)
    tokenization = Tokenization(tokenizer)
    examples = tokenization.comparisons(records)
    assert tokenization.dropped.get("all responses tied", 0) == sum(set(record.ranks) == {1} for record in records)
    assert len(examples) + sum(tokenization.dropped.values()) == len(records)
    # Ranks that stay: counted by hand from their definition.
    dense = sum(len(r) > 1 and set(r) == set(range(1, len(set(r)) + 1)) for r in rankings)
    competition = sum(
        len(r) > 1 and set(r) != set(range(1, len(set(r)) + 1)) and sorted(r) in ([1, 1, 3], [1, 1, 3, 3])
        for r in rankings
    )
    assert len(records) == dense + competition
    assert problems is None or len(problems) == len(rankings) - len(records)


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "w3": 2, "w4": 3}, unk_token="<eos>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
