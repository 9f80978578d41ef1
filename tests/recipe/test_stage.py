"""A new algorithm is a file, a line and a YAML group; from the command to the loss there are few files."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

import rlhf_lightning
from rlhf_lightning.cli import CONFIG_DIR, composed, run
from rlhf_lightning.generation.rewards import response_scores
from rlhf_lightning.generation.sample import SamplingOptions, response_texts, sample_responses
from rlhf_lightning.recipe.context import Context, counted
from rlhf_lightning.recipe.pipeline import RECIPE, Pipeline
from rlhf_lightning.recipe.stage import Stage
from rlhf_lightning.runs.files import write_lines
from rlhf_lightning.runs.folders import PipelineError, Runs, read_stage
from rlhf_lightning.runs.identity import model_fingerprint
from rlhf_lightning.runs.targets import builder

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
PACKAGE = Path(rlhf_lightning.__file__).parent
TINY = [
    "experiment=demo",
    "debug=fast",
    "data.source.prompts=40",
    "data.source.demonstrations=40",
    "data.source.text=20",
    "data.source.validation=16",
    "ppo.data.batch_size=8",
    "ppo.init=sft",
]


@dataclass(frozen=True)
class BestOfN(Stage):
    """Samples n responses to each prompt and keeps the one that the reward model likes best."""

    def parents(self, context: Context) -> dict[str, str]:
        return {"policy": context.config[self.name]["policy"], "reward": "reward"}

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        from rlhf_lightning.data.loader import collate_prompts

        options = context.config[self.name]
        policy, reward = context.causal_lm(options["policy"]), context.scalar_model("reward")
        sampling = SamplingOptions.from_tokenizer(context.tokenizer, context.tokenization.max_response_tokens)
        prompts = context.tokenization.prompts(context.records("prompts", "train")[: options["prompts"]])
        rows = []
        for batch in counted(context.batches(prompts, collate_prompts, 8), context.device, lambda _: None):
            rollouts = [sample_responses(policy, batch, sampling, (context.seed, n)) for n in range(options["n"])]
            scores = [response_scores(reward, rollout, context.tokenizer).tolist() for rollout in rollouts]
            texts = [response_texts(context.tokenizer, rollout) for rollout in rollouts]
            for row, prompt in enumerate(batch.texts):
                best = max(range(options["n"]), key=lambda n: scores[n][row])
                rows.append({"prompt": prompt, "response": texts[best][row], "score": scores[best][row]})
        write_lines(folder / "best.jsonl", rows)
        return {"score": sum(row["score"] for row in rows) / len(rows)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all steps up to the reward model."""
    folder = tmp_path_factory.mktemp("runs")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        run(compose("config", [*TINY, f"paths.runs={folder}", "stages=[sft,collect,reward]"]))
    return folder


def test_an_algorithm_is_one_file_one_line_and_one_group(made: Path, tmp_path: Path) -> None:
    (tmp_path / "best_of_n").mkdir()
    (tmp_path / "best_of_n" / "default.yaml").write_text("policy: sft\nn: 3\nprompts: 8\n")
    group = [f"hydra.searchpath=[file://{tmp_path}]", "+best_of_n=default"]

    def pipeline(*overrides: str) -> Pipeline:
        config = composed([*TINY, *group, "stages=[best_of_n]", *overrides])
        recipe = (*RECIPE, BestOfN("best_of_n", "Best of n", "#333333"))
        return Pipeline(config, builder([]), Runs(made, "demo"), recipe=recipe)

    three = pipeline().run()["best_of_n"]["score"]
    record = read_stage(made / "demo" / "best_of_n")
    assert record["status"] == "complete"
    assert record["identity"]["parents"]["reward"] == model_fingerprint(str(made / "demo" / "reward" / "model"))
    assert len((made / "demo" / "best_of_n" / "best.jsonl").read_text().splitlines()) == 8
    assert pipeline().run()["best_of_n"]["score"] == three  # skipped
    with pytest.raises(PipelineError, match=r"\n  best_of_n\.n: 3 there, 1 now"):
        pipeline("best_of_n.n=1").run()
    assert pipeline("best_of_n.n=1", "overwrite=true").run()["best_of_n"]["score"] < three


LOSSES = {"sft": "lm_loss", "reward": "ranking_loss", "ppo": "policy_loss"}
_WAY = (
    "cli/command recipe/shared recipe/pipeline recipe/{step} recipe/stage training/fit modules/{module} {parts}"
    "algorithms/losses"
)
STACKS = {
    "sft": _WAY.format(step="language_model", module="language_model", parts="models/micro_batches ").split(),
    "reward": _WAY.format(step="reward", module="reward", parts="models/micro_batches ").split(),
    "ppo": _WAY.format(step="ppo", module="ppo", parts="").split(),
}
"""Files of the package on the call stack when the loss is called for the first time."""
PASSED = {"sft": 83, "reward": 97, "ppo": 110}
"""The most files whose functions are called before, besides those of the sealed world."""


@pytest.mark.parametrize("stage", ["sft", *(pytest.param(step, marks=pytest.mark.slow) for step in ("reward", "ppo"))])
def test_from_the_command_to_the_loss_there_are_few_files(made: Path, stage: str) -> None:
    called, stack, before = set[str](), list[str](), sys.getprofile()

    @cache
    def module_of(file: str) -> str | None:
        path = Path(file)
        return path.relative_to(PACKAGE).with_suffix("").as_posix() if path.is_relative_to(PACKAGE) else None

    def name_of(frame: FrameType) -> str | None:
        return None if frame.f_code.co_name == "<module>" else module_of(frame.f_code.co_filename)

    def callers(frame: FrameType | None) -> Iterator[str]:
        while frame is not None:
            if (name := name_of(frame)) is not None:
                yield name
            frame = frame.f_back

    def profile(frame: FrameType, event: str, _: Any) -> None:
        name = name_of(frame) if event == "call" else None
        if name is not None:
            called.add(name)
            if frame.f_code.co_name == LOSSES[stage] and "training/watch" not in (way := list(callers(frame))):
                stack.extend(dict.fromkeys(reversed(way)))
                sys.setprofile(before)  # nothing that is called from here on counts

    overrides = [*TINY, f"paths.runs={made}", "run=profile", "upstream=demo", f"stages=[{stage}]"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("config", overrides)
        sys.setprofile(profile)
        try:
            run(config)
        finally:
            sys.setprofile(before)
    assert stack == STACKS[stage]
    passed = [name for name in called if not name.startswith("sandbox/")]
    assert len(passed) <= PASSED[stage], (len(passed), sorted(passed))
