"""What step evaluate asks besides its main judge: temperatures, sets of prompts, Likert scores, judges that compare."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_look_ahead import data, fine, said
from test_pipeline import rlhf

from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.records import Demonstration, Prompt
from rlhf_lightning.data.sources import FileData
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.evaluation import comparison_judge
from rlhf_lightning.evaluation.policies import PolicySamples
from rlhf_lightning.recipe import preferences
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.kept import KeptPolicies
from rlhf_lightning.recipe.preferences import FurtherJudges, evaluation_prompts, temperature_of
from rlhf_lightning.runs.folders import PipelineError, read_stage
from rlhf_lightning.training.heartbeat import Heartbeat

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
OPTIONS = {"baseline": "sft", "judges": {}, "likert": {}, "metadata": None, "num_prompts": 4, "prompt_sets": {}}
TEST = [Prompt(text, source=source) for text, source in zip("abcdefgh", "xyxyyyxz", strict=True)]
MESSAGE = {"role": "user", "content": "c"}
RECORDS = {"test": TEST, "validation": [Prompt("v", source="x", labels={"use_case": "chat"}), Prompt("w", source="y")]}


class Letters(Tokenization):
    """A tokenization in which one prompt is too long."""

    def __init__(self) -> None:
        """Without a tokenizer."""

    def prompts(self, records: Iterable[Prompt]) -> list[PromptExample]:
        return [PromptExample([1], n, str(one.prompt)) for n, one in enumerate(records) if one.prompt != "b"]


class Run(Context):
    """A run of which nothing is there but records and what is said."""

    data: Any = None

    def __init__(self, lines: list[str]) -> None:
        self.lines, self.heartbeat = lines, Heartbeat(Console())

    def records(self, name: str, split: str, required: bool = True, curated: bool = True) -> list[Any]:
        return RECORDS[split]

    def say(self, step: str, message: str) -> None:
        self.lines.append(f"{step}: {message}")


class World:
    """A data source with demonstrations."""

    def __init__(self, **written: list[Demonstration]) -> None:
        self.written = written


class Oracle(World):
    """One that also writes a demonstration when it is asked."""

    def demonstrate(self, prompt: str) -> str:
        return f"{prompt} by the world"


@pytest.mark.parametrize(("source", "other"), [(World, None), (Oracle, "d by the world")])
def test_demonstrations_are_those_of_the_prompts(tmp_path: Path, source: type[World], other: str | None) -> None:
    """The test's own first, then those of validation; a prompt without one has none, unless the source writes it."""
    first, second = Demonstration("a", "of the test"), Demonstration("a", "of validation")
    world = source(test=[first], validation=[second, Demonstration("c", "of validation")])

    class Demonstrated(Run):
        data: Any = world

        def records(self, name: str, split: str, required: bool = True, curated: bool = True) -> list[Any]:
            assert (name, required) == ("demonstrations", False)
            return world.written[split]

    FurtherJudges(Demonstrated([]), OPTIONS).demonstrate(tmp_path, ["c", "d", "a"])
    found = json.loads((tmp_path / "demonstrations.json").read_text())
    assert found == ["of validation", other, "of the test"]


def asked(sets: Any, lines: list[str] | None = None) -> tuple[str, dict[str, str]]:
    context = Run([] if lines is None else lines)
    prompts, places = evaluation_prompts(context, {**OPTIONS, "prompt_sets": sets}, Letters())
    texts = [prompt.text for prompt in prompts]
    return "".join(texts), {name: "".join(texts[place] for place in own) for name, own in places.items()}


def test_a_policy_has_a_temperature_of_its_own() -> None:
    options = {"temperature": 1.0, "temperatures": {"base": 0.7, "sft": 0}}
    assert [temperature_of(options, name) for name in ("base", "sft", "ppo")] == [0.7, 0, 1.0]
    assert temperature_of({"temperature": 0.5}, "base") == 0.5, "of a run before there were any"


def test_sets_are_parts_of_the_first_prompts_or_look_further() -> None:
    assert asked({}) == ("acd", {})
    assert asked(None) == ("acd", {})
    both = {"gpt": {"where": {"source": "x"}}, "tuned": {"where": {"source": "y"}}}
    assert asked(both) == ("acd", {"gpt": "ac", "tuned": "d"})
    far = {"gpt": {"where": {"source": ["x", "z"]}, "num_prompts": 3}, "all": {}}
    assert asked(far) == ("acdg", {"gpt": "acg", "all": "acd"})
    splits = {"new": {"split": "validation", "where": {"use_case": "chat"}}, "old": {"split": "test", "num_prompts": 1}}
    assert asked(splits) == ("av", {"new": "v", "old": "a"})


@pytest.mark.parametrize("sets", [{}, {"all": {}}])
def test_prompts_that_policies_learned_from_are_said(sets: Any) -> None:
    learned = {"prompts": [Prompt("a"), Prompt("e")], "demonstrations": [Demonstration([MESSAGE], "r")]}

    class Learned(Run):
        data = FileData(None, {})

        def records(self, name: str, split: str, required: bool = True, curated: bool = True) -> list[Any]:
            return learned[name] if split == "train" else RECORDS[split]

    context = Learned([])
    evaluation_prompts(context, {**OPTIONS, "prompt_sets": sets}, Letters())  # a, c and d
    (line,) = context.lines
    assert line.startswith("evaluate: warning: 2 of 3 prompts are also among the records to learn from")


def test_a_set_without_a_prompt_is_said() -> None:
    lines: list[str] = []
    sets = {"one": {"where": {"source": "z"}}, "two": {"where": {"source": "x"}}}
    assert asked(sets, lines) == ("ac", {"two": "ac"})
    (line,) = lines
    assert line.startswith("evaluate: left out: prompt_sets.one: none of the first 4 prompts that are short enough of ")
    assert "has source=z. Set prompt_sets.one.num_prompts" in line
    with pytest.raises(PipelineError, match=r"evaluate\.prompt_sets\.one: none of the first 4 prompts"):
        asked({"one": sets["one"]})


class Scale:
    """Scores, and a Likert score of its own."""

    def __init__(self, likert: list[float]) -> None:
        self.own = likert

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        return [float(len(text)) for text in responses]

    def likert(self, prompts: list[str], responses: list[str]) -> list[float]:
        return self.own


def judges(monkeypatch: pytest.MonkeyPatch, lines: list[str], made: dict[str, Any], **options: Any) -> FurtherJudges:
    monkeypatch.setattr(preferences, "reward_of", lambda context, judge, tokens: made[judge])
    return FurtherJudges(Run(lines), {**OPTIONS, "judges": {name: name for name in made}, **options})


def test_likert_scores_come_from_the_judge_or_from_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = PolicySamples(["a", "bbb", "ccccc"], [1.0] * 3, scores=[-1.0, 0.0, 9.0])
    made = {"people": Scale([1, 4, 7]), "words": lambda prompts, responses: [1.0, 3.0, 5.0]}
    thresholds = {"judge": [-1, 0, 1, 2, 3, 4], "words": [2, 2.5, 3, 4, 5, 6]}
    judges(monkeypatch, [], made, likert=thresholds).judge(samples, ["p", "q", "r"], main=lambda: None)
    assert samples.judges == {"people": [1.0, 3.0, 5.0], "words": [1.0, 3.0, 5.0]}
    assert samples.likert == {"judge": [2.0, 3.0, 7.0], "people": [1, 4, 7], "words": [1.0, 4.0, 6.0]}
    for wrong in ([1, 4], [0, 4, 7], [1, 4, float("nan")]):
        further = judges(monkeypatch, [], {"people": Scale(wrong)})
        with pytest.raises(PipelineError, match=r"evaluate\.judges\.people: its likert must give a number from 1 to 7"):
            further.judge(samples, ["p", "q", "r"], main=None)


def test_a_judge_that_compares_is_asked_once_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison_judge, "BATCH", 2)
    calls: list[str] = []
    lines: list[str] = []

    def judge(prompt: str, response_a: str, response_b: str) -> float | None:
        calls.append(prompt)
        if len(calls) == 3:
            raise ConnectionError("away")
        return {"p": 1.0, "q": None, "r": 0.0}[prompt]

    def measured() -> KeptPolicies:
        kept = KeptPolicies(tmp_path / "measured", {"step": "a"})
        for name, texts in {"sft": "abc", "ppo": "def"}.items():
            kept.of(name, lambda texts=texts: (PolicySamples([*texts]), None))  # type: ignore[misc]
        return kept

    further = judges(monkeypatch, lines, {"model": judge})
    assert (list(further.comparing), list(further.scoring)) == (["model"], [])
    with pytest.raises(ConnectionError):
        further.compare("evaluate", measured(), ["sft", "ppo"], ["p", "q", "r"])
    assert calls == ["p", "q", "r"]
    kept = measured()
    assert kept.said == {("model", "sft"): [0.5] * 3, ("model", "ppo"): [1.0, None]}
    further.compare("evaluate", kept, ["sft", "ppo"], ["p", "q", "r"])
    assert calls == ["p", "q", "r", "r"]
    assert kept.measured["ppo"][0].preferences == {"model": [1.0, None, 0.0]}
    assert lines == ["evaluate: model gave no verdict on 1 of the 3 pairs of ppo, which do not count"]


def test_the_same_text_is_no_tie_of_a_judge_who_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptPolicies(tmp_path / "measured", {"step": "a"})
    for name, texts in {"sft": "abc", "ppo": "aef"}.items():
        kept.of(name, lambda texts=texts: (PolicySamples([*texts]), None))  # type: ignore[misc]
    said: dict[str, float | None] = {"q": None, "r": None}
    further = judges(monkeypatch, [], {"model": lambda prompt, response_a, response_b: said[prompt]})
    further.compare("evaluate", kept, ["sft", "ppo"], ["p", "q", "r"])
    assert kept.measured["ppo"][0].preferences == {"model": [None] * 3}


DEMO = ("experiment=demo", "debug=fast")
WRONG = [
    ("+evaluate.temperatures.pppo=1", "evaluate: temperatures.pppo is none of the policies (base, prompted, sft, ppo"),
    (
        "+evaluate.likert.people=[1,2,3,4,5,6]",
        "evaluate: likert.people is none of the judges (judge, training_labelers",
    ),
    ("+evaluate.likert.judge=[1,2,3,4,5,5]", "evaluate: likert.judge must be six scores that rise"),
    (
        "+evaluate.prompt_sets.far={where: {source: web}}",
        "evaluate: prompt_sets.far: none of the prompts of split test",
    ),
    ("evaluate.breakdown=[use_case,colour]", "evaluate: breakdown names colour, which no test prompt has as a field."),
    ("+evaluate.judges.mine=judges_of_mine:longer", ""),
]


def test_what_is_wrong_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judges_of_mine.py").write_text("def longer(prompt, response_a, response_b):\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    sentences = said(tmp_path / "runs", *DEMO, *(override for override, _ in WRONG))
    for override, beginning in WRONG:
        assert sum(sentence.startswith(beginning) for sentence in sentences if beginning) == bool(beginning), override
    assert len(sentences) == len([beginning for _, beginning in WRONG if beginning]), sentences
    (found,) = said(tmp_path / "runs", *DEMO, "~evaluate.judge", "+evaluate.judge=judges_of_mine:longer")
    assert found.startswith("evaluate: judge compares two responses, and the main judge scores each.")
    lists = ("stages=[evaluate]", "evaluate.policies=[base,select,base]", "evaluate.baseline=select")
    sentences = said(tmp_path / "runs", *DEMO, *lists)
    assert "evaluate: policies names base twice." in sentences
    assert any(each.startswith("evaluate: baseline=select: the model of stage select is needed") for each in sentences)
    for metric in ("head_to_head.ppo.sft.value", "prompt_sets.instructions.policies.ppo.win_rate.low"):
        fine(tmp_path / "runs", *DEMO, f"optimized_metric=evaluate.{metric}")
    fine(tmp_path / "runs", *DEMO, "optimized_metric=evaluate.policies.ppo.length_controlled.value")
    (found,) = said(tmp_path / "runs", *DEMO, "optimized_metric=evaluate.head_to_head.ppo.dpo.value")
    assert "dpo is none of base, prompted, sft, ppo, ppo_ptx" in found


def test_sets_of_ones_own_data_are_read_from_its_files(tmp_path: Path) -> None:
    own = data(tmp_path / "data", "demonstrations.train", "prompts.test", "text.train")
    (tmp_path / "data" / "prompts.test.jsonl").write_text('{"prompt": "hi", "source": "web", "topic": "sea"}\n')
    alone = ("stages=[evaluate]", "evaluate.policies=[base]", "evaluate.baseline=base", "evaluate.reference=base")
    judge = f"evaluate.judge={{path: {tmp_path}}}"
    wanted = "+evaluate.prompt_sets.web={where: {source: web, topic: [sea, sky]}}"
    others = "+evaluate.prompt_sets.all={split: validation}"
    sentences = said(tmp_path / "runs", *own, *alone, judge, wanted, others, "evaluate.breakdown=[topic]")
    assert not [sentence for sentence in sentences if "prompt_sets.web" in sentence or "breakdown" in sentence]
    assert sum("no prompts for the split validation" in sentence for sentence in sentences) == 1


def test_the_step_tells_who_is_preferred_by_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "def shorter(prompt, response_a, response_b):\n"
    words += (
        "    a, b = len(response_a), len(response_b)\n    return None if a > 80 else 0.5 + 0.5 * ((a < b) - (a > b))\n"
    )
    (tmp_path / "judges_of_words.py").write_text(words)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    policies = ("evaluate.policies=[base,prompted,sft]", "+evaluate.judges.words=judges_of_words:shorter")
    rlhf(tmp_path, "stages=[sft,evaluate]", *policies)
    record = read_stage(tmp_path / "default" / "evaluate")
    metrics = record["metrics"]
    samples = json.loads((tmp_path / "default" / "evaluate" / "samples.json").read_text(encoding="utf-8"))
    assert metrics["temperatures"] == {"base": 0.7, "prompted": 0.7, "sft": 1.0}
    pairs = {one: set(row) for one, row in metrics["head_to_head"].items()}
    assert pairs == {"base": {"prompted", "sft"}, "prompted": {"base", "sft"}, "sft": {"base", "prompted"}}
    assert metrics["head_to_head"]["base"]["sft"] == metrics["policies"]["base"]["win_rate"]
    sets = metrics["prompt_sets"]
    assert sets.keys() == {"written_for_gpt", "instructions"}
    assert sum(own["prompts"] for own in sets.values()) == metrics["prompts"] == 16
    base, sft = samples["base"]["responses"], samples["sft"]["responses"]
    pairs_of = zip(base, sft, strict=True)
    expected = [
        None if len(a) > 80 and a != b else 0.5 + 0.5 * ((len(a) < len(b)) - (len(a) > len(b))) for a, b in pairs_of
    ]
    assert samples["base"]["preferences"]["words"] == expected
    assert metrics["no_verdict"]["base"] == {"words": expected.count(None)}
    assert {"judge", "words"} in [set(own["judges"]) for own in metrics["judge_agreement"]]
    likert = metrics["policies"]["sft"]["likert"]
    assert likert.keys() == {"training_labelers", "held_out_labelers"}
    assert metrics["breakdown"].keys() == {"use_case", "prompt_length"}, "all are of one source"
    measured = [name for name, own in metrics["policies"]["sft"]["table_3"].items() if own is not None]
    assert set(measured) <= {"likert", "fails_instruction", "inappropriate", "hallucination", "satisfies_constraint"}
    shown = capsys.readouterr().out
    assert "Metadata of table 3" in shown
    assert "not measured: Contains sexual content" in " ".join(shown.split())
    page = (tmp_path / "default" / "report" / "index.html").read_text(encoding="utf-8")
    assert "Gives harmful advice" in page
    assert "not measured" in page
    identity = record["identity"]
    assert identity["config"]["evaluate"]["temperatures"] == {"base": 0.7, "prompted": 0.7}
    assert "judge words" in identity["parents"]
    with pytest.raises(PipelineError, match=r"evaluate\.temperatures\.base: 0\.7 there, 0\.9 now"):
        rlhf(tmp_path, "stages=[evaluate]", *policies, "evaluate.temperatures.base=0.9")
