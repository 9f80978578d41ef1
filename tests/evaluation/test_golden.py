"""`rlhf-golden`: a made-up release, worked out by hand; the real one where it is here."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_lightning.evaluation import golden
from rlhf_lightning.evaluation.golden import deviations, golden_results, golden_table, main, paper_values
from rlhf_lightning.evaluation.intervals import share_interval

pytest.importorskip("sacrebleu", reason="needs the extra eval")
pytest.importorskip("rouge_score", reason="needs the extra eval")

RELEASE = Path(__file__).parents[3] / "shared" / "data" / "evals" / "openai_samples"
MODELS = ("gpt-xl", "ppo-ptx-xl")
ANSWERS = [  # reference, what the first says, what the second says
    ("the red kite|kite", "A kite!", "the kite"),  # 1; 1
    ("Oslo", "Oslo or Bergen", "Bergen"),  # 2 * 1 / (3 + 1) = .5; 0
]
# What each model says on two prompts, and what follows from it by hand.
MADE_UP = {
    "squadv2": (("ref_text", "sample"), ANSWERS),
    "drop": (("ref_text", "sample"), ANSWERS),
    "fr_to_en": (
        ("ref_text", "sample"),
        [("we go home now", "we go home now", "we go home"), ("it rains a lot", "it rains a lot", "it rains a lot")],
    ),
    "tldr": (
        ("ref_text", "sample"),
        # 4 of 4 and 4 of 8, for the bar stands within one reference; 2 / 3 with the second half alone.
        [("my dog ate it|what do I do", "my dog ate it", "what do I do"), ("no", "no", "yes")],
    ),
    "truthful_qa": (("true", "info"), [(("0.9", "0.2"), ("0.5", "0.5")), (("0.49", "1.0"), ("1e-3", "0.9"))]),
    "real_toxicity": (
        ("sample", "toxicity"),
        [(("how nice", "0.1"), ("you fool", "0.7")), (("a fool", "0.5"), ("fool, fool", "0.9"))],
    ),
}
PROMPTS = {"truthful_qa": "QA prompt", "real_toxicity": "basic prompt"}


def write(folder, name, rows, end=""):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    (folder / f"{name}_samples.csv{end}").write_bytes(gzip.compress(data, mtime=0) if end else data)


def made_up_rows(name):
    columns, items = MADE_UP[name]
    for place, model in enumerate(MODELS):
        for item in items:
            said = item[place] if isinstance(item[0], tuple) else (item[0], item[1 + place])
            prompt = {} if name == "tldr" else {"prompt_type": PROMPTS.get(name, "zeroshot")}
            yield {"": "0", "model_type": model, **prompt, **dict(zip(columns, said, strict=True))}


@pytest.fixture
def release(tmp_path):
    for place, name in enumerate(MADE_UP):
        write(tmp_path, name, list(made_up_rows(name)), ".gz" if place % 2 else "")
    return tmp_path


def fools(texts):
    return [float("fool" in text) for text in texts]


EXPECTED = {
    "squadv2": {"gpt-xl|zeroshot": {"f1": 75, "em": 50, "n": 2}, "ppo-ptx-xl|zeroshot": {"f1": 50, "em": 50, "n": 2}},
    # 7 words for 8, and all are right: exp(1 - 8 / 7).
    "fr_to_en": {"gpt-xl|zeroshot": {"bleu": 100, "n": 2}, "ppo-ptx-xl|zeroshot": {"bleu": 86.69, "n": 2}},
    "tldr": {"gpt-xl": {"rougeL": 83.33, "n": 2}, "ppo-ptx-xl": {"rougeL": 33.33, "n": 2}},
    "truthful_qa": {
        "gpt-xl|QA prompt": {"true": 50, "info": 50, "true_and_info": 0, "n": 2},
        "ppo-ptx-xl|QA prompt": {"true": 50, "info": 100, "true_and_info": 50, "n": 2},
    },
    "real_toxicity": {
        "gpt-xl|basic prompt": {"mean_toxicity": 0.3, "frac_ge_half": 0.5, "estimated_toxicity": 0.5, "n": 2},
        "ppo-ptx-xl|basic prompt": {"mean_toxicity": 0.8, "frac_ge_half": 1.0, "estimated_toxicity": 1.0, "n": 2},
    },
}
EXPECTED["drop"] = EXPECTED["squadv2"]


def test_a_release_worked_out_by_hand(release):
    results = golden_results(release, fools)
    assert deviations(results, EXPECTED) == []
    assert {name: set(groups) for name, groups in results.items()} == {
        name: set(groups) for name, groups in EXPECTED.items()
    }
    exact = share_interval([1.0, 0.0])
    assert results["drop"]["gpt-xl|zeroshot"]["em"] == {end: 100 * value for end, value in exact.items()}


@pytest.mark.parametrize(
    ("name", "group", "measure", "value", "sentence"),
    [
        ("drop", "gpt-xl|zeroshot", "f1", 75.01, "drop, gpt-xl|zeroshot: f1 is 75.00, not 75.01"),
        ("drop", "gpt-xl|zeroshot", "n", 3, "drop, gpt-xl|zeroshot: n is 2.00, not 3"),
        ("real_toxicity", "gpt-xl|basic prompt", "mean_toxicity", 0.3001, "is 0.3000, not 0.3001"),
        ("tldr", "gpt-6b", "rougeL", 1.0, "tldr, gpt-6b: rougeL is nan, not 1.0"),
        ("quac", "gpt-xl", "f1", 1.0, "quac, gpt-xl: f1 is nan, not 1.0"),
    ],
)
def test_a_number_that_is_another(release, name, group, measure, value, sentence):
    (found,) = deviations(golden_results(release, fools), {name: {group: {measure: value}}})
    assert sentence in found


def test_the_command(release, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    (release / "golden_metrics.json").write_text(json.dumps({"drop": EXPECTED["drop"]}))
    main([str(release), "--json", str(tmp_path / "numbers.json")])
    said = capsys.readouterr().out
    assert "1.3B: the released samples" in said
    assert "Every number of golden_metrics.json came out" in said
    # The paper says 17.68 and 14.71.
    (line,) = [line for line in said.splitlines() if "drop" in line and "F1" in line]
    assert [cell.strip() for cell in line.split("│")[4:8]] == ["75.0 (17.7)", "-", "-", "50.0 (14.7)"]
    assert "86.7 (25.8)" in said
    written = json.loads((tmp_path / "numbers.json").read_text())
    assert written["tldr"]["gpt-xl"]["rougeL"]["value"] == pytest.approx(250 / 3)
    assert written["tldr"]["gpt-xl"]["n"] == 2


def failure(capsys, release):
    with pytest.raises(SystemExit) as stop:
        main([str(release)])
    assert stop.value.code == 1
    said = capsys.readouterr()
    return " ".join(said.err.split())


def test_the_command_on_other_numbers(release, capsys):
    (release / "golden_metrics.json").write_text(json.dumps({"drop": {"gpt-xl|zeroshot": {"em": 51.0}}}))
    assert "1 numbers are not those of" in (said := failure(capsys, release))
    assert "em is 50.00, not 51.0" in said


def test_files_that_are_missing_are_named(release, capsys):
    (release / "drop_samples.csv.gz").unlink()
    (release / "fr_to_en_samples.csv").unlink()
    said = failure(capsys, release)
    assert said.startswith(f"rlhf-golden: {release} lacks drop_samples.csv, fr_to_en_samples.csv (or .csv.gz);")
    assert "lacks squadv2_samples.csv, drop" in failure(capsys, release / "nowhere")


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("toxicity", "much", 'row 1: toxicity must be a number in [0, 1], got "much".'),
        ("toxicity", "nan", 'row 1: toxicity must be a number in [0, 1], got "nan".'),
        ("toxicity", "1.5", 'row 1: toxicity must be a number in [0, 1], got "1.5".'),
        ("sample", None, "row 1: it has no sample; the columns are model_type, prompt_type, sample, toxicity."),
    ],
)
def test_a_damaged_file_is_named(release, column, value, sentence):
    (release / "real_toxicity_samples.csv.gz").unlink()
    rows = [{**row, column: value} for row in made_up_rows("real_toxicity")]
    if value is None:
        rows = [{name: cell for name, cell in row.items() if name != column} for row in rows]
    write(release, "real_toxicity", rows)
    with pytest.raises(ValueError, match=r"real_toxicity_samples\.csv, ") as error:
        golden_results(release, fools)
    assert sentence in str(error.value)


TORN = {"empty": b"", "plain": b"no gzip", "one line": gzip.compress(b"model_type\n"), "bytes": gzip.compress(b"\xff")}


@pytest.mark.parametrize("data", TORN.values(), ids=TORN)
def test_a_torn_file_is_named(release, data):
    (release / "drop_samples.csv.gz").write_bytes(data)
    with pytest.raises(
        ValueError, match=r"drop_samples\.csv\.gz (cannot be read|has no rows).*take it from the release"
    ):
        golden_results(release, fools)


def test_table_14():
    values = paper_values()
    assert len(values) == 33 * 12
    assert values["squadv2", "fewshot", "f1", "ppo-ptx-175b"] == 69.93
    assert values["fr_to_en", "zeroshot", "bleu", "gpt-6b"] == 34.99
    assert values["truthful_qa", "QA prompt", "true", "ppo-noptx-xl"] == pytest.approx(54.6)
    assert values["real_toxicity", "biased prompt", "mean_toxicity", "ppo-ptx-6b"] == 0.512


def test_the_release():
    """All 12 models, six tests, every kind of prompt."""
    if not RELEASE.exists():
        pytest.skip("the released samples are not here")
    expected = json.loads((RELEASE / "golden_metrics.json").read_text())
    assert [len(groups) for groups in expected.values()] == [24, 24, 24, 12, 36, 36]
    results = golden_results(RELEASE, lambda texts: [0.0] * len(texts))
    assert deviations(results, expected) == []
    with Console(width=120, record=True, file=io.StringIO()) as console:
        for size in golden.SIZES:
            console.print(golden_table(results, size))
    assert console.export_text().count("- ") == 0  # nothing is missing
