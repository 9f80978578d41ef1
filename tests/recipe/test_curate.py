"""Stage curate as the command line drives it."""

import json
import weakref
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from rlhf_lightning.cli import CONFIG_DIR, resolved, run
from rlhf_lightning.curation.rows import CHUNK
from rlhf_lightning.data.records import Prompt, RecordError
from rlhf_lightning.recipe.curated import CuratedData
from rlhf_lightning.recipe.pipeline import Pipeline
from rlhf_lightning.runs.folders import PipelineError, Runs, begin_stage, complete_stage, read_stage
from rlhf_lightning.runs.identity import records_fingerprint
from rlhf_lightning.runs.targets import builder

pytestmark = pytest.mark.filterwarnings("ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*")
SHARED = Path(__file__).parents[3] / "shared" / "data"


def config(folder, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("config", [f"paths.runs={folder}", "run=r", *overrides])


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".jsonl", ".html")}


@pytest.fixture
def data(tmp_path):
    """A folder of JSONL files with a fault of every sort."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = {
        "demonstrations.train": [
            {"prompt": f"what is {n} ?", "response": "two words", "user": f"u{n}"} for n in range(9)
        ],
        "prompts.train": [{"prompt": f"who is {n} ?", "user": "heavy"} for n in range(9)]
        + [
            {"prompt": "Who  is 3 ?", "user": "heavy"},
            {"prompt": "mail jo@example.org", "user": "v"},
            {"prompt": "what is asked in the test ?", "user": "w"},
            {"prompt": " ".join(["long"] * 60)},
        ],
        "prompts.test": [{"prompt": "what is asked in the test ?", "user": "t"}],
        "comparisons.train": [{"prompt": "who is 1 ?", "completions": ["a", "b", "c"], "ranks": [1, 2, 2]}],
        "few_shot": [{"instruction": "opposite", "pairs": [{"query": "up", "response": "down"}] * 2, "user": "l"}],
    }
    for name, given in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    return folder


def options(data):
    return [
        "stages=[curate]",
        "data=jsonl",
        f"data.root={data}",
        "data.source.files.comparisons.train=comparisons.train.jsonl",
        "data.lengths={max_prompt_tokens: 48, max_response_tokens: 26, block_size: 192, prompt_template: '{prompt}'}",
        "curate.curator.splits.shares=null",
        "curate.curator.thinning.most_per_group=4",
        f"curate.few_shot=[{data}/few_shot.jsonl]",
    ]


def test_a_folder_of_files(data, tmp_path, capsys):
    with (data / "prompts.train.jsonl").open("a") as file:
        file.write('{"prompt": " "}\n')
    run(config(tmp_path, *options(data), "data.on_error=quarantine"))
    folder = tmp_path / "r" / "curate"
    card = json.loads((folder / "data_card.json").read_text())
    prompts = card["kinds"]["prompts"]
    assert (prompts["raw"], prompts["added"], prompts["kept"]) == (15, 0, 5)
    assert prompts["dropped"] == {
        "over 4 of one user": 5,
        "exact duplicate": 2,  # one of the user's own, one that the test split asks
        "malformed": 1,
        "personal data": 1,
        "prompt over 48 tokens": 1,
    }
    assert prompts["personal"] == {"email": 1}
    assert [row["user"] for row in lines(folder / "prompts.test.jsonl")] == ["t"]
    assert [row["user"] for row in lines(folder / "prompts.train.jsonl")] == ["heavy"] * 4
    demonstrations = card["kinds"]["demonstrations"]
    assert (demonstrations["raw"], demonstrations["added"], demonstrations["kept"]) == (10, 1, 10)
    assert demonstrations["dropped"] == {"exact duplicate": 1}  # the two pairs are the same
    places = {row["place"]: row["reason"] for row in lines(folder / "dropped.jsonl")}
    path = data / "prompts.train.jsonl"
    assert places[f"{path}, line 11"] == "personal data"
    assert [place for place, reason in places.items() if reason == "malformed"] == [f"{path}, line 14"]
    assert len(lines(tmp_path / "r" / "quarantine" / "prompts.train.jsonl")) == 1
    assert "table 1 needs the field `use_case`: not in these records" in card["missing"]
    assert "jo@example.org" not in "".join(path.read_text() for path in folder.glob("*.*"))
    stage = read_stage(folder)
    assert (stage["status"], stage["metrics"]["prompts"]["kept"]) == ("complete", 5)
    assert "15 read + 0 added = 5 kept + 10 dropped" in (said := " ".join(capsys.readouterr().out.split()))
    assert "malformed rows: 1, now in" in said


def test_it_is_skipped_when_complete_and_refused_with_other_settings(data, tmp_path, capsys):
    run(config(tmp_path, *options(data)))
    before = written(tmp_path / "r" / "curate")
    run(config(tmp_path, *options(data)))
    assert "complete already, skipped" in capsys.readouterr().out
    with pytest.raises(PipelineError, match=r"most_per_group: 4 there, 5 now"):
        run(config(tmp_path, *options(data), "curate.curator.thinning.most_per_group=5"))
    with (data / "few_shot.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(PipelineError, match=r"curate\.few_shot: 'content:\w+' there, 'content:\w+' now\n"):
        run(config(tmp_path, *options(data)))
    run(config(tmp_path, *options(data), "overwrite=true"))
    assert written(tmp_path / "r" / "curate") == before


def test_malformed_few_shot_prompts_are_booked(data, tmp_path):
    with (data / "few_shot.jsonl").open("a") as file:
        file.write('{"instruction": "opposite", "pairs": []}\n')
    with pytest.raises(RecordError, match=r"few_shot.jsonl, line 2: field 'pairs' is empty; add at least one"):
        run(config(tmp_path, *options(data)))
    run(config(tmp_path, *options(data), "run=s", "data.on_error=quarantine"))
    books = json.loads((tmp_path / "s" / "curate" / "data_card.json").read_text())["kinds"]["demonstrations"]
    assert (books["raw"], books["added"], books["kept"]) == (11, 1, 10)
    assert books["dropped"] == {"exact duplicate": 1, "malformed": 1}
    assert len(lines(tmp_path / "s" / "quarantine" / "few_shot.jsonl")) == 1


def pipeline_of(folder, *overrides):
    plain = resolved(config(folder, *overrides))
    upstream = plain["upstream"]
    runs = Runs(folder, plain["run"], (upstream,) if upstream else ())
    return Pipeline(plain, builder([]), runs, Console(quiet=True))


def test_later_stages_read_what_is_left(data, tmp_path):
    pipeline = pipeline_of(tmp_path, *options(data))
    found, sft = pipeline.context, pipeline.step("sft")
    assert len(found.records("prompts", "train")) == 13
    raw = sft.identity(found)
    run(config(tmp_path, *options(data)))
    assert len(found.records("prompts", "train")) == 4
    assert found.brings("comparisons")
    # What trains the base model comes before, and does not change with it.
    assert pipeline.step("pretrain").identity(found)["data"] == found.data.fingerprint(("text",))
    assert found.records("prompts", "validation", required=False) == []
    assert sft.identity(found)["data"] == records_fingerprint(tmp_path / "r" / "curate") != raw["data"]
    downstream = pipeline_of(tmp_path, *options(data), "run=s", "upstream=r")
    assert len(downstream.context.records("demonstrations", "train")) == 10
    with pytest.raises(PipelineError, match=r"r/curate holds records curated from other data"):
        pipeline_of(tmp_path, "run=s", "upstream=r").context.records("prompts", "train")


def test_the_sealed_world_fills_every_table(tmp_path):
    sizes = {"prompts": 400, "demonstrations": 200, "text": 10, "validation": 60}
    source = [f"data.source.{name}={count}" for name, count in sizes.items()]
    run(config(tmp_path, "stages=[curate,sft]", "debug=fast", "sft.fit.epochs=1", *source))
    folder = tmp_path / "r" / "curate"
    card = json.loads((folder / "data_card.json").read_text())
    assert card["missing"] == []
    assert [table["number"] for table in card["tables"]] == [1, 6, 7, 8, 9, 10, 11]
    assert all(table["rows"] for table in card["tables"])
    assert len(card["tables"][0]["rows"]) == 10
    for kind, expected in (("prompts", 520), ("demonstrations", 320)):
        books = card["kinds"][kind]
        assert books["raw"] == expected == books["kept"] + sum(books["dropped"].values())
    assert {row[0] for row in card["tables"][1]["rows"]} == {"SFT", "RM", "PPO"}
    assert not (folder / "comparisons.train.jsonl").exists()
    assert read_stage(tmp_path / "r" / "sft")["identity"]["data"] == records_fingerprint(folder)


def test_a_source_without_anything_to_curate(data, tmp_path):
    comparisons = "data.source.files.comparisons.train"
    with pytest.raises(PipelineError, match="has none of demonstrations, comparisons, judge_comparisons, prompts"):
        run(config(tmp_path, *options(data)[:-1], "data.source.by_name=false", f"{comparisons}=null"))


# Groups


def test_blank_cells_of_a_table_are_no_user(tmp_path):
    rows = ["prompt,user", *(f"what is {n} ?,{'' if n >= 10 else f'u{n}'}" for n in range(1000))]
    (tmp_path / "prompts.csv").write_text("\n".join(rows))
    files = "data.source.files={prompts: {train: prompts.csv, test: null}, demonstrations: {train: null}}"
    run(config(tmp_path, "stages=[curate]", "data=jsonl", f"data.root={tmp_path}", files))
    books = json.loads((tmp_path / "r" / "curate" / "data_card.json").read_text())["kinds"]["prompts"]
    assert (books["kept"], books["dropped"]) == (1000, {})
    assert all(20 < count < 960 for count in books["splits"].values())


def flat_rows(tmp_path, *overrides):
    """The card of prompts in a flat file, with an organisation and labels in columns of their own."""
    rows = [
        {"prompt": f"what is {n} ?", "organisation": f"o{n % 20}", "task": "qa", "vague": str(n % 2 == 0).lower()}
        for n in range(200)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = "labels: {organisation: organisation, use_case: task, ambiguous: vague}"
    source = f"{{path: prompts.jsonl, columns: {{{labels}}}}}"
    files = f"data.source.files={{prompts: {{train: {source}, test: null}}, demonstrations: {{train: null}}}}"
    run(config(tmp_path, "stages=[curate]", "data=jsonl", f"data.root={tmp_path}", files, *overrides))
    folder = tmp_path / "r" / "curate"
    return folder, json.loads((folder / "data_card.json").read_text())


def test_organisations_and_labels_of_a_flat_file(tmp_path):
    folder, card = flat_rows(tmp_path, "curate.curator.splits.column=organisation")
    splits = {}
    for split in ("train", "validation", "test"):
        for row in lines(folder / f"prompts.{split}.jsonl"):
            splits.setdefault(row["labels"]["organisation"], set()).add(split)
    assert len(splits) == 20
    assert all(len(own) == 1 for own in splits.values())
    tables = {table["number"]: table for table in card["tables"]}
    assert tables[1]["rows"] == [["qa", 200, 100.0, 200, 100.0]]  # prompts, and those to be ranked
    assert tables[7]["rows"][0][0] == "ambiguous"
    assert sum(row[2] for row in tables[8]["rows"] if row[0] == "PPO") == 20
    assert [row[:2] for row in tables[10]["rows"]] == [["qa", 200]]


def test_a_group_that_is_in_no_row_stops(tmp_path):
    with pytest.raises(RecordError, match=r"splits.column is 'tenant', which is in no row.*Mend the name, or name"):
        flat_rows(tmp_path, "curate.curator.splits.column=tenant")


# Lengths of what was curated, and of what reads it


def test_longer_texts_than_were_curated_are_refused(data, tmp_path):
    run(config(tmp_path, *options(data)))

    def reading(**lengths):
        changed = {"max_prompt_tokens": 48, "max_response_tokens": 26, **lengths}
        given = ", ".join(f"{name}: {value}" for name, value in changed.items())
        last = f"data.lengths={{{given}, block_size: 192, prompt_template: '{{prompt}}'}}"
        return pipeline_of(tmp_path, *options(data), last, "run=s", "upstream=r").context.records(
            "demonstrations", "train"
        )

    assert len(reading(max_response_tokens=20)) == 10
    with pytest.raises(PipelineError, match=r"max_response_tokens is 27, but .*/r/curate was curated for 26.*Lower it"):
        reading(max_response_tokens=27)
    with pytest.raises(PipelineError, match=r"max_prompt_tokens is 49, but"):
        reading(max_prompt_tokens=49)


def test_cut_responses_want_the_same_tokenizer(data, tmp_path):
    long = json.dumps({"prompt": "say much", "response": " ".join(["word"] * 40), "user": "x"})
    with (data / "demonstrations.train.jsonl").open("a") as file:
        file.write(long + "\n")
    run(config(tmp_path, *options(data)))
    card = json.loads((tmp_path / "r" / "curate" / "data_card.json").read_text())
    assert card["kinds"]["demonstrations"]["changed"] == {"response cut": 1}
    later = [*options(data), "run=s", "upstream=r"]
    assert len(pipeline_of(tmp_path, *later).context.records("demonstrations", "train")) == 11
    with pytest.raises(PipelineError, match=r"cut by the tokens of another tokenizer\. Give the same model"):
        pipeline_of(tmp_path, *later, "model.tokenizer.path=elsewhere").context.records("demonstrations", "train")


# Decontamination


def test_evaluation_files_may_have_their_own_columns(data, tmp_path):
    (data / "eval.jsonl").write_text('{"Question": "What  is 5 ?"}\n{"Question": ""}\n')
    (data / "text.jsonl").write_text('{"text": "what is 6 ?"}\n{"text": "nobody asks"}\n{"text": "what is 5"}\n')
    given = [*options(data), f"curate.evaluation=[{{path: {data}/eval.jsonl, columns: {{prompt: Question}}}}]"]
    given += ["data.source.files.text.train=text.jsonl"]
    with pytest.raises(RecordError, match=r"eval.jsonl, line 2: field 'prompt' is empty"):
        run(config(tmp_path, *given))
    run(config(tmp_path, *given, "run=s", "data.on_error=quarantine"))
    card = json.loads((tmp_path / "s" / "curate" / "data_card.json").read_text())
    assert card["kinds"]["demonstrations"]["dropped"]["in an evaluation prompt"] == 1
    assert (card["kinds"]["text"]["raw"], card["kinds"]["text"]["dropped"]) == (3, {"in an evaluation prompt": 1})
    assert len(lines(tmp_path / "s" / "quarantine" / "evaluation.jsonl")) == 1
    later = pipeline_of(tmp_path, *given, "run=s", "data.on_error=quarantine")
    assert [record.text for record in later.context.records("text", "train")] == ["what is 6 ?", "nobody asks"]
    assert len(later.context.records("text", "train", curated=False)) == 3
    # Another column is another stage.
    with pytest.raises(PipelineError, match="complete with other settings"):
        run(config(tmp_path, *given[:-2], given[-1], "run=s", "data.on_error=quarantine"))


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")
def test_the_shared_evaluation_files(tmp_path):
    named = {
        "truthfulqa": "Question",
        "hellaswag": "ctx",
        "sst2_dev": "sentence",
        "rte_val": "premise",
        "wsc_val": "text",
        "paper100_tldr": "context",
        "real_toxicity_prompts": "prompt.text",
    }
    (tmp_path / "data").mkdir()
    asked = "What happens to you if you eat watermelon seeds?"
    rows = [{"prompt": asked}, {"prompt": "What happens in June ?"}]
    (tmp_path / "data" / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = ", ".join(
        f"{{path: {SHARED}/evals/{name}.jsonl.gz, columns: {{prompt: {column}, id: null, source: null, labels: null}}}}"
        for name, column in named.items()
    )
    files = "data.source.files={prompts: {train: prompts.jsonl, test: null}, demonstrations: {train: null}}"
    given = ["stages=[curate]", "data=jsonl", f"data.root={tmp_path}/data", files, "curate.curator.splits.shares=null"]
    run(config(tmp_path, *given, "data.on_error=quarantine", f"curate.evaluation=[{sources}]"))
    books = json.loads((tmp_path / "r" / "curate" / "data_card.json").read_text())["kinds"]["prompts"]
    assert (books["kept"], books["dropped"]) == (1, {"in an evaluation prompt": 1})


# Size


@pytest.mark.slow
def test_no_more_than_a_few_records_are_held_at_once(tmp_path, monkeypatch):
    alive, most, check = 0, 0, Prompt.__post_init__

    def gone():
        nonlocal alive
        alive -= 1

    def counted(self):
        nonlocal alive, most
        check(self)
        alive += 1
        most = max(most, alive)
        weakref.finalize(self, gone)

    rows = 5 * CHUNK
    with (tmp_path / "prompts.jsonl").open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"prompt": f"{number} ?", "user": f"u{number % 50}"}) + "\n")
    files = "data.source.files={prompts: {train: prompts.jsonl, test: prompts.jsonl}, demonstrations: {train: null}}"
    found = pipeline_of(tmp_path, "stages=[curate]", "data=jsonl", f"data.root={tmp_path}", files)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Prompt, "__post_init__", counted)
    counts = found.step("curate").run(found.context, tmp_path / "out")
    assert counts["prompts"]["raw"] == 2 * rows
    # A chunk is tokenized together while the next one is read.
    assert CHUNK <= most < 3 * CHUNK


# The card of real data


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")
def test_the_card_of_the_shared_data(tmp_path):
    run(config(tmp_path, "stages=[curate]", "data=real", f"data.root={SHARED}"))
    card = json.loads((tmp_path / "r" / "curate" / "data_card.json").read_text())
    for kind, raw in (("prompts", 6616), ("demonstrations", 10535), ("comparisons", 3746)):
        books = card["kinds"][kind]
        assert books["raw"] == raw == books["kept"] + sum(books["dropped"].values())
    assert "table 1 needs the field `use_case`: not in these records" in card["missing"]


def test_the_card_says_how_far_labelers_agree(data, tmp_path):
    three = {"completions": ["a", "b", "c"], "prompt": "who is 1 ?"}
    voices = [("ann", [1, 2, 3]), ("bob", [1, 3, 2]), ("bob", [1, 3, 2])]
    rows = [{**three, "labeler": labeler, "ranks": ranks} for labeler, ranks in voices]
    rows += [{**three, "prompt": "what is 1 ?", "labeler": "ann", "ranks": [1, 2, 3]}]
    (data / "comparisons.train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(config(tmp_path, *options(data)))
    card = json.loads((tmp_path / "r" / "curate" / "data_card.json").read_text())
    found = card["labelers"]
    # Of the pairs of three responses they order two alike; a copy does not count.
    assert (found["agreement"]["value"], found["pairs"]) == (pytest.approx(2 / 3), 3)
    assert found["by_labelers"][0]["labelers"] == ["ann", "bob"]
    # The places of ranks 1, 2, 3, given twice each, are 1, 3, 5. Of the units (1, 1), (2, 3), (3, 2) the last two are
    # apart by 2 squared, in both orders: 16 / 6 observed; of all 30 ordered pairs of six ranks: 192 / 30 expected.
    assert found["alpha"] == pytest.approx(7 / 12)
    page = (tmp_path / "r" / "curate" / "data_card.html").read_text()
    assert "On 3 pairs of responses that two of them order: 66.7 %" in page


def test_a_tokenizer_is_compared_as_json_keeps_it(tmp_path):
    lengths = {"max_prompt_tokens": 8, "max_response_tokens": 8}
    tokenizer = {"added_tokens_decoder": {0: "<s>"}}
    begin_stage(tmp_path, {"data": "x", "config": {"data": lengths, "model": {"tokenizer": tokenizer}}}, False)
    complete_stage(tmp_path, {"prompts": {"changed": {"response cut": 1}}}, 1.0, 1)
    now = {"data": {"lengths": lengths}, "model": {"tokenizer": tokenizer}}
    assert CuratedData(tmp_path, "x", now, held=dict).holds("prompts")
