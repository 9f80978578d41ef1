"""Every step that samples asks the engine of `generation`, here a fake of a vLLM server."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM
from vllm_fakes import serving

import rlhf_lightning
from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.runs.folders import PipelineError, read_stage

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
SMALL = Path(rlhf_lightning.__file__).parent / "sandbox" / "base" / "small"
UTILITY = "{_target_: rlhf_lightning.sandbox.data.TrueUtility, mode: final}"
OVERRIDES = [
    *("debug=fast", "model.size=small", "data.lengths.max_response_tokens=8", "generation=vllm_server"),
    *("collect.policies=[base]", "collect.prompts={train: 2}", "collect.sampling.max_responses=4"),
    *("select.candidates=[base]", f"select.reward={UTILITY}", "select.num_prompts=2"),
    *("ppo.init=base", f"ppo.reward={UTILITY}", "ppo.data.batch_size=4", "ppo.module.num_minibatches=2"),
    *("evaluate.policies=[base]", "evaluate.baseline=base", "evaluate.reference=base", "evaluate.num_prompts=2"),
    *("evaluate.judges=null", "evaluate.prompt_sets=null", "evaluate.metadata=null", "evaluate.probes=null"),
]


@pytest.mark.slow
def test_every_step_that_samples_asks_the_server(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    with serving(AutoModelForCausalLM.from_pretrained(SMALL)) as server:
        options = [f"generation.options.urls=[{server.url}]", f"generation.options.folder={shared}"]

        def rlhf(*overrides: str) -> None:
            with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
                run(compose("config", [f"paths.runs={tmp_path}", *OVERRIDES, *options, *overrides]))

        for step in ("collect", "select", "ppo", "evaluate"):
            before = server.paths().count("/collective_rpc")
            rlhf(f"stages=[{step}]")
            assert server.paths().count("/collective_rpc") > before, step
            held = read_stage(tmp_path / "default" / step)["identity"]["config"]["generation"]
            assert held == {"engine": "vllm_server", "options": {}, "batch_tokens": None}
        assert not list(shared.iterdir())
        server.statuses = {"/reset_prefix_cache": 404}
        with pytest.raises(PipelineError, match=r"^collect, evaluate: the vLLM server at .* VLLM_SERVER_DEV_MODE=1"):
            rlhf("stages=[collect,evaluate]", "run=other")
