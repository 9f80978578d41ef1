"""The report against a small run written by hand: numbers, wording, escaping, missing parts, equal bytes."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest

from rlhf_lightning.evaluation import report
from rlhf_lightning.evaluation.report import ReportedStage, headline
from rlhf_lightning.recipe.legend import legend_of
from rlhf_lightning.recipe.pipeline import RECIPE

LEGEND = legend_of(RECIPE)
STAGES = ("pretrain", "sft", "ppo_init", "collect", "judge", "reward", "ppo", "ppo_ptx", "evaluate")
POLICIES = ("base", "sft", "ppo", "ppo_ptx")
VERSIONS = {"torch": "2.13.0", "python": "3.11.7"}
EVIL = "<script>alert(1)</script> & more"
LM = "step,train/loss,validation/loss\n0,3.5,\n1,nan,3.25\n2,3.0,\n"
REWARD = "step,train/loss,train/accuracy,validation/loss,validation/accuracy\n0,0.7,0.5,,\n1,,,0.65,0.6\n"
PPO = (
    "step,rollout/score,rollout/kl,rollout/kl_coef,update/clip_fraction\n0,-0.5,0.0,0.05,0.0\n1,-0.25,0.5,0.05,0.125\n"
)
ACCURACY = {
    "accuracy": {"value": 0.725, "low": 0.7, "high": 0.75},
    "longer_wins": {"value": 0.5125, "low": 0.49, "high": 0.53},
    "longer_read_wins": {"value": 0.505, "low": 0.48, "high": 0.52},
    "prompts": 40,
    "pairs": 321,
}


class Page(HTMLParser):
    """Tags, attributes and text; fails where an element is closed that is not open."""

    VOID = ("meta", "br", "hr", "img", "input", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "text"):
            self.words.append(data)


def interval(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def policy(score: float, win_rate: dict[str, float]) -> dict:
    return {
        "score": interval(score, 0.125),
        "win_rate": win_rate,
        "reward": interval(2 * score, 0.25),
        "kl": 4.5,
        "length": 20.25,
        "pretrain_loss": 3.3333,
        "intervals": {"kl": [4.25, 4.75], "length": [19.5, 21.0]},
    }


def evaluation(rates: dict[str, dict[str, float]], prompts: int = 1000) -> dict:
    return {
        "policies": {name: policy(0.5, rate) for name, rate in rates.items()},
        "baseline": "sft",
        "prompts": prompts,
    }


METRICS = {
    "pretrain": {"validation/loss": 3.25},
    "sft": {"validation/loss": 3.25},
    "ppo_init": {"validation/loss": 3.25},
    "collect": {"train": {"prompts": 8, "dropped": {"one distinct response": 3}}},
    "judge": {"validation/loss": 0.65, "validation": {"all": ACCURACY}},
    "reward": {"validation/loss": 0.65, "validation": {"all": ACCURACY, "users": ACCURACY}, "test": {"all": ACCURACY}},
    "ppo": {"rollout/score": -0.25},
    "ppo_ptx": {"rollout/score": -0.25},
    "evaluate": evaluation(
        {
            "base": interval(0.25, 0.0625),
            "sft": interval(0.5, 0.0),
            "ppo": interval(0.51, 0.03),
            "ppo_ptx": interval(0.612, 0.031),
        }
    ),
}
CONFIGS = {
    "sft": {"module": {"optimizer": {"lr": 9.65e-6}}, "data": {"batch_size": 32}, "note": f"</pre>{EVIL}"},
    "ppo": {"module": {"kl_coef": 0.02}, "data": {"num_batches": 500}},
    "evaluate": {"reference": "sft", "judge": {"_target_": "some.Judge"}},
}


def write_report(run: Path, folders: dict[str, Path]) -> Path:
    """The report of folders, with the curves of the recipe's own steps."""
    steps = {step.name: step for step in RECIPE}
    stages = [
        ReportedStage(name, folder, steps[name].curves, steps[name].unit, steps[name].measured_on_rankings)
        for name, folder in folders.items()
    ]
    return report.write_report(run, stages, LEGEND)


def write_run(run: Path, only: tuple[str, ...] = STAGES) -> dict[str, Path]:
    """Fake artifacts of some stages."""
    curves = dict.fromkeys(("pretrain", "sft", "ppo_init"), LM) | dict.fromkeys(("judge", "reward"), REWARD)
    curves |= {"ppo": PPO, "ppo_ptx": PPO}
    for place, stage in enumerate(only):
        folder = run / stage
        folder.mkdir(parents=True)
        record = {
            "status": "complete",
            "identity": {"stage": stage, "config": {stage: CONFIGS[stage]} if stage in CONFIGS else {}},
            "fingerprint": f"finger{stage}",
            "metrics": METRICS[stage],
            "seconds": 10.0 + place,
            "seed": 7,
            "versions": VERSIONS,
            "git_commit": "0123456789abcdef",
        }
        (folder / "stage.json").write_text(json.dumps(record))
        if stage in curves:
            (folder / "metrics.csv").write_text(curves[stage])
        if stage in ("ppo", "ppo_ptx"):
            lines = [
                {"iteration": i, "prompt": "p", "response": f"episode {i} {EVIL}", "score": 0.5} for i in (0, 10, 20)
            ]
            (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if stage == "sft":
            (folder / "dropped.json").write_text('{"prompt over 64 tokens": 12}')
        if stage == "evaluate":
            own = {"responses": [EVIL] * 100, "lengths": [3.0] * 100, "kl": [0.5] * 100, "scores": [0.75] * 100}
            samples = {"prompts": [f"question {i} <b>" for i in range(100)], **dict.fromkeys(POLICIES, own)}
            (folder / "samples.json").write_text(json.dumps(samples))
    return {stage: run / stage for stage in only}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    write_report(folder, write_run(folder))
    return folder


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return (run / "report" / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_results_are_those_of_the_stages(run: Path) -> None:
    results = json.loads((run / "report" / "results.json").read_text())
    assert list(results) == [
        *("policies", "reward", "seconds", "baseline", "prompts", "judge", "seed", "versions", "git_commit")
    ]
    assert results["policies"] == METRICS["evaluate"]["policies"]
    assert results["reward"] == {"validation": {"all": ACCURACY, "users": ACCURACY}, "test": {"all": ACCURACY}}
    assert results["seconds"] == {
        "pretrain": 10.0,
        "sft": 11.0,
        "ppo_init": 12.0,
        "collect": 13.0,
        "judge": 14.0,
        "reward": 15.0,
        "ppo": 16.0,
        "ppo_ptx": 17.0,
        "evaluate": 18.0,
    }
    assert (results["baseline"], results["prompts"], results["seed"]) == ("sft", 1000, 7)
    assert (results["versions"], results["git_commit"]) == (VERSIONS, "0123456789abcdef")


def test_page_is_well_formed_and_needs_nothing_from_outside(html: str, page: Page) -> None:
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "metadata", "object"} & set(page.tags)
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert "xlink:" not in html
    assert page.tags.count("style") == 1
    assert html.lower().count("<!doctype") == 1
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "src"))
    assert set(re.findall(r"url\((.)", html)) == {"#"}


def test_references_inside_point_to_one_element_each(html: str, page: Page) -> None:
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', html))
    assert {a or b for a, b in targets} <= set(ids)
    assert len(targets) > 30


def test_text_of_models_is_escaped(html: str, page: Page) -> None:
    assert "<script" not in html
    assert "question 4 <b>" not in html
    # 12 prompts by 4 policies, first and last episodes of two PPO stages, once in the settings of SFT.
    assert page.text.count(EVIL) == 48 + 4 + 1
    assert "question 4 <b>" in page.text


def test_samples_are_spread_evenly(page: Page) -> None:
    numbers = [int(number) for number in re.findall(r"prompt (\d+) ", page.text)]
    assert numbers == [5, 13, 21, 30, 38, 46, 55, 63, 71, 80, 88, 96]
    assert "12 of 100 held-out prompts" in page.text


def test_every_figure_has_a_description(html: str, page: Page) -> None:
    descriptions = [value for name, value in page.attributes if name == "aria-label" and value != "Sections"]
    # Three language models, two reward models with loss and accuracy, two policies with three curves (the KL
    # coefficient never moves), two charts, reward over KL.
    assert len(descriptions) == page.tags.count("svg") == 3 + 4 + 6 + 2 + 1
    assert descriptions[0] == (
        "Win rates against SFT with 95 % intervals: base 25.0 % (18.8 .. 31.2); PPO 51.0 % (48.0 .. 54.0); "
        "PPO-ptx 61.2 % (58.1 .. 64.3)."
    )
    assert "PPO: KL to the reference in nats per response over the steps; k1 0.500 at the last step." in descriptions
    assert (
        "SFT: Loss in nats per token over the steps; validation 3.25 at the last step, train 3.00 at the last step."
        in (descriptions)
    )


def test_tables_show_numbers_with_their_intervals(page: Page) -> None:
    assert (
        "PPO-ptx 0.500 0.375 .. 0.625 61.2 58.1 .. 64.3 1.00 0.75 .. 1.25 4.50 4.25 .. 4.75 20.2 19.5 .. 21.0 3.33"
        in (page.text)
    )
    assert "SFT 0.500 0.375 .. 0.625 baseline 1.00" in page.text
    assert "validation users 72.5 70.0 .. 75.0 50.5 48.0 .. 52.0 51.2 49.0 .. 53.0 40 321" in page.text
    assert "test all 72.5 70.0 .. 75.0" in page.text
    assert "evaluate 18 14.3 7 012345678 fingerevaluate" in page.text
    assert "all 126" in page.text


def test_stages_show_settings_and_what_was_left_out(page: Page) -> None:
    assert "learning rate 9.65e-6 batch size 32" in page.text
    assert "iterations 500 KL coefficient 0.02" in page.text
    assert "left out: prompt over 64 tokens 12" in page.text
    assert "left out: train: one distinct response 3" in page.text
    assert "episode 0 " in page.text
    assert "episode 10 " not in page.text
    assert "The judge: some.Judge." in page.text


def test_same_artifacts_give_the_same_bytes(run: Path, html: str) -> None:
    results = (run / "report" / "results.json").read_bytes()
    path = write_report(run, {stage: run / stage for stage in STAGES})
    assert path.read_bytes() == html.encode()
    assert (run / "report" / "results.json").read_bytes() == results
    assert sorted(file.name for file in path.parent.iterdir()) == ["index.html", "results.json"]


def test_settings_of_matplotlib_stay_as_they_were(tmp_path: Path) -> None:
    with matplotlib.rc_context({"font.size": 17.0, "svg.hashsalt": "own"}):
        write_report(tmp_path, write_run(tmp_path, ("sft",)))
        assert (matplotlib.rcParams["font.size"], matplotlib.rcParams["svg.hashsalt"]) == (17.0, "own")


@pytest.mark.parametrize("stage", STAGES)
def test_any_stage_alone_makes_a_page(tmp_path: Path, stage: str) -> None:
    page = Page(write_report(tmp_path, write_run(tmp_path, (stage,))).read_text(encoding="utf-8"))
    assert page.open == []
    assert ("id", f"stage-{stage}") in page.attributes
    assert ("This run has no evaluation" in page.text) == (stage != "evaluate")
    assert json.loads((tmp_path / "report" / "results.json").read_text())["seed"] == 7


def test_no_stage_makes_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path, {}).read_text(encoding="utf-8"))
    assert "This run has no evaluation" in page.text
    assert json.loads((tmp_path / "report" / "results.json").read_text())["policies"] == {}


def test_missing_metrics_are_left_out(tmp_path: Path) -> None:
    stages = write_run(tmp_path)
    for folder in stages.values():
        (folder / "stage.json").write_text("{}")
        (folder / "metrics.csv").write_text("step,rollout/kl\n0,\n1,inf\n")
        (folder / "samples.json").unlink(missing_ok=True)
    page = Page(write_report(tmp_path, stages).read_text(encoding="utf-8"))
    assert "svg" not in page.tags
    assert "This run has no evaluation" in page.text


def test_missing_measures_of_a_policy_are_left_out(tmp_path: Path) -> None:
    stages = write_run(tmp_path, ("evaluate",))
    record = json.loads((stages["evaluate"] / "stage.json").read_text())
    for own in record["metrics"]["policies"].values():
        own.update(pretrain_loss=None, reward=None)
        del own["intervals"]
    del record["metrics"]["policies"]["base"]["kl"]
    (stages["evaluate"] / "stage.json").write_text(json.dumps(record))
    page = Page(write_report(tmp_path, stages).read_text(encoding="utf-8"))
    assert "base 0.500 0.375 .. 0.625 25.0 18.8 .. 31.2 - 20.2" in page.text
    assert "Pretraining loss" not in page.text
    assert "Reward" not in page.text


def test_judges_metadata_and_probes_have_tables(tmp_path: Path) -> None:
    stages = write_run(tmp_path, ("evaluate",))
    record = json.loads((stages["evaluate"] / "stage.json").read_text())
    policies = record["metrics"]["policies"]
    policies["ppo"]["judges"] = {"held_out_labelers": {"value": 0.6, "low": 0.5, "high": 0.7}}
    policies["ppo"]["metadata"] = {"hallucination": {"value": 0.21, "low": 0.2, "high": 0.22}, "likert": None}
    policies["base"]["metadata"] = {"hallucination": {"value": 0.41, "low": 0.4, "high": 0.42}}
    policies["ppo"]["probes"] = {"truthful_qa": {"both": {"value": 0.3, "low": 0.1, "high": 0.5}}}
    (stages["evaluate"] / "stage.json").write_text(json.dumps(record))
    text = Page(write_report(tmp_path, stages).read_text(encoding="utf-8")).text
    assert "held out labelers" in text
    assert "60.0 50.0 .. 70.0" in text
    assert "hallucination 0.410 0.400 .. 0.420 - 0.210 0.200 .. 0.220" in text
    assert "truthful qa: both - - 0.300 0.100 .. 0.500" in text
    assert "likert" not in text


def test_stages_of_another_run_are_named(tmp_path: Path) -> None:
    stages = write_run(tmp_path / "first", ("pretrain",)) | write_run(tmp_path / "second", ("sft",))
    text = Page(write_report(tmp_path / "second", stages).read_text(encoding="utf-8")).text
    assert "Some stages were taken from another run." in text
    assert "pretrain first 10.0" in text


def test_long_curves_are_thinned(tmp_path: Path, html: str) -> None:
    stages = write_run(tmp_path, ("sft",))
    short = write_report(tmp_path, stages).stat().st_size
    lines = "".join(f"{step},{step % 7},\n" for step in range(30_000))
    (stages["sft"] / "metrics.csv").write_text("step,train/loss,validation/loss\n" + lines)
    path = write_report(tmp_path, stages)
    assert "each point is the mean of neighbouring steps" in path.read_text(encoding="utf-8")
    assert "each point is the mean of neighbouring steps" not in html
    assert path.stat().st_size < short + 20_000


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (
            {"value": 0.612, "low": 0.581, "high": 0.643},
            "PPO-ptx wins 61.2 % (58.1 .. 64.3) of 1000 held-out prompts against SFT, by the judge.",
        ),
        (
            {"value": 0.4, "low": 0.35, "high": 0.4499},
            "PPO-ptx loses to SFT: it wins only 40.0 % (35.0 .. 45.0) of 1000 held-out prompts, by the judge.",
        ),
        (
            {"value": 0.53, "low": 0.5, "high": 0.56},
            "No difference is shown between PPO-ptx and SFT: PPO-ptx wins 53.0 % (50.0 .. 56.0) of 1000 held-out "
            "prompts, by the judge, and the interval contains 50 %.",
        ),
        (
            {"value": 0.47, "low": 0.44, "high": 0.5},
            "No difference is shown between PPO-ptx and SFT: PPO-ptx wins 47.0 % (44.0 .. 50.0) of 1000 held-out "
            "prompts, by the judge, and the interval contains 50 %.",
        ),
    ],
)
def test_headline_claims_what_the_interval_allows(rate: dict[str, float], expected: str) -> None:
    assert headline(evaluation({"sft": interval(0.5, 0.0), "ppo_ptx": rate}), LEGEND) == [expected]


def test_headline_starts_with_the_last_policy(page: Page) -> None:
    sentences = headline(METRICS["evaluate"], LEGEND)
    assert [sentence.split()[0] for sentence in sentences] == ["PPO-ptx", "No", "base"]
    assert all(sentence in page.text for sentence in sentences)


@pytest.mark.parametrize(("prompts", "warned"), [(16, True), (1000, False)])
def test_few_prompts_are_pointed_out(tmp_path: Path, prompts: int, warned: bool) -> None:
    stages = write_run(tmp_path, ("evaluate",))
    record = json.loads((stages["evaluate"] / "stage.json").read_text())
    record["metrics"]["prompts"] = prompts
    (stages["evaluate"] / "stage.json").write_text(json.dumps(record))
    assert ("come out too narrow" in write_report(tmp_path, stages).read_text(encoding="utf-8")) == warned
