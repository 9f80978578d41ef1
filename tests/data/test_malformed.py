"""Malformed files, each with its sentence."""

import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError, Text
from rlhf_lightning.data.rows.records_of import read_records

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
                          ["field 'prompt' must be a string or a list of", "got {'text': 'x'}. Write it so, or name"]),
    "half a number for labeler": ("a.jsonl", jsonl(PAIR | {"ranks": [1, 2], "labeler": 7.5}), Comparison, {},
                                  ["field 'labeler' must be a string where it is given, got 7.5. Write it as text, or "
                                   "let the source do it: 'columns: {labeler: \"{labeler}\"}'"]),
    "numbers for labels": ("a.jsonl", jsonl({"prompt": "a", "labels": {"length": 3}}), Prompt, {},
                           ["field 'labels' must be an object", "Write numbers as text, or name a column for each"]),
    "decimal ranks": ("a.jsonl", ranked(1.0, 2.0), Comparison, {},
                      ["[1.0, 2.0]. Write them so, or let the source do it: 'columns: {ranks: {rank: ranks, best"]),
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
    "UTF-16": ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), Text, {},
               ["a.jsonl, line 1: the file is UTF-16. Save it as UTF-8."]),
    "UTF-16 in CSV": ("a.csv", "text\na\n".encode("utf-16"), Text, {},
                      ["a.csv, line 1: the file is UTF-16. Save it as UTF-8."]),
    "gzip without its suffix": ("a.jsonl", gzip.compress(jsonl(TEXT)), Text, {},
                                ["a.jsonl, line 1: the file is packed by gzip, which its name does not say. Rename"]),
    "gzip in a list": ("a.json", gzip.compress(b"[]"), Text, {}, ["a.json, line 1: the file is packed by gzip"]),
    "ZIP": ("a.csv", b"PK\x03\x04...", Text, {}, ["a.csv, line 1: the file is a ZIP archive. Unpack it"]),
    "parquet as JSONL": ("a.jsonl", parquet([TEXT]), Text, {}, ["the file is parquet", "Rename it to end in .parquet"]),
    "tabs": ("a.tsv", b"prompt\tresponse\na\tb\n", Demonstration, {},
             ["a.tsv, line 1: no JSON, but cells with tabs between them. Save the table with commas and name it .csv"]),
    "tabs in CSV": ("a.csv", b"prompt\tresponse\na\tb\n", Demonstration, {},
                    ["a.csv, line 1: the cells have tabs between them. Save the table with commas."]),
    "semicolons": ("a.csv", b"prompt;response\na;b\n", Demonstration, {},
                   ["a.csv, line 1: the cells have semicolons between them. Save the table with commas."]),
    "object over several lines": ("a.json", b'{\n  "text": "a"\n}\n', Text, {},
                                  ["a.json, line 1: the JSON goes on in the next line. Write each object on a line"]),
    "list over several lines": ("a.jsonl", b'[\n  {"text": "a"},\n  {"text": "b"}\n]\n', Text, {},
                                ["a.jsonl, line 1: the JSON goes on in the next line. Write each object on a line"]),
    "cut off": ("a.jsonl", jsonl(TEXT) + b'{"text": "and th', Text, {},
                ["line 2: the last line is cut off (Unterminated string", "Write the file again, or take"]),
    "no JSON": ("a.jsonl", b"{text: a}\n" + jsonl(TEXT), Text, {},
                ["line 1: no JSON (Expecting property name", "Each line must hold one JSON object"]),
    "deep JSON": ("a.jsonl", b"[" * 200_000 + b"\n", Text, {},
                  ["line 1: the row is nested deeper than", "Mend it or leave it out"]),
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
             ["a.csv, line 1: the header names a column twice (text, text). Rename one of them."]),
    "no parquet": ("a.parquet", b"text\na\n" * 9, Text, {},
             ["a.parquet: the file cannot be read (", "Fetch or write it"]),
    "cut parquet": ("a.parquet", parquet([TEXT] * 9)[:-9], Text, {}, ["a.parquet: the file cannot be read ("]),
    "no arrow": ("a.arrow", b"text", Text, {}, ["a.arrow: the file cannot be read ("]),
    "different dialogues": ("a.jsonl", jsonl({"chosen": "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant: D",
                                              "rejected": "\n\nHuman: A\n\nAssistant: X"}), Comparison, {},
                            ["fields 'chosen' and 'rejected' must be the same up to the last reply, got '\\n\\nH"]),
    "orphan": ("a.jsonl", jsonl({"message_id": "b", "parent_id": "a", "role": "assistant", "text": "x"}), Comparison,
               {"shape": "message_trees"}, ["line 1: field 'parent_id' is 'a', which leads to no first message"]),
    "one ranked reply": ("a.jsonl", jsonl({"message_id": "a", "parent_id": None, "role": "prompter", "text": "x"},
                                          {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "y",
                                           "rank": 0}), Comparison, {"shape": "message_trees"},
                         ["line 1: field 'rank' is given for one reply alone, and a ranking needs two. Take it or"]),
    "unknown field": ("a.jsonl", jsonl(DEMO), Demonstration, {"columns": {"promt": "q"}},
                      ["a.jsonl: 'columns' names 'promt', which no record has; the fields are prompt, user, source, ",
                       "Mend the name"]),
    "unknown constant": ("a.jsonl", jsonl(DEMO), Demonstration, {"set": {"sorce": "x"}},
                         ["'set' names 'sorce', which no record has; the fields are prompt,", "Mend the name"]),
    "unknown key": ("a.jsonl", jsonl(DEMO), Demonstration, {"colums": {}},
                    ["a.jsonl has the key 'colums'; it takes path, load, split, shape, where, columns, set, sample."]),
    "columns as a list": ("a.jsonl", jsonl(DEMO), Demonstration, {"columns": ["prompt"]},
                          ["a.jsonl: 'columns' is ['prompt']. Write it as field: value, such as prompt: question."]),
    "no such shape": ("a.jsonl", jsonl(TEXT), Text, {"shape": "tree"}, ["'shape' is 'tree'; it must be message_trees"]),
}  # fmt: skip


REMEDIES = {
    *("Add", "Each", "Fetch", "Fill", "Give", "Leave", "Mend", "Name", "Number", "Put", "Quote", "Rename", "Save"),
    *("Take", "Unpack", "Write"),
}
"""How what there is to do begins."""


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
    # What is wrong, and then what to do.
    assert any(words.split()[0].capitalize() in REMEDIES for words in re.split(r"[.;:] ", first)[1:]), first


def test_a_folder_without_files(tmp_path):
    with pytest.raises(
        RecordError, match=f"{tmp_path} holds no .jsonl, .* file of the split train. Name the files after"
    ):
        read_records(tmp_path, Text)
