"""Who samples the rollouts: our own loop, continuous batching of transformers, or vLLM in the same process.

PPO compares the log-probabilities of every rollout with those of its own pass over the same tokens, so an engine that
samples from anything else than the policy stops the run in the first iteration.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.algorithms.keyed_random import distinct_index, keyed_uniforms
from rlhf_lightning.generation.sample import sample_responses
from rlhf_lightning.models.lora import has_adapters, merge_adapters

Sampler: TypeAlias = Callable[..., Rollout]
"""Samples one response per prompt from the full distribution of a policy; arguments as :func:`sample_responses`."""


def make_sampler(engine: str, **options: Any) -> Sampler:
    """The sampler of that name.

    Args:
        engine: ``loop``, ``transformers`` or ``vllm``.
        options: Of its class; the loop has none.

    Raises:
        ValueError: When there is no such engine, or the loop is given options.
    """
    if engine == "loop" and not options:
        return sample_responses
    classes: dict[str, Callable[..., Sampler]] = {"transformers": ContinuousBatchingSampler, "vllm": VLLMSampler}
    if engine not in classes:
        given = f" with options {options}" if engine == "loop" else ""
        raise ValueError(
            f"generation.engine={engine}{given} is not known; there are loop (no options), {', '.join(classes)}."
        )
    return classes[engine](**options)


class ContinuousBatchingSampler:
    """``generate_batch`` of transformers: requests join and leave a batch over a paged cache.

    Args:
        options: Fields of ``ContinuousBatchingConfig``. Its defaults suit a GPU; on a CPU the cache has a page for
            every token of the rollout.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def __call__(
        self,
        model: nn.Module,
        prompts: PromptBatch,
        *,
        max_new_tokens: int,
        eos_token_id: int,
        pad_token_id: int,
        temperature: float = 1.0,
        key: Sequence[int] = (0,),
    ) -> Rollout:
        """Sample with a stream of random numbers that is keyed by ``key``."""
        asked = _unpadded(prompts)
        sampling = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        ends = {"eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        generation = GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=temperature > 0, **ends, **cast(Any, sampling)
        )
        seed = int(_seeds(key, torch.zeros(1, dtype=torch.long))[0])
        options = {"return_logprobs": True, "seed": seed, **self._sizes(prompts, max_new_tokens), **self.options}
        found = cast(Any, model).generate_batch(
            asked,
            generation_config=generation,
            continuous_batching_config=ContinuousBatchingConfig(**options),
        )
        outputs = sorted(found.values(), key=lambda output: int(output.request_id.rpartition("_")[2]))
        failed = [output.error for output in outputs if output.error]
        if failed or [output.prompt_ids for output in outputs] != asked:
            raise RuntimeError(
                f"transformers answered {len(outputs) - len(failed)} of {len(asked)} prompts: {failed[:1]}. "
                "Set generation.engine=loop, or give generation.options more num_blocks or max_batch_tokens."
            )
        answers = [(output.generated_tokens, output.logprobs) for output in outputs]
        return _rollout(prompts, answers, max_new_tokens, eos_token_id, pad_token_id)

    @staticmethod
    def _sizes(prompts: PromptBatch, max_new_tokens: int) -> dict[str, int]:
        rows, width = prompts.prompt_ids.shape
        if prompts.prompt_ids.device.type != "cpu":
            return {}
        page = 16
        return {
            "page_size": page,
            "num_blocks": rows * (-(-(width + max_new_tokens) // page) + 1),
            "max_batch_tokens": max(1024, rows),
        }


class VLLMSampler:
    """vLLM in the process that trains (extra ``vllm``): it is given the weights before every rollout and sleeps after.

    Args:
        sleep: Free its weights and cache while the policy learns.
        dtype: Of its weights.
        options: Further arguments of ``vllm.LLM``, such as ``gpu_memory_utilization``.
    """

    def __init__(self, *, sleep: bool = True, dtype: str = "bfloat16", **options: Any) -> None:
        self.sleep = sleep
        self.options = {"dtype": dtype, "gpu_memory_utilization": 0.3, **options}
        self._engine: Any = None

    def __call__(
        self,
        model: nn.Module,
        prompts: PromptBatch,
        *,
        max_new_tokens: int,
        eos_token_id: int,
        pad_token_id: int,
        temperature: float = 1.0,
        key: Sequence[int] = (0,),
    ) -> Rollout:
        """Sample with a seed per prompt, keyed by ``key`` and the prompt's index."""
        plain = cast(PreTrainedModel, merge_adapters(model) if has_adapters(model) else model)
        engine = self._with_weights(plain)
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=temperature,
                top_p=1.0,
                top_k=-1,
                max_tokens=max_new_tokens,
                stop_token_ids=[eos_token_id],
                logprobs=0,
                seed=seed,
                detokenize=False,
            )
            for seed in _seeds(key, prompts.prompt_index).tolist()
        ]
        asked = [{"prompt_token_ids": ids} for ids in _unpadded(prompts)]
        outputs = [output.outputs[0] for output in engine.generate(asked, parameters, use_tqdm=False)]
        answers = []
        for output in outputs:
            tokens = list(output.token_ids)
            answers.append((tokens, [step[token].logprob for token, step in zip(tokens, output.logprobs, strict=True)]))
        if self.sleep:
            engine.sleep(level=2)
        return _rollout(prompts, answers, max_new_tokens, eos_token_id, pad_token_id)

    def _with_weights(self, model: PreTrainedModel) -> Any:
        """The engine, awake and with the weights of the model."""
        if self._engine is None:
            self._engine = self._started(model)
            return self._engine
        if self.sleep:
            self._engine.wake_up(tags=["weights"])
        weights = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
        self._engine.apply_model(lambda own: len(own.load_weights(weights)))
        if self.sleep:
            self._engine.wake_up(tags=["kv_cache"])
        self._engine.reset_prefix_cache()
        return self._engine

    def _started(self, model: PreTrainedModel) -> Any:
        # One process: the weights are handed over as they are, not sent.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(
                "generation.engine=vllm needs vLLM: pip install 'rlhf-lightning[vllm]'. Or set generation.engine=loop."
            ) from error
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return LLM(
                model=folder,
                skip_tokenizer_init=True,
                generation_config="vllm",
                logprobs_mode="processed_logprobs",  # after the temperature, as PPO computes them
                enable_sleep_mode=self.sleep,
                **self.options,
            )


def _unpadded(prompts: PromptBatch) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(prompts.prompt_ids, prompts.prompt_mask, strict=True)]


def _seeds(key: Sequence[int], index: Tensor) -> Tensor:
    """A whole number below 2^31 for each row."""
    return (keyed_uniforms(key, distinct_index(index), 1).squeeze(1) * 2**31).long()


def _rollout(
    prompts: PromptBatch,
    answers: Sequence[tuple[list[int], list[float]]],
    max_new_tokens: int,
    eos_token_id: int,
    pad_token_id: int,
) -> Rollout:
    """Tokens and log-probabilities of every row, cut behind the first EOS and padded on the right."""
    device = prompts.prompt_ids.device
    lengths = []
    for tokens, _ in answers:
        end = tokens.index(eos_token_id) + 1 if eos_token_id in tokens else len(tokens)
        lengths.append(min(end, max_new_tokens))
    width = max(lengths)
    ids, log_probs = torch.full((len(answers), width), pad_token_id), torch.zeros(len(answers), width)
    for row, ((tokens, values), length) in enumerate(zip(answers, lengths, strict=True)):
        ids[row, :length] = torch.tensor(tokens[:length])
        log_probs[row, :length] = torch.tensor(values[:length])
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    ended = ((ids == eos_token_id) & mask).any(1)
    return Rollout(prompts, ids.to(device), mask.to(device), log_probs.to(device), ended.to(device))
