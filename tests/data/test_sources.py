import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import pytest
from datasets import Dataset, DatasetDict

from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError, Text
from rlhf_lightning.data.rows.records_of import read_records
from rlhf_lightning.data.sources import FileData, check_data_source
from rlhf_lightning.sandbox.data import SandboxData

pytestmark = pytest.mark.usefixtures("types_as_users_have_them")


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


def test_files_that_are_called_almost_right_are_named(tmp_path):
    row = json.dumps({"prompt": "p", "response": "r"}) + "\n"
    names = [
        "demonstrations.train.jsonl",
        "demonstrations.valid.jsonl",
        "demonstration-test.csv",
        "prompt.train.jsonl.gz",
    ]
    for name in [*names, "notes.jsonl", "old.train.jsonl", "demonstrations.backup.jsonl", "prompts.test.txt2"]:
        (tmp_path / name).write_text(row)
    options = {"demonstrations": {"train": None, "validation": None}, "prompts": {"train": None}}
    assert list(FileData(str(tmp_path), options, by_name=True).unread()) == [
        ("demonstration-test.csv", "demonstrations.test.csv"),
        ("demonstrations.valid.jsonl", "demonstrations.validation.jsonl"),
        ("prompt.train.jsonl.gz", "prompts.train.jsonl.gz"),
    ]
    assert list(FileData(str(tmp_path), {"text": {"train": names[0]}}).unread()) == []


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


def test_a_blank_cell_is_nobody(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,user,source\na,,web\nb," ",\nc,ann,web\n')
    expected = [Prompt("a", source="web"), Prompt("b"), Prompt("c", "ann", "web")]
    assert read_records(path, Prompt) == expected


def test_whole_numbers_are_identifiers(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "user": 7, "source": 0})
    assert read_records(path, Prompt) == [Prompt("a", "7", "0")]
    path = write(tmp_path / "b.jsonl", {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2], "labeler": 3})
    assert read_records(path, Comparison) == [Comparison("a", ["b", "c"], [1, 2], "3")]
    with pytest.raises(
        RecordError, match=r"got True\. Write it as text, or let the source do it: .*user: \"\{user\}\""
    ):
        read_records(write(tmp_path / "c.jsonl", {"prompt": "a", "user": True}), Prompt)


def test_labels_of_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,organisation,task,vague,rude\na,acme,chat,true,n\nb,,qa,FALSE,y\n")
    rude = {"column": "rude", "values": {"y": True, "n": False}}
    labels = {"organisation": "organisation", "use_case": "task", "ambiguous": "vague", "sensitive_content": rude}
    found = read_records({"path": str(path), "columns": {"labels": labels}}, Prompt)
    assert [record.labels for record in found] == [
        {"organisation": "acme", "use_case": "chat", "ambiguous": True, "sensitive_content": False},
        {"organisation": None, "use_case": "qa", "ambiguous": False, "sensitive_content": True},
    ]
    with pytest.raises(RecordError, match=r"line 2: column 'tenant' is missing; the row has prompt, organisation,"):
        read_records({"path": str(path), "columns": {"labels": {"organisation": "tenant"}}}, Prompt)


def test_the_user_of_a_ranking(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2], "user": "u"})
    assert read_records(path, Comparison)[0].user == "u"


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
    bad = [{"q": "a"}, {"q": "", "a": "b"}, [1], {"q": "c", "a": 5}]
    path = str(write(tmp_path / "rows.jsonl", {"q": "a", "a": "b"}, "", *bad))
    source = {"path": path, "columns": {"prompt": "q", "response": "a"}}
    with pytest.raises(RecordError) as raised:
        read_records(source, Demonstration)
    assert str(raised.value) == (
        f"{path}, line 3: column 'a' is missing; the row has q. Mend 'columns'.\n"
        "4 malformed rows in all; also\n"
        f"  {path}, line 4: field 'prompt' is empty; fill it or leave the row out.\n"
        f"  {path}, line 5: a row must be a JSON object, got [1]. Mend it or leave it out.\n"
        "  and 1 more\n"
        "(data.on_error=quarantine puts malformed rows into a file and reads the others.)"
    )
    problems = []
    assert read_records(source, Demonstration, problems.append) == [Demonstration("a", "b")]
    assert [(row.place.removeprefix(path), row.value) for row in problems] == [
        (f", line {number}", row) for number, row in enumerate(bad, 3)
    ]
    assert problems[2].problem == "a row must be a JSON object, got [1]. Mend it or leave it out."


def test_one_malformed_row_is_not_counted(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"text": ""}, {"text": "a"})
    with pytest.raises(RecordError) as raised:
        read_records(path, Text)
    first, hint = str(raised.value).splitlines()
    assert first == f"{path}, line 1: field 'text' is empty; fill it or leave the row out."
    assert hint.startswith("(data.on_error=quarantine")


def test_rows_that_a_source_wants(tmp_path):
    rows = [
        {"text": text, "split": split, "info": {"n": n}}
        for n, (text, split) in enumerate(zip("abcd", "ttv_", strict=True))
    ]
    path = str(write(tmp_path / "rows.jsonl", *rows, {"text": "e", "split": None, "info": {"n": None}}))

    def texts(**where):
        return [record.text for record in read_records({"path": path, "where": where}, Text)]

    assert texts(split="t") == ["a", "b"]
    assert texts(split=["t", "v"]) == ["a", "b", "c"]
    assert texts(**{"split": ["t", "v"], "info.n": [1, 2, 3]}) == ["b", "c"]
    assert texts(**{"info.n": "*"}) == ["a", "b", "c", "d"]
    assert texts(**{"info.n": None}) == ["e"]
    with pytest.raises(RecordError, match="line 1: column 'gone' is missing"):
        texts(gone="t")
    with pytest.raises(RecordError, match=r"rows.jsonl holds no text: no row of it is to be read\. Mend it, name"):
        texts(split="x")


def test_the_wanted_rows_of_a_tree(tmp_path):
    tree = [{"message_id": "p", "parent_id": None, "role": "prompter", "text": "Ja ?", "lang": "de"}]
    tree += [{"message_id": n, "parent_id": "p", "role": "assistant", "text": f"{n}", "rank": n} for n in (1, 0)]
    source = {"path": str(write(tmp_path / "rows.jsonl", *tree)), "shape": "message_trees"}
    expected = Comparison([{"role": "user", "content": "Ja ?"}], ["1", "0"], [2, 1])
    assert read_records({**source, "where": {"lang": ["de", "nl"]}}, Comparison) == [expected]
    with pytest.raises(RecordError, match="no row of it is to be read"):
        read_records({**source, "where": {"lang": "en"}}, Comparison)


def test_an_identifier_occurs_once(tmp_path):
    rows = [{"id": "a", "text": "x"}, {"id": 1, "text": "y"}, {"id": "a", "text": "z"}, {"id": None, "text": "u"}]
    path = str(write(tmp_path / "rows.jsonl", *rows, {"id": None, "text": "v"}, {"id": [1], "text": "w"}))
    with pytest.raises(RecordError) as raised:
        read_records(path, Text)
    assert str(raised.value).startswith(
        f"{path}, line 3: field 'id' is 'a', as at {path}, line 1. Leave one of the rows out, or hide the column if it "
        "names something else: 'columns: {id: null}'."
    )
    texts = [record.text for record in read_records({"path": path, "columns": {"id": None}}, Text)]
    assert texts == ["x", "y", "z", "u", "v", "w"]
    # Within a source of its own, that is.
    path = write(tmp_path / "two.jsonl", *({"id": 1, "text": "x", "source": source} for source in ("a", "b")))
    assert len(read_records(path, Text)) == 2
    # The first of the rows stays, and one that is malformed for another reason takes no identifier.
    path = write(tmp_path / "more.jsonl", {"id": 1, "text": ""}, {"id": 1, "text": "x"}, {"id": 1, "text": "y"})
    problems = []
    assert read_records(path, Text, problems.append) == [Text("x")]
    assert len(problems) == 2


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
    with pytest.raises(RecordError, match=r"set \(train\), row 1: field 'text'"):
        read_records(tmp_path / "set", Text)


def test_a_line_that_is_no_json(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"text": "a"}, "{text: a}")
    with pytest.raises(RecordError, match=r"rows.jsonl, line 2: no JSON .* Each line must hold one JSON object"):
        read_records(path, Text)


def test_a_line_that_is_no_json_can_be_set_aside(tmp_path):
    path = write(tmp_path / "rows.jsonl", "{text: a}", {"text": "a"})
    problems = []
    assert read_records(path, Text, problems.append) == [Text("a")]
    assert [row.value for row in problems] == ["{text: a}"]


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
    with pytest.raises(RecordError, match=r"rows\.jsonl holds no prompt: no row of it is to be read\. Mend it, name"):
        read_records(path, Prompt)


def test_nothing_but_malformed_rows(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"prompt": ""}, "x")
    problems = []
    with pytest.raises(RecordError, match=r"holds no prompt: all its rows are malformed\. Mend it.*\n.*line 1: field"):
        read_records(path, Prompt, problems.append)
    with pytest.raises(RecordError, match="the data set holds no prompt: no row"):
        read_records(Dataset.from_list([]), Prompt)


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


def test_malformed_rows_go_to_a_file(tmp_path):
    lost = b'{"text": "\xff"}\n'
    rows = [{"text": "", "when": "now"}, {"text": "b"}, {"text": "\ud800"}]
    write(tmp_path / "good.jsonl", {"text": "a"})
    bad = write(tmp_path / "bad.jsonl", *rows)
    bad.write_bytes(bad.read_bytes() + lost)
    files = {"text": {"train": ["good.jsonl", {"path": "bad.jsonl"}], "test": "good.jsonl"}}
    aside = tmp_path / "run" / "quarantine"
    data = FileData(str(tmp_path), files, "quarantine", str(aside))
    assert data.records("text", "train") == [Text("a"), Text("b")]
    assert data.records("text", "test") == [Text("a")]
    assert [file.name for file in aside.iterdir()] == ["text.train.jsonl"]
    found = [json.loads(line) for line in (aside / "text.train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["place"] for row in found] == [f"{bad}, line {number}" for number in (1, 3, 4)]
    assert [row["row"] for row in found] == [rows[0], rows[2], '{"text": "\\xff"}']
    assert found[0]["problem"] == "field 'text' is empty; fill it or leave the row out."
    assert list(data.malformed) == [str(aside / "text.train.jsonl")]
    assert data.malformed[str(aside / "text.train.jsonl")].sentences[0] == f"{bad}, line 1: {found[0]['problem']}"
    with pytest.raises(RecordError, match=r"bad\.jsonl, line 1"):
        FileData(str(tmp_path), files).records("text", "train")
    # Once the data is mended, the file goes.
    write(bad, {"text": "c"})
    data = FileData(str(tmp_path), files, "quarantine", str(aside))
    assert data.records("text", "train") == [Text("a"), Text("c")]
    assert data.malformed == {}
    assert list(aside.iterdir()) == []


def test_a_stream_reads_anew_each_time(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "a"}, {"text": ""}, {"text": "b"})
    data = FileData(str(tmp_path), {"text": {"train": "a.jsonl"}}, "quarantine", str(tmp_path / "aside"))
    stream = data.stream("text", "train")
    assert data.stream("text", "test") is None
    assert list(stream.malformed.rows()) == []
    aside = tmp_path / "aside" / "text.train.jsonl"
    assert next(iter(stream)) == Text("a")
    # Who stops before the end leaves nothing behind.
    assert not list(tmp_path.glob("aside/*"))
    for _ in range(2):
        assert list(stream.placed()) == [(f"{path}, line 1", Text("a")), (f"{path}, line 3", Text("b"))]
        assert [(row.place, row.problem[:21]) for row in stream.malformed.rows()] == [
            (f"{path}, line 2", "field 'text' is empty")
        ]
        assert len(aside.read_text().splitlines()) == 1
    assert len(data.malformed[str(aside)]) == 1
    write(path, {"text": "c"})
    assert list(stream) == [Text("c")]
    assert list(stream.malformed.rows()) == []
    assert not aside.exists()
    write(path, {"text": ""})
    stopping = FileData(str(tmp_path), {"text": {"train": "a.jsonl"}}).stream("text", "train")
    with pytest.raises(RecordError, match=r"a\.jsonl, line 1: field 'text' is empty"):
        list(stopping)


def test_a_row_that_json_does_not_know_can_be_set_aside(tmp_path):
    rows = [{"text": "a", "at": datetime(2022, 3, 4, tzinfo=UTC)}, {"text": "", "at": datetime(2022, 3, 5, tzinfo=UTC)}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    data = FileData(str(tmp_path), {"text": {"train": "set"}}, "quarantine", str(tmp_path / "aside"))
    assert data.records("text", "train") == [Text("a")]
    assert '"at": "2022-03-05 00:00:00' in (tmp_path / "aside" / "text.train.jsonl").read_text(encoding="utf-8")


def test_the_split_is_that_of_the_entry(tmp_path):
    for split in ("train", "test", "dev"):
        write(tmp_path / "set" / f"{split}.jsonl", {"text": split})
    files = {"text": {"train": "set", "test": {"path": "set"}, "validation": {"path": "set", "split": "test"}}}
    data = FileData(str(tmp_path), files)
    assert [data.records("text", split)[0].text for split in ("train", "test", "validation")] == [
        "train",
        "test",
        "test",
    ]


def test_a_set_of_the_hub_in_a_folder(tmp_path):
    write(tmp_path / "train.jsonl.gz", {"q": "a"})
    write(tmp_path / "extra" / "more.jsonl", {"q": "b"})
    rows = {"hub": "nobody/nothing", "columns": {"prompt": "q"}}
    files = {
        "prompts": {"train": rows, "test": rows},
        "demonstrations": {"train": {**rows, "path": "extra"}, "validation": {**rows, "path": "gone"}},
    }
    data = FileData(str(tmp_path), files)
    assert data.records("prompts", "train") == [Prompt("a")]
    assert data.records("prompts", "test") is None
    assert data.records("demonstrations", "validation") is None
    assert [source["path"] for source in data.files["demonstrations"]["train"]] == [str(tmp_path / "extra")]
    with pytest.raises(
        ValueError, match=r"holds no \.jsonl.* file for nobody/nothing \(data\.source\.files\.prompts\.test\)\. Name"
    ):
        FileData(str(tmp_path), {"prompts": {"test": rows}})
    # Without a folder the hub is asked.
    hub = FileData(None, {"prompts": {"train": rows}})
    with pytest.raises(RecordError, match="nobody/nothing is no file here, and the hub does not give it"):
        hub.records("prompts", "train")


def test_files_that_are_called_by_kind_and_split_are_found(tmp_path):
    open_entries = {
        "demonstrations": {"train": None, "validation": None},
        "text": {"train": None, "test": "mine.jsonl"},
    }
    with pytest.raises(ValueError, match=r"holds no records: their files are called <kind>\.<split>\.jsonl"):
        FileData(str(tmp_path), {"text": {"train": None}}, by_name=True)
    write(tmp_path / "demonstrations.train.jsonl", {"prompt": "a", "response": "b"})
    write(tmp_path / "text.train.jsonl.gz", {"text": "a"})
    write(tmp_path / "mine.jsonl", {"text": "b"})
    write(tmp_path / "text.test.jsonl", {"text": "not what was named"})
    data = FileData(str(tmp_path), open_entries, by_name=True)
    assert data.records("demonstrations", "train") == [Demonstration("a", "b")]
    assert data.records("text", "train") == [Text("a")]
    assert data.records("text", "test") == [Text("b")], "what is named wins"
    assert not data.has("demonstrations", "validation")
    assert not FileData(str(tmp_path), open_entries).has("demonstrations", "train")
    write(tmp_path / "text.train.jsonl", {"text": "c"})
    with pytest.raises(ValueError, match=r"holds text\.train\.jsonl and text\.train\.jsonl\.gz\. Name one of them"):
        FileData(str(tmp_path), open_entries, by_name=True)
    with pytest.raises(ValueError, match=r"data\.root=gone is no folder: there is no /.*/gone\. Mend the path"):
        FileData("gone", {"text": {"train": None}}, by_name=True)


def test_paths_without_a_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", {"text": "a"})
    assert FileData(None, {"text": {"train": "a.jsonl"}}).records("text", "train") == [Text("a")]


@pytest.mark.parametrize("entry", ["gone.jsonl", "gone.jsonl.gz", "./gone", {"path": "gone.json"}, ["gone.jsonl"]])
def test_a_missing_file_is_a_sentence(tmp_path, entry):
    with pytest.raises(ValueError, match=r"data\.source\.files\.prompts\.train: .*gone.* does not exist\. Set d"):
        FileData(str(tmp_path), {"prompts": {"train": entry}})


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="on_error must be one of stop, quarantine, got 'skip'"):
        FileData(str(tmp_path), {}, on_error="skip")
    with pytest.raises(ValueError, match="on_error=quarantine needs the folder"):
        FileData(str(tmp_path), {}, on_error="quarantine")
    with pytest.raises(ValueError, match=r"files must be a mapping by one of demonstrations, .* by one of train"):
        FileData(str(tmp_path), {"promts": {}})
    for entry, sentence in (
        ({"path": "a", "colums": {}}, r" has the key 'colums'; it takes hub, path, load, split, .*\. Mend the key"),
        ({"columns": {}}, " has the keys split, columns, but neither path nor hub. Add one"),
        (
            {"path": "a", "columns": {"promt": "q"}},
            r": 'columns' names 'promt', .* the fields are prompt, user, .*\. M",
        ),
        ({"path": "a", "set": {"sorce": "x"}}, r": 'set' names 'sorce', .* the fields are prompt, user, source, "),
    ):
        with pytest.raises(ValueError, match=rf"data\.source\.files\.text\.train{sentence}"):
            FileData(str(tmp_path), {"text": {"train": entry}})


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


# What the pipeline asks


def test_whether_there_are_records_is_told_without_reading(tmp_path):
    (tmp_path / "a.jsonl").write_text("{no json")
    data = FileData(str(tmp_path), {"text": {"train": "a.jsonl", "test": None}, "prompts": {}})
    assert data.has("text", "train")
    assert not any(data.has(*place) for place in [("text", "test"), ("prompts", "train"), ("comparisons", "train")])
    with pytest.raises(RecordError, match=r"a\.jsonl, line 1: the last line is cut off"):
        data.records("text", "train")


def test_a_source_of_a_user():
    class Own:
        malformed = MappingProxyType({})

        def has(self, name, split):
            return False

        records = stream = has

    with pytest.raises(ValueError, match=r"data\.source builds a Own without fingerprint\. Add what rlhf_lightning\.d"):
        check_data_source(Own())
    Own.fingerprint = lambda self: "0"
    source = Own()
    assert check_data_source(source) is source
    for source in (SandboxData(), FileData(None, {})):
        assert check_data_source(source) is source
