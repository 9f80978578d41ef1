"""Who samples: our own loop, continuous batching of transformers, vLLM in the same process, or a vLLM server.

The log-probabilities of an engine are compared with those of our own pass over the same tokens, of a few responses of
every batch, and in PPO of all, so an engine that samples from anything else than the model stops the run at once.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.algorithms.functional import masked_mean
from rlhf_lightning.arguments import Count, checked
from rlhf_lightning.generation.experience import check_sampler_gap
from rlhf_lightning.generation.sample import SamplingOptions, response_log_probs, sample_responses, select_rows
from rlhf_lightning.generation.sampling_batches import Sampler, SamplingBatches
from rlhf_lightning.generation.token_rows import rollout_of, row_seeds, unpadded, without_adapters, write_weights
from rlhf_lightning.generation.vllm_server import VLLMServerSampler
from rlhf_lightning.models.precision import is_exact

NO_GRAPHS = "generation.cuda_graphs is of the engine loop, not of {}, which sees to such things itself. Leave it false."
NEEDS_VLLM = "generation.engine=vllm needs vLLM: pip install 'rlhf-lightning[vllm]'. Or set generation.engine=loop."
Engine = Literal["loop", "transformers", "vllm", "vllm_server"]
_CHECKED = 8
"""Responses of a batch whose log-probabilities are compared."""


@checked
def make_sampler(
    engine: Engine = "loop",
    options: Mapping[str, Any] | None = None,
    batch_tokens: Count | None = None,
    cuda_graphs: bool = False,
) -> Sampler:
    """The sampler of that name.

    Args:
        engine: `loop`, `transformers`, `vllm` or `vllm_server`.
        options: Arguments of the engine's class; the loop has none.
        batch_tokens: Tokens of a sampling batch, see `SamplingBatches`.
        cuda_graphs: Whether our loop runs every step as one graph, see `sample_responses`; the others have their own.

    Raises:
        ValueError: When there is no such engine, the loop is given options, or another engine `cuda_graphs`.
    """
    if engine == "loop" and options:
        raise ValueError(f"the engine loop has no options, got {options}.")
    if engine != "loop" and cuda_graphs:
        raise ValueError(NO_GRAPHS.format(engine))
    engines: dict[str, Any] = {
        "transformers": ContinuousBatchingSampler,
        "vllm": VLLMSampler,
        "vllm_server": VLLMServerSampler,
    }
    own = partial(sample_responses, cuda_graphs=True) if cuda_graphs else sample_responses
    sampler = _Verified(engines[engine](**(options or {}))) if engine in engines else own
    return SamplingBatches(sampler, batch_tokens)


def responses_depend_on(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Of node `generation` what responses depend on: not where a server is, nor graphs, nor the size of a batch.

    Args:
        generation: The arguments of `make_sampler`.
    """
    addresses: dict[str, Any] = {"options": {}} if generation["engine"] == "vllm_server" else {}
    asked = {name: value for name, value in generation.items() if name != "cuda_graphs"}
    return {**asked, **addresses, "batch_tokens": None}


class _Verified:
    """A sampler whose responses are read again, some of every batch, by the model that should have written them."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __call__(
        self, model: nn.Module, prompts: PromptBatch, options: SamplingOptions, key: Sequence[int] = (0,)
    ) -> Rollout:
        if not isinstance(model, PreTrainedModel):
            raise ValueError(f"{type(model).__name__} is no model of transformers. Set generation.engine=loop.")
        rollout = self.sampler(model, prompts, options, key)
        some = select_rows(rollout, torch.arange(min(_CHECKED, len(rollout.ended)), device=rollout.ended.device))
        with torch.no_grad():
            expected = response_log_probs(model, some, options.temperature or 1.0)
        gap = masked_mean((some.log_probs - expected).abs(), some.response_mask)
        check_sampler_gap(gap, is_exact(model))
        return rollout


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
        asked = unpadded(prompts)
        sampling = {"temperature": options.temperature, "top_k": 0, "top_p": 1.0} if options.temperature > 0 else {}
        generation = GenerationConfig(
            max_new_tokens=options.max_new_tokens,
            eos_token_id=list(options.eos_token_ids),
            pad_token_id=options.pad_token_id,
            do_sample=options.temperature > 0,
            **cast(Any, sampling),
        )
        seed = row_seeds(key, prompts.prompt_index[:1])[0]
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
        return rollout_of(prompts, options, tokens, [output.logprobs for output in outputs])

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
        engine = self._with_weights(without_adapters(model))
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
            for seed in row_seeds(key, prompts.prompt_index)
        ]
        asked = [{"prompt_token_ids": ids} for ids in unpadded(prompts)]
        outputs = [output.outputs[0] for output in engine.generate(asked, parameters, use_tqdm=False)]
        steps = (zip(output.token_ids, output.logprobs, strict=True) for output in outputs)
        log_probs = [[step[token].logprob for token, step in pairs] for pairs in steps]
        if self.sleep:
            engine.sleep(level=2)
        return rollout_of(prompts, options, [output.token_ids for output in outputs], log_probs)

    def _with_weights(self, model: PreTrainedModel) -> Any:
        """The engine, awake and with the weights of the model."""
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        if self._engine is None:
            self._engine, self._shapes = self._started(model), shapes
            return self._engine
        if shapes != self._shapes:
            raise ValueError(
                "vLLM holds one model per step, and this one has other weights. Set generation.engine=loop."
            )
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
            write_weights(model, folder)
            return LLM(
                model=folder,
                skip_tokenizer_init=True,
                generation_config="vllm",
                logprobs_mode="processed_logprobs",  # after the temperature, as PPO computes them
                enable_sleep_mode=self.sleep,
                **self.options,
            )
