"""A vLLM server that samples, against a fake of its documented interface: weights go there, what is wrong is said."""

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Fabric
from vllm_fakes import FakeServer, serving

from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.loader import collate_prompts
from rlhf_lightning.generation import json_endpoint, vllm_server
from rlhf_lightning.generation.engines import make_sampler
from rlhf_lightning.generation.sample import SamplingOptions, response_log_probs
from rlhf_lightning.generation.vllm_server import VLLMServerSampler
from rlhf_lightning.models.lora import add_adapters
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.ppo import PPOModule

OPTIONS = SamplingOptions(6, 1, 0)


@pytest.fixture
def server(tiny_gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setattr(json_endpoint, "_FIRST_WAIT", 0.001)
    with serving(tiny_gpt2) as server:
        yield server


def prompts(rows: int = 6) -> Any:
    return collate_prompts([PromptExample([3 + row, 4, 5][: 1 + row % 3], row, f"p{row}") for row in range(rows)], 0)


def sampler_of(server: FakeServer, folder: Path, **options: Any) -> Any:
    return make_sampler("vllm_server", {"urls": [server.url], "folder": str(folder), **options})


def test_weights_come_before_the_prompts_which_are_token_ids(
    server: FakeServer, tmp_path: Path, tiny_gpt2: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_KEY", "sesame-street")
    sampler_of(server, tmp_path, requests=2, api_key_env="VLLM_KEY")(tiny_gpt2, prompts(), OPTIONS, (1,))
    assert server.paths() == ["/collective_rpc", "/reset_prefix_cache", *["/v1/completions"] * 6]
    assert server.keys == {"Bearer sesame-street"}
    asked = [content for _, content in server.asked[2:]]
    assert sorted(content["prompt"] for content in asked) == [[3], [4, 4], [5, 4, 5], [6], [7, 4], [8, 4, 5]]
    assert len({content["seed"] for content in asked}) == 6
    assert not list(tmp_path.iterdir())


def test_adapters_are_pushed_as_weights(server: FakeServer, tmp_path: Path, tiny_gpt2: Any) -> None:
    add_adapters(tiny_gpt2, rank=2)
    for name, parameter in tiny_gpt2.named_parameters():
        parameter.data += 0.1 * ("lora" in name)
    rollout = sampler_of(server, tmp_path)(tiny_gpt2, prompts(), OPTIONS, (1,))
    with torch.no_grad():
        torch.testing.assert_close(rollout.log_probs, response_log_probs(tiny_gpt2, rollout), atol=1e-4, rtol=1e-4)


def ppo_gaps(module: PPOModule, iterations: int = 2) -> list[float]:
    """Mean difference of the sampled log-probs from the recomputed ones, in each iteration."""
    Fabric(accelerator="cpu", devices=1).setup(module, *module.build_optimizers())
    gaps = []
    for _ in range(iterations):
        experience = module.score(module.rollout(prompts()))
        difference = (experience.rollout.log_probs - experience.old_log_probs).abs()
        gaps.append(float(difference[experience.rollout.response_mask].mean()))
        module.update(experience)
        module.iteration += 1
    return gaps


def ppo_of(model: Any, tokenizer: Any, sampler: Any) -> PPOModule:
    reward, sgd = ScalarHeadModel.from_causal_lm(model), partial(torch.optim.SGD, lr=0.5)
    models = (model, copy.deepcopy(model), copy.deepcopy(reward), reward)
    return PPOModule(*models, tokenizer, sgd, sgd, sampler=sampler, max_new_tokens=6, num_minibatches=2)


def test_ppo_trains_with_it_on_samples_of_its_newest_weights(
    server: FakeServer, tmp_path: Path, tiny_gpt2: Any, tiny_tokenizer: Any
) -> None:
    before = copy.deepcopy(tiny_gpt2)
    gaps = ppo_gaps(ppo_of(tiny_gpt2, tiny_tokenizer, sampler_of(server, tmp_path)))
    assert max(gaps) < 1e-4
    assert server.paths().count("/collective_rpc") == 2
    moved = [(a - b).abs().max() for a, b in zip(tiny_gpt2.parameters(), before.parameters(), strict=True)]
    assert max(moved) > 0.01


def test_a_server_that_keeps_its_weights_ends_the_run(
    server: FakeServer, tmp_path: Path, tiny_gpt2: Any, tiny_tokenizer: Any
) -> None:
    sampler = sampler_of(server, tmp_path)
    module = ppo_of(tiny_gpt2, tiny_tokenizer, sampler)
    ppo_gaps(module, 1)
    server.deaf = True
    with pytest.raises(RuntimeError, match="an engine whose weights are not the policy's"):
        sampler(tiny_gpt2, prompts(), OPTIONS, (1,))  # as collect and evaluate ask it
    with pytest.raises(RuntimeError, match="an engine whose weights are not the policy's"):
        ppo_gaps(module, 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token_ids": [5, 6]}, r"2 tokens with 6 log-probs to a prompt of 1; asked were 6"),
        ({"token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0, -1.0]}}, r"answered 2 tokens .* --max-model-len"),
        ({"prompt_token_ids": [2, 3]}, "to a prompt of 2; asked were 6, .* to one of 1"),
        ({"token_ids": None}, "without prompt_token_ids, token_ids and token_logprobs"),
        ({"logprobs": None}, "without prompt_token_ids, token_ids and token_logprobs"),
        ({"logprobs": {"token_logprobs": [None]}}, "without prompt_token_ids, token_ids and token_logprobs"),
        (
            {"token_ids": [99] * 6, "logprobs": {"token_logprobs": [-1.0] * 6}},
            "token 99, and the policy has 40: it serves another model",
        ),
    ],
)
def test_answers_that_are_not_what_was_asked_for(
    server: FakeServer, tmp_path: Path, tiny_gpt2: Any, changes: dict[str, Any], said: str
) -> None:
    server.changes = changes
    with pytest.raises(ValueError, match=said):
        sampler_of(server, tmp_path)(tiny_gpt2, prompts(1), OPTIONS, (1,))


def test_another_model_is_refused_when_it_gets_the_weights(
    server: FakeServer, tmp_path: Path, make_tiny_lm: Any
) -> None:
    other = make_tiny_lm("gpt2", vocab_size=50)
    with pytest.raises(
        ConnectionError, match=r"no sign that it read the weights .*size mismatch.*the FOLDER that the "
    ):
        sampler_of(server, tmp_path, retries=0)(other, prompts(), OPTIONS, (1,))


def test_what_lacks_is_said_before(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(urls: list[str] | None = None, folder: Path = tmp_path, tokens: int = 100) -> list[str]:
        sampler = VLLMServerSampler(urls=[server.url] if urls is None else urls, folder=str(folder), retries=0)
        return list(sampler.lacking(tokens))

    assert lacking() == []
    assert server.paths() == ["/v1/completions", "/reset_prefix_cache"]
    (missing,) = lacking(folder=tmp_path / "none")
    assert missing.endswith("none is no folder. Make it where the vLLM servers see it too.")
    (few,) = lacking([])
    assert few == "generation.options.urls names 0 vLLM servers for 1 processes. Name one for each."
    (absent,) = lacking(["http://127.0.0.1:9"])
    assert "the vLLM server at http://127.0.0.1:9/v1/completions gave no response after 1 attempts" in absent
    (short,) = lacking(tokens=129)
    assert "maximum context length is 128" in short
    server.statuses = {"/reset_prefix_cache": 404}
    (production,) = lacking()
    assert "start it by VLLM_SERVER_DEV_MODE=1 vllm serve" in production
    server.statuses = {"/v1/completions": 401}
    (closed,) = lacking()
    assert "a key belongs into the environment variable that api_key_env of its setting names" in closed
    monkeypatch.setattr(vllm_server, "world_size", lambda: 2)
    server.statuses = {}
    assert lacking() == ["generation.options.urls names 1 vLLM servers for 2 processes. Name one for each."]
