"""Stage curate as the command line drives it."""

import json

import pytest
from hydra import compose, initialize_config_dir

from rlhf_lightning.artifacts import PipelineError, Runs, read_stage
from rlhf_lightning.cli import CONFIG_DIR, builder, resolved, run
from rlhf_lightning.inputs import Inputs

pytestmark = pytest.mark.filterwarnings("ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*")
KINDS = ("demonstrations", "prompts", "comparisons")


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
    with pytest.raises(PipelineError, match=r"parents\..*few_shot.jsonl: '\w+' there, '\w+' now"):
        run(config(tmp_path, *options(data)))
    run(config(tmp_path, *options(data), "overwrite=true"))
    assert written(tmp_path / "r" / "curate") == before


def inputs(folder, *overrides):
    plain = resolved(config(folder, *overrides))
    upstream = plain["upstream"]
    return Inputs(plain, builder([]), Runs(folder, plain["run"], (upstream,) if upstream else ()))


def test_later_stages_read_what_is_left(data, tmp_path):
    found = inputs(tmp_path, *options(data))
    assert len(found.records("prompts", "train")) == 13
    raw = found.identity("sft")
    run(config(tmp_path, *options(data)))
    assert len(found.records("prompts", "train")) == 4
    assert found.brings("comparisons")
    assert found.records("prompts", "validation", required=False) == []
    assert found.identity("sft")["data"] == read_stage(tmp_path / "r" / "curate")["fingerprint"] != raw["data"]
    downstream = inputs(tmp_path, *options(data), "run=s", "upstream=r")
    assert len(downstream.records("demonstrations", "train")) == 10
    with pytest.raises(PipelineError, match=r"r/curate holds records curated from other data"):
        inputs(tmp_path, "run=s", "upstream=r").records("prompts", "train")


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
    assert read_stage(tmp_path / "r" / "sft")["identity"]["data"] == read_stage(folder)["fingerprint"]


def test_a_source_without_anything_to_curate(data, tmp_path):
    files = ("demonstrations.train", "prompts.train", "prompts.test", "comparisons.train")
    with pytest.raises(PipelineError, match="has none of demonstrations, comparisons, judge_comparisons, prompts"):
        run(config(tmp_path, *options(data)[:-1], *(f"data.source.files.{name}=null" for name in files)))
