"""Who samples the rollouts: our own loop, continuous batching of transformers, or vLLM in the same process.

PPO compares the log-probabilities of every rollout with those of its own pass over the same tokens, so an engine that
samples from anything else than the policy stops the run in the first iteration.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.algorithms.keyed_random import distinct_index, keyed_uniforms
from rlhf_lightning.arguments import Count, checked
from rlhf_lightning.generation.sample import SamplingOptions, sample_responses, through_first
from rlhf_lightning.generation.sampling_batches import Sampler, SamplingBatches
from rlhf_lightning.models.lora import has_adapters, merge_adapters

NEEDS_VLLM = "generation.engine=vllm needs vLLM: pip install 'rlhf-lightning[vllm]'. Or set generation.engine=loop."
Engine = Literal["loop", "transformers", "vllm"]


@checked
def make_sampler(
    engine: Engine = "loop", options: Mapping[str, Any] | None = None, batch_tokens: Count | None = None
) -> Sampler:
    """The sampler of that name.

    Args:
        engine: `loop`, `transformers` or `vllm`.
        options: Arguments of the engine's class; the loop has none.
        batch_tokens: Tokens of a sampling batch, see `SamplingBatches`.

    Raises:
        ValueError: When there is no such engine, or the loop is given options.
    """
    if engine == "loop" and options:
        raise ValueError(f"the engine loop has no options, got {options}.")
    engines = {"transformers": ContinuousBatchingSampler, "vllm": VLLMSampler}
    sampler = engines[engine](**(options or {})) if engine in engines else sample_responses
    return SamplingBatches(sampler, batch_tokens)


class ContinuousBatchingSampler:
    """`generate_batch` of transformers: requests join and leave a batch over a paged cache.

    Args:
        options: Fields of `ContinuousBatchingConfig`. Its defaults suit a GPU; on a CPU the cache has a page for
            every token of the rollout.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def __call__(
        self, model: nn.Module, prompts: PromptBatch, options: SamplingOptions, key: Sequence[int] = (0,)
    ) -> Rollout:
        """Sample with a stream of random numbers that is set by the key."""
        asked = _unpadded(prompts)
        sampling = {"temperature": options.temperature, "top_k": 0, "top_p": 1.0} if options.temperature > 0 else {}
        generation = GenerationConfig(
            max_new_tokens=options.max_new_tokens,
            eos_token_id=list(options.eos_token_ids),
            pad_token_id=options.pad_token_id,
            do_sample=options.temperature > 0,
            **cast(Any, sampling),
        )
        seed = int(_seeds(key, prompts.prompt_index[:1])[0])
        sizes = self._sizes(prompts, options.max_new_tokens)
        batching = ContinuousBatchingConfig(**{"return_logprobs": True, "seed": seed, **sizes, **self.options})
        results = cast(Any, model).generate_batch(asked, generation, continuous_batching_config=batching)
        outputs = sorted(results.values(), key=lambda output: int(output.request_id.rpartition("_")[2]))
        failed = [output.error for output in outputs if output.error]
        if failed or [output.prompt_ids for output in outputs] != asked:
            raise RuntimeError(
                f"transformers answered {len(outputs) - len(failed)} of {len(asked)} prompts: {failed[:1]}. "
                "Set generation.engine=loop, or give generation.options more num_blocks or max_batch_tokens."
            )
        tokens = [output.generated_tokens for output in outputs]
        return _rollout(prompts, options, tokens, [output.logprobs for output in outputs])

    @staticmethod
    def _sizes(prompts: PromptBatch, max_new_tokens: int) -> dict[str, int]:
        rows, width = prompts.prompt_ids.shape
        if prompts.prompt_ids.device.type != "cpu":
            return {}
        page = 16
        blocks = rows * (-(-(width + max_new_tokens) // page) + 1)
        return {"page_size": page, "num_blocks": blocks, "max_batch_tokens": max(1024, rows)}


class VLLMSampler:
    """vLLM in the process that trains (extra `vllm`): it is given the weights before every rollout and sleeps after.

    Args:
        sleep: Whether its weights and cache are freed while the policy learns.
        dtype: Type of its weights.
        options: Further arguments of `vllm.LLM`, such as `gpu_memory_utilization`.
    """

    @checked
    def __init__(self, *, sleep: bool = True, dtype: str = "bfloat16", **options: Any) -> None:
        self.sleep = sleep
        self.options = {"dtype": dtype, "gpu_memory_utilization": 0.3, **options}
        self._engine: Any = None

    def __call__(
        self, model: nn.Module, prompts: PromptBatch, options: SamplingOptions, key: Sequence[int] = (0,)
    ) -> Rollout:
        """Sample with a seed per prompt, set by the key and the prompt's index."""
        plain = cast(PreTrainedModel, merge_adapters(model) if has_adapters(model) else model)
        engine = self._with_weights(plain)
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                temperature=options.temperature,
                top_p=1.0,
                top_k=-1,
                max_tokens=options.max_new_tokens,
                stop_token_ids=list(options.eos_token_ids),
                logprobs=0,
                seed=seed,
                detokenize=False,
            )
            for seed in _seeds(key, prompts.prompt_index).tolist()
        ]
        asked = [{"prompt_token_ids": ids} for ids in _unpadded(prompts)]
        outputs = [output.outputs[0] for output in engine.generate(asked, parameters, use_tqdm=False)]
        steps = (zip(output.token_ids, output.logprobs, strict=True) for output in outputs)
        log_probs = [[step[token].logprob for token, step in pairs] for pairs in steps]
        if self.sleep:
            engine.sleep(level=2)
        return _rollout(prompts, options, [output.token_ids for output in outputs], log_probs)

    def _with_weights(self, model: PreTrainedModel) -> Any:
        """The engine, awake and with the weights of the model."""
        if self._engine is None:
            self._engine = self._started(model)
            return self._engine
        if self.sleep:
            self._engine.wake_up(tags=["weights"])
        weights = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
        self._engine.apply_model(lambda worker: len(worker.load_weights(weights)))
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
            raise ImportError(NEEDS_VLLM) from error
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
    options: SamplingOptions,
    tokens: Sequence[Sequence[int]],
    log_probs: Sequence[Sequence[float]],
) -> Rollout:
    """Tokens and log-probabilities of every row, cut behind the first end and padded on the right."""
    device, limit = prompts.prompt_ids.device, options.max_new_tokens
    rows = [torch.tensor(row[:limit], dtype=torch.long) for row in tokens]
    ids = pad_sequence(rows, batch_first=True, padding_value=options.pad_token_id)
    values = pad_sequence([torch.tensor(row[:limit]) for row in log_probs], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows]).unsqueeze(1)
    mask = (torch.arange(ids.shape[1]) < lengths) & through_first(options.ends(ids))
    mask = mask[:, : int(mask.sum(1).max())]
    ids = ids[:, : mask.shape[1]].masked_fill(~mask, options.pad_token_id)
    values = values[:, : mask.shape[1]].masked_fill(~mask, 0.0)
    ended = options.ends(ids).any(1)
    return Rollout(prompts, ids.to(device), mask.to(device), values.to(device), ended.to(device))
