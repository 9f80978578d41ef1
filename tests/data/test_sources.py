import gzip
import json
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, DatasetDict

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError, Text
from rlhf_lightning.data.sources import FileData, read_records

REPOSITORY = Path(__file__).parents[2]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def write(path, *rows):
    """JSON rows, or lines as they are."""
    path.parent.mkdir(exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.jsonl.gz"])
@pytest.mark.parametrize("kind_of_path", [str, Path])
def test_jsonl(tmp_path, name, kind_of_path):
    path = write(tmp_path / name, {"text": "a wórd"}, "", {"text": "another", "source": "web"})
    assert read_records(kind_of_path(path), Text) == [Text("a wórd"), Text("another", "web")]


def test_a_data_set_in_memory_and_on_disk(tmp_path):
    rows = Dataset.from_list([{"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2]}])
    expected = [Comparison("a", ["b", "c"], [1, 2])]
    assert read_records(rows, Comparison) == expected
    rows.save_to_disk(tmp_path / "one")
    assert read_records(tmp_path / "one", Comparison) == expected
    DatasetDict(train=rows, valid=rows.map(lambda row: {**row, "prompt": "v"})).save_to_disk(tmp_path / "splits")
    assert read_records(str(tmp_path / "splits"), Comparison) == expected
    assert read_records({"path": str(tmp_path / "splits"), "split": "valid"}, Comparison)[0].prompt == "v"


def test_records_themselves():
    records = [Prompt("a"), Prompt("b")]
    assert read_records(records, Prompt) == records
    with pytest.raises(RecordError, match="record 1 is a Text, a Prompt is needed"):
        read_records([Prompt("a"), Text("b")], Prompt)


@pytest.mark.parametrize(
    ("columns", "constants", "row", "expected"),
    [
        ({"prompt": "q", "response": "a"}, {}, {"q": "one", "a": "two"}, Demonstration("one", "two")),
        # A column under another name wins over one of the same name; what is not mapped keeps its name.
        ({"prompt": "q"}, {}, {"prompt": "x", "q": "one", "response": "two"}, Demonstration("one", "two")),
        ({"prompt": "{q}\n{in}"}, {}, {"q": "one", "in": "1", "response": "two"}, Demonstration("one\n1", "two")),
        ({"prompt": "{q}\n{in}"}, {}, {"q": "one", "in": "", "response": "two"}, Demonstration("one", "two")),
        ({"prompt": "{q}\n{in}"}, {}, {"q": "one", "in": None, "response": "two"}, Demonstration("one", "two")),
        ({"prompt": "{q} {q} {r}"}, {}, {"q": "{r}", "r": 3, "response": "b"}, Demonstration("{r} {r} 3", "b")),
        ({}, {"source": "s"}, {"prompt": "p", "response": "r", "source": "x"}, Demonstration("p", "r", source="s")),
    ],
)
def test_columns_of_demonstrations(tmp_path, columns, constants, row, expected):
    path = str(write(tmp_path / "rows.jsonl", row))
    assert read_records({"path": path, "columns": columns, "set": constants}, Demonstration) == [expected]


def test_list_and_value_table(tmp_path):
    path = write(
        tmp_path / "pairs.jsonl",
        {"prompt": "a", "first": "b", "second": "c", "label": 2},
        {"prompt": "d", "first": "e", "second": "f", "label": 0},
    )
    columns = {"completions": ["first", "second"], "ranks": {"column": "label", "values": {0: [1, 1], 2: [2, 1]}}}
    expected = [Comparison("a", ["b", "c"], [2, 1]), Comparison("d", ["e", "f"], [1, 1])]
    assert read_records({"path": str(path), "columns": columns}, Comparison) == expected


def test_the_message_names_file_line_column_and_count(tmp_path):
    path = str(write(tmp_path / "rows.jsonl", {"q": "a", "a": "b"}, "", {"q": "a"}, {"q": "", "a": "b"}, [1]))
    source = {"path": path, "columns": {"prompt": "q", "response": "a"}}
    with pytest.raises(RecordError) as raised:
        read_records(source, Demonstration)
    assert str(raised.value) == (
        f"{path}, line 3: column 'a' is missing; the row has q. Mend 'columns'. (3 malformed rows in all)"
    )
    skipped = []
    assert read_records(source, Demonstration, skipped) == [Demonstration("a", "b")]
    assert [line.removeprefix(path).split(":")[0] for line in skipped] == [", line 3", ", line 4", ", line 5"]
    assert "a row must be a JSON object, got list" in skipped[2]


def test_one_malformed_row_is_not_counted(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"text": ""})
    with pytest.raises(RecordError) as raised:
        read_records(path, Text)
    assert str(raised.value) == f"{path}, line 1: field 'text' is empty; fill it or leave the row out."


def test_a_value_without_entry(tmp_path):
    path = str(write(tmp_path / "rows.jsonl", {"prompt": "a", "completions": ["b", "c"], "label": "tie"}))
    columns = {"ranks": {"column": "label", "values": {"first": [1, 2], "second": [2, 1]}}}
    with pytest.raises(RecordError, match="'label' holds 'tie', for which 'values' has no entry; it has 'first', 'sec"):
        read_records({"path": path, "columns": columns}, Comparison)


def test_rows_of_a_data_set_are_named_by_number(tmp_path):
    rows = Dataset.from_list([{"text": "a"}, {"text": ""}])
    with pytest.raises(RecordError, match=r"^row 1: field 'text'"):
        read_records(rows, Text)
    rows.save_to_disk(tmp_path / "set")
    with pytest.raises(RecordError, match=r"set, row 1: field 'text'"):
        read_records(tmp_path / "set", Text)


def test_a_line_that_is_no_json(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"text": "a"}, "{text: a}")
    with pytest.raises(RecordError, match=r"rows.jsonl, line 2: no JSON .* Each line must hold one JSON object"):
        read_records(path, Text)


def test_a_line_that_is_no_json_can_be_skipped(tmp_path):
    path = write(tmp_path / "rows.jsonl", "{text: a}", {"text": "a"})
    skipped = []
    assert read_records(path, Text, skipped) == [Text("a")]
    assert len(skipped) == 1


def test_a_value_that_is_a_list_has_no_entry(tmp_path):
    path = str(write(tmp_path / "rows.jsonl", {"prompt": "a", "completions": ["b", "c"], "label": [1]}))
    with pytest.raises(RecordError, match="'label'"):
        read_records({"path": path, "columns": {"ranks": {"column": "label", "values": {1: [1, 2]}}}}, Comparison)


def test_a_template_writes_zero(tmp_path):
    path = str(write(tmp_path / "rows.jsonl", {"n": 0}))
    assert read_records({"path": path, "columns": {"text": "page {n}"}}, Text) == [Text("page 0")]


@pytest.mark.parametrize("rows", [(), ("", "")])
def test_an_empty_file(tmp_path, rows):
    path = write(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(RecordError, match=r"rows\.jsonl.* holds no prompt; there is nothing to train on"):
        read_records(path, Prompt)


# Files by kind and split


def test_records_by_kind_and_split(tmp_path):
    write(tmp_path / "a.jsonl", {"text": "a"})
    write(tmp_path / "sub" / "b.jsonl.gz", {"body": "b"})
    parts = ["a.jsonl", {"path": "sub/b.jsonl.gz", "columns": {"text": "body"}, "set": {"source": "s"}}, None]
    data = FileData(str(tmp_path), {"text": {"train": parts, "validation": None, "test": []}, "prompts": {}})
    assert data.records("text", "train") == [Text("a"), Text("b", "s")]
    assert data.malformed == {}
    for name, split in [("text", "validation"), ("text", "test"), ("prompts", "train"), ("demonstrations", "train")]:
        assert data.records(name, split) is None


def test_skipped_rows_are_counted_by_file(tmp_path):
    good, bad = (
        write(tmp_path / "good.jsonl", {"text": "a"}),
        write(tmp_path / "bad.jsonl", {"text": ""}, {"text": "b"}),
    )
    files = {"text": {"train": ["good.jsonl", {"path": "bad.jsonl"}]}}
    data = FileData(str(tmp_path), files, on_error="skip")
    assert data.records("text", "train") == [Text("a"), Text("b")]
    assert {path: len(problems) for path, problems in data.malformed.items()} == {str(bad): 1}
    assert str(good) not in data.malformed
    with pytest.raises(RecordError, match=r"bad\.jsonl, line 1"):
        FileData(str(tmp_path), files).records("text", "train")


@pytest.mark.parametrize("entry", ["gone.jsonl", "gone.jsonl.gz", "./gone", {"path": "gone.json"}, ["gone.jsonl"]])
def test_a_missing_file_is_a_sentence(tmp_path, entry):
    with pytest.raises(ValueError, match=r"data\.files\.prompts\.train: .*gone.* does not exist\. Set data\.root"):
        FileData(str(tmp_path), {"prompts": {"train": entry}})


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="on_error must be stop or skip, got 'ignore'"):
        FileData(str(tmp_path), {}, on_error="ignore")
    with pytest.raises(ValueError, match=r"data\.files\.promts is unknown; the kinds are demonstrations, "):
        FileData(str(tmp_path), {"promts": {}})


def test_fingerprint_follows_the_content(tmp_path):
    file = write(tmp_path / "a.jsonl", {"text": "a"})
    folder = tmp_path / "set"
    write(folder / "b.jsonl", {"text": "b"})

    def fingerprint(**options):
        return FileData(str(tmp_path), {"text": {"train": ["a.jsonl", {"path": "set", **options}]}}).fingerprint()

    seen = [fingerprint(), fingerprint(columns={"text": "body"})]
    assert fingerprint() == seen[0]
    write(file, {"text": "A"})
    seen.append(fingerprint())
    write(folder / "b.jsonl", {"text": "B"})
    seen.append(fingerprint())
    assert len(set(seen)) == 4
    write(file, {"text": "a"})
    write(folder / "b.jsonl", {"text": "b"})
    assert fingerprint() == seen[0]


def test_the_mapping_of_the_public_data():
    if not SHARED_DATA.exists():
        pytest.skip("the public data sets are not beside this checkout")
    node = yaml.safe_load((REPOSITORY / "conf" / "data" / "real.yaml").read_text(encoding="utf-8"))["source"]
    data = FileData(str(SHARED_DATA), node["files"], node["on_error"])
    assert len(data.records("demonstrations", "train")) == 9356
    assert data.malformed == {}
    comparisons = data.records("comparisons", "train")
    assert len(comparisons) == 3428  # 2544 + 623 + 210 + 51
    assert {record.source for record in comparisons} == {
        "alpaca_eval_gpt4", "tulu_bon_gpt4", "summaries_human", "dialogue_human"
    }  # fmt: skip
    pairs = data.records("judge_comparisons", "train")
    assert len(pairs) == 2324
    assert {tuple(record.ranks) for record in pairs} == {(1, 2), (2, 1), (1, 1)}
    assert [len(problems) for problems in data.malformed.values()] == [52]
