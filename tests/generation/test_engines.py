"""Every engine samples from the policy, gives its log-probabilities, and can be repeated; vLLM stands in as a fake."""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from vllm_fakes import drawn, serving

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.data.examples import PromptExample
from rlhf_lightning.data.loader import collate_prompts
from rlhf_lightning.generation.engines import ContinuousBatchingSampler, VLLMSampler, make_sampler
from rlhf_lightning.generation.sample import SamplingOptions, response_log_probs, sample_responses
from rlhf_lightning.models.lora import add_adapters

EOS, PAD = 1, 0


def prompts(rows: int = 12) -> PromptBatch:
    examples = [PromptExample([3 + (row + n) % 30 for n in range(1 + row % 4)], row, f"p{row}") for row in range(rows)]
    return collate_prompts(examples, PAD)


class FakeLLM:
    """The documented interface of ``vllm.LLM``, with a transformers model inside; asleep it has no weights."""

    made: ClassVar[list["FakeLLM"]] = []

    def __init__(self, model: str, **options: Any) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        self.options, self.awake, self.calls = options, {"weights", "kv_cache"}, list[str]()
        FakeLLM.made.append(self)

    def sleep(self, level: int) -> None:
        assert self.options["enable_sleep_mode"]
        assert level == 2
        self.awake = set()
        self.calls.append("sleep")
        for parameter in self.model.parameters():
            parameter.data.fill_(float("nan"))

    def wake_up(self, tags: list[str]) -> None:
        self.awake |= set(tags)
        self.calls.append(f"wake {tags[0]}")

    def apply_model(self, function: Any) -> list[Any]:
        assert "weights" in self.awake

        def load_weights(weights: Any) -> set[str]:
            own = dict(self.model.named_parameters())
            given = dict(weights)
            assert given.keys() == own.keys()
            for name, value in given.items():
                own[name].data.copy_(value)
            return set(given)

        return [function(SimpleNamespace(load_weights=load_weights))]

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")

    def generate(self, asked: list[Any], parameters: list[Any], use_tqdm: bool) -> list[Any]:
        assert self.awake == {"weights", "kv_cache"}
        self.calls.append("generate")
        outputs = []
        for prompt, own in zip(asked, parameters, strict=True):
            limits = (own.max_tokens, own.stop_token_ids, own.temperature)
            tokens, log_probs = drawn(self.model, prompt["prompt_token_ids"], own.seed, *limits)
            steps = [{token: SimpleNamespace(logprob=each)} for token, each in zip(tokens, log_probs, strict=True)]
            answer = SimpleNamespace(token_ids=tuple(tokens), logprobs=steps)
            outputs.append(SimpleNamespace(outputs=[answer]))
        return outputs


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = FakeLLM, lambda **options: SimpleNamespace(**options)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    FakeLLM.made = []
    return FakeLLM


@pytest.fixture(params=["loop", "transformers", "vllm", "vllm_server"])
def sampler(request: pytest.FixtureRequest, vllm: type[FakeLLM], tmp_path: Path) -> Iterator[Any]:
    if request.param != "vllm_server":
        yield make_sampler(request.param)
        return
    names = {"tiny_lm", "tiny_gpt2"} & {*request.fixturenames}
    with serving(request.getfixturevalue(names.pop())) as server:
        yield make_sampler("vllm_server", {"urls": [server.url], "folder": str(tmp_path)})


def sampled(
    sampler: Any, model: nn.Module, key: tuple[int, ...] = (1,), max_new_tokens: int = 7, temperature: float = 1.0
) -> Rollout:
    rollout: Rollout = sampler(model, prompts(), SamplingOptions(max_new_tokens, EOS, PAD, temperature), key)
    return rollout


def test_log_probs_are_those_of_the_policy(sampler: Any, tiny_lm: Any) -> None:
    for temperature in (1.0, 0.7, 0.0):
        rollout = sampled(sampler, tiny_lm, temperature=temperature)
        with torch.no_grad():
            expected = response_log_probs(tiny_lm, rollout, temperature or 1.0)
        torch.testing.assert_close(rollout.log_probs, expected, atol=1e-4, rtol=1e-4)


def test_rows_end_at_their_first_eos(sampler: Any, tiny_lm: Any) -> None:
    tiny_lm.get_output_embeddings().weight.data[EOS] *= 3
    rollout = sampled(sampler, tiny_lm, max_new_tokens=12)
    lengths = rollout.response_mask.sum(1)
    assert len(lengths.unique()) > 1
    assert rollout.ended.any()
    assert not rollout.ended.all()
    for ids, mask, length, ended in zip(
        rollout.response_ids, rollout.response_mask, lengths, rollout.ended, strict=True
    ):
        assert mask[:length].all()
        assert (ids[length:] == PAD).all()
        assert (EOS in ids[: length - 1]) is False
        assert bool(ids[length - 1] == EOS) is bool(ended)
        assert ended or length == 12
    assert (rollout.log_probs[~rollout.response_mask] == 0).all()


def test_the_key_alone_decides(sampler: Any, tiny_gpt2: Any) -> None:
    first = sampled(sampler, tiny_gpt2)
    torch.manual_seed(77)
    again, other = sampled(sampler, tiny_gpt2), sampled(sampler, tiny_gpt2, key=(2,))
    assert torch.equal(first.response_ids, again.response_ids)
    assert first.response_ids.shape != other.response_ids.shape or not torch.equal(
        first.response_ids, other.response_ids
    )


def test_the_distribution_is_that_of_the_policy(sampler: Any, tiny_gpt2: Any) -> None:
    """Frequencies of the first token against its probabilities; a chi-square with 39 degrees of freedom."""
    rows = 400
    one = collate_prompts([PromptExample([5, 9], row, "p") for row in range(rows)], PAD)
    rollout = sampler(tiny_gpt2, one, SamplingOptions(1, EOS, PAD), (3,))
    with torch.no_grad():
        expected = tiny_gpt2(torch.tensor([[5, 9]])).logits[0, -1].softmax(-1) * rows
    counts = torch.bincount(rollout.response_ids[:, 0], minlength=40).float()
    assert float(((counts - expected) ** 2 / expected).sum()) < 72.1  # one in a thousand


def test_vllm_gets_the_weights_before_every_rollout(vllm: type[FakeLLM], tiny_gpt2: Any) -> None:
    sampler = VLLMSampler(gpu_memory_utilization=0.2)
    sampled(sampler, tiny_gpt2)
    engine = vllm.made[0]
    assert engine.options["gpu_memory_utilization"] == 0.2
    assert engine.options["logprobs_mode"] == "processed_logprobs"
    assert engine.calls == ["generate", "sleep"]
    for parameter in tiny_gpt2.parameters():
        parameter.data += 0.05
    rollout = sampled(sampler, tiny_gpt2)
    assert vllm.made == [engine]
    assert engine.calls[2:] == ["wake weights", "wake kv_cache", "reset", "generate", "sleep"]
    with torch.no_grad():
        torch.testing.assert_close(rollout.log_probs, response_log_probs(tiny_gpt2, rollout), atol=1e-4, rtol=1e-4)


def test_vllm_without_sleep_gets_them_too(vllm: type[FakeLLM], tiny_gpt2: Any) -> None:
    sampler = VLLMSampler(sleep=False)
    sampled(sampler, tiny_gpt2)
    add_adapters(tiny_gpt2, rank=2)
    for name, parameter in tiny_gpt2.named_parameters():
        parameter.data += 0.1 * ("lora" in name)
    rollout = sampled(sampler, tiny_gpt2)
    assert vllm.made[0].calls == ["generate", "reset", "generate"]
    with torch.no_grad():
        torch.testing.assert_close(rollout.log_probs, response_log_probs(tiny_gpt2, rollout), atol=1e-4, rtol=1e-4)


def test_vllm_holds_one_model(vllm: type[FakeLLM], tiny_gpt2: Any, tiny_llama: Any) -> None:
    sampler = make_sampler("vllm")
    sampled(sampler, tiny_gpt2)
    with pytest.raises(ValueError, match=r"vLLM holds one model per step.* Set generation\.engine=loop"):
        sampled(sampler, tiny_llama)


def test_an_engine_with_other_weights_is_found_out_by_whoever_samples(vllm: type[FakeLLM], tiny_gpt2: Any) -> None:
    sampler = make_sampler("vllm", {"sleep": False})
    sampled(sampler, tiny_gpt2)
    vllm.made[0].apply_model = lambda function: None
    tiny_gpt2.lm_head.weight.data *= 1.5
    with pytest.raises(RuntimeError, match="an engine whose weights are not the policy's"):
        sampled(sampler, tiny_gpt2)


def test_transformers_samples_with_adapters_and_leaves_the_model_as_it_was(tiny_lm: Any) -> None:
    add_adapters(tiny_lm, rank=2)
    before, attention = copy.deepcopy(tiny_lm.state_dict()), tiny_lm.config._attn_implementation
    sampled(ContinuousBatchingSampler(), tiny_lm)
    assert tiny_lm.config._attn_implementation == attention
    assert all(torch.equal(value, before[name]) for name, value in tiny_lm.state_dict().items())
    loss = tiny_lm(input_ids=torch.tensor([[4, 5]])).logits.sum()
    loss.backward()  # nothing is left in inference mode


def test_refusals(monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Any) -> None:
    assert make_sampler("loop").sampler is sample_responses
    with pytest.raises(ValueError, match="engine must be one of loop, transformers, vllm, vllm_server, got 'lop'"):
        make_sampler("lop")
    with pytest.raises(ValueError, match=r"loop has no options, got {'sleep': True}"):
        make_sampler("loop", {"sleep": True})
    with pytest.raises(ValueError, match=r"generation\.cuda_graphs is of the engine loop, not of transformers"):
        make_sampler("transformers", cuda_graphs=True)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install 'rlhf-lightning\[vllm\]'"):
        sampled(make_sampler("vllm"), tiny_gpt2)
