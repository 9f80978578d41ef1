"""Rows at random through every reader: each is a record or a problem."""

import csv
import gzip
import io
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError, Text
from rlhf_lightning.data.rows.records_of import read_records
from rlhf_lightning.data.tokenize import Tokenization

pytestmark = pytest.mark.usefixtures("types_as_users_have_them")

DEMO, PAIR, TEXT = {"prompt": "a", "response": "b"}, {"prompt": "a", "completions": ["b", "c"]}, {"text": "a"}


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


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
        records, message = read_records(source, kind, problems.append), ""
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


# One type per column, as tables have it.
CELLS = st.sampled_from([None, "", "a", "b c"])
TABLE_ROWS = st.lists(
    st.fixed_dictionaries(
        {name: CELLS for name in ("prompt", "response", "text", "labeler")}
        | {
            "completions": st.none() | st.lists(CELLS, max_size=3),
            "ranks": st.none() | st.lists(st.integers(0, 3), max_size=3),
            "messages": st.none()
            | st.lists(
                st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": CELLS}), max_size=3
            ),
            "id": st.none() | st.integers(0, 20),
        }
    ),
    max_size=12,
)
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("prompt", "response", "text", "labeler")]
    + [
        ("completions", pa.list_(pa.string())),
        ("ranks", pa.list_(pa.int64())),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("id", pa.int64()),
    ]
)


@given(TABLE_ROWS, KINDS, st.sampled_from(["parquet", "arrow", "save_to_disk", "memory"]))
def test_no_row_of_a_table_is_lost(folder, rows, kind, form):
    table = pa.Table.from_pylist(rows, SCHEMA)
    if form == "parquet":
        source = {"path": str(folder / "a.parquet")}
        pq.write_table(table, source["path"], row_group_size=3)
    else:
        source = Dataset(table)
        if form != "memory":
            saved = folder / "saved"
            shutil.rmtree(saved, ignore_errors=True)
            source.save_to_disk(saved)
            source = {"path": str(saved if form == "save_to_disk" else next(saved.glob("*.arrow")))}
    check_count(source, kind, len(rows))
    if form != "memory":
        check_count({**source, "columns": {"completions": ["prompt", "response"]}}, kind, len(rows))


@given(
    st.lists(st.lists(st.text("a\"',;\n\t é", max_size=4), min_size=3, max_size=3), max_size=12), st.booleans(), KINDS
)
def test_no_row_of_csv_is_lost(folder, rows, packed, kind):
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["prompt", "response", "text"], *rows])
    path = folder / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(text.getvalue().encode()) if packed else text.getvalue().encode())
    check_count({"path": str(path)}, kind, len(rows))
    if kind is not Comparison:
        # What is in each cell arrives, too.
        needed = {Prompt: [0], Demonstration: [0, 1], Text: [2]}[kind]
        good = [[row[place] for place in needed] for row in rows if all(row[place].strip() for place in needed)]
        records, _ = records_and_problems({"path": str(path)}, kind)
        names = ("prompt", "response") if kind is not Text else ("text",)
        assert [[getattr(record, name) for name in names[: len(needed)]] for record in records] == good


@pytest.mark.parametrize("form", ["csv", "arrow", "parquet", "save_to_disk"])
def test_every_row_of_many_arrives_in_order(tmp_path, form):
    texts = [f"text {number}" for number in range(2500)]
    table, path = Dataset.from_dict({"text": texts}), tmp_path / f"a.{form}"
    if form == "csv":
        path.write_text("text\n" + "\n".join(texts))
    elif form == "parquet":
        table.to_parquet(path)
    else:
        table.save_to_disk(tmp_path / "saved")
        path = tmp_path / "saved" if form == "save_to_disk" else next((tmp_path / "saved").glob("*.arrow"))
    assert [record.text for record in read_records(path, Text)] == texts


@given(st.binary(max_size=60) | st.text('{}[]":,\n atexprom1', max_size=60).map(str.encode), KINDS)
def test_any_bytes_are_lines(folder, content, kind):
    (folder / "b.jsonl").write_bytes(content)
    lines = sum(bool(line.strip()) for line in content.split(b"\n"))
    records, problems = records_and_problems({"path": str(folder / "b.jsonl")}, kind)
    if problems is not None and not any(row.unread for row in problems):
        assert len(records) + len(problems) == lines


@given(
    st.binary(max_size=60) | st.text('[{}]":,\n atexprom1', max_size=60).map(str.encode),
    st.sampled_from(["c.jsonl.gz", "c.json", "c.json.gz", "c.csv", "c.csv.gz", "c.parquet", "c.arrow"]),
    st.booleans(),
    KINDS,
)
def test_any_bytes_are_records_or_problems(folder, content, name, packed, kind):
    (folder / name).write_bytes(gzip.compress(content) if packed and name.endswith(".gz") else content)
    source = {"path": str(folder / name), "columns": {"text": "{text}"}}
    problems = []
    try:
        records = read_records(source, kind, problems.append)
    except RecordError as error:
        (reason,) = re.findall(r"holds no \w+: (.*?)\. Mend it", str(error))
        # Nothing was there, or else it is said what was.
        assert bool(problems) == (reason == "all its rows are malformed")
        return
    # So short a file with a record in it is text, and each record and problem stands on lines of its own.
    assert records
    assert len(records) + len(problems) <= max(1, content.count(b"{")) + content.count(b"\n") + content.count(b"\r")
    assert all(row.place.startswith(str(folder / name)) and row.problem for row in problems)


@given(ROWS, st.sampled_from(["message_trees", {"group_by": "prompt"}]), KINDS)
def test_any_rows_have_a_shape(folder, rows, shape, kind):
    (folder / "d.jsonl").write_bytes(jsonl(*rows))
    problems = []
    try:
        records = read_records({"path": str(folder / "d.jsonl"), "shape": shape}, kind, problems.append)
    except RecordError:
        records = []
    if shape == "message_trees":
        # None of these rows is a message; a tree is one of its own.
        assert len(records) + len(problems) == len(rows)
    else:
        places = [row.place for row in problems]
        grouped = sum(int(place.rpartition("first of ")[2][:-1]) if "first of" in place else 1 for place in places)
        assert grouped + len(records) <= len(rows)
        assert grouped == len(rows) or records


def test_a_turn_with_one_ranked_reply_is_counted(tmp_path):
    turns = [{"message_id": "q", "parent_id": None, "role": "prompter", "text": "Up ?"}]
    turns += [{"message_id": n, "parent_id": "q", "role": "assistant", "text": n, "rank": 0} for n in "a"]
    more = [{"message_id": "r", "parent_id": None, "role": "prompter", "text": "Down ?"}]
    more += [{"message_id": n, "parent_id": "r", "role": "assistant", "text": n, "rank": ord(n)} for n in "cd"]
    (tmp_path / "a.jsonl").write_bytes(jsonl(*turns, *more))
    problems = []
    records = read_records({"path": str(tmp_path / "a.jsonl"), "shape": "message_trees"}, Comparison, problems.append)
    assert [record.completions for record in records] == [["c", "d"]]
    assert [row.place.rpartition(", ")[2] for row in problems] == ["line 1"]


def test_rows_behind_a_huge_cell_are_read(tmp_path):
    (tmp_path / "a.csv").write_text("text\na\n" + "x" * 10_000_000 + "\nb\n")
    problems = []
    assert [record.text for record in read_records(tmp_path / "a.csv", Text, problems.append)] == ["a", "b"]
    assert [(row.place.rpartition(", ")[2], row.unread) for row in problems] == [("line 3", False)]
    assert csv.field_size_limit() == 131_072


def test_what_stands_for_the_rest_of_a_file_says_so(tmp_path):
    (tmp_path / "a.csv").write_text('text\na\n"b\nc\n')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(*[TEXT] * 9))[:-9])
    for name in ("a.csv", "a.jsonl.gz"):
        problems = []
        read_records(tmp_path / name, Text, problems.append)
        assert [row.unread for row in problems] == [True]


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
