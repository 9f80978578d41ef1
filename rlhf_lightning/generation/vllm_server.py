"""vLLM as a server of its own (`vllm serve`): token ids go there by HTTP, weights by a folder that both see."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from torch import nn
from transformers import PreTrainedModel

from rlhf_lightning.algorithms.batch import PromptBatch, Rollout
from rlhf_lightning.arguments import Count, NonNegativeInt, PositiveFloat, checked
from rlhf_lightning.generation.json_endpoint import JSONEndpoint
from rlhf_lightning.generation.sample import SamplingOptions
from rlhf_lightning.generation.token_rows import rollout_of, row_seeds, unpadded, without_adapters, write_weights
from rlhf_lightning.parallel.processes import rank, world_size
from rlhf_lightning.runs.secrets import redacted

_START = (
    "start it by VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --generation-config vllm --logprobs-mode processed_logprobs"
)
_WHOLE = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""The full distribution, whatever the model's generation config says."""


class VLLMServerSampler:
    """A vLLM server, which is given the weights before every batch that it samples.

    They are written below `folder`, and `POST /collective_rpc` has the server read them (`reload_weights`), after which
    `/reset_prefix_cache` drops what it holds of the old ones. Then each prompt is a `POST /v1/completions` of its token
    ids, with a seed of its own; token ids and their log-probabilities come back. The first two need
    `VLLM_SERVER_DEV_MODE=1` and ask for no key, so that such a server belongs into a private network.

    It follows the documentation of vLLM: of completions that of 0.26, of weights `docs/training/layerwise.md` (115b6d4)
    and `docs/features/sleep_mode.md` (01181dd) of its repository. It has been tried against a fake of that only.

    Args:
        urls: Addresses of the servers, one for each process that trains, without `/v1`.
        folder: A folder that this machine and the servers see under the same path.
        requests: Prompts that are asked at the same time.
        timeout: Seconds to wait for an answer.
        retries: How many times to try again.
        api_key_env: Name of the environment variable with the servers' key.

    Raises:
        ValueError: When there is no address, one has a password in it, or the variable is not set.
    """

    @checked
    def __init__(
        self,
        *,
        urls: Sequence[str],
        folder: str,
        requests: Count = 64,
        timeout: PositiveFloat = 600.0,
        retries: NonNegativeInt = 3,
        api_key_env: str | None = None,
    ) -> None:
        self.folder, self.requests = Path(folder).resolve(), requests
        limits = {"timeout": timeout, "retries": retries, "api_key_env": api_key_env}
        self.servers = [_Server(url, self.folder, limits) for url in urls]

    def __call__(
        self, model: nn.Module, prompts: PromptBatch, options: SamplingOptions, key: Sequence[int] = (0,)
    ) -> Rollout:
        """Sample with a seed per prompt, set by the key and the prompt's index.

        Raises:
            ValueError: When there are fewer servers than processes, or an answer is not what was asked for.
            ConnectionError: When there is no answer, or one that is an error.
        """
        for lacking in self._servers_lacking():
            raise ValueError(lacking)
        server, plain = self.servers[rank()], without_adapters(model)
        with server.completions.client() as client:
            server.push(client, plain)
            ask = partial(server.response, client, options)
            pool = ThreadPoolExecutor(self.requests)
            try:
                found = [*pool.map(ask, unpadded(prompts), row_seeds(key, prompts.prompt_index))]
            finally:
                pool.shutdown(cancel_futures=True)
        tokens, log_probs = zip(*found, strict=True)
        size, highest = plain.config.get_text_config().vocab_size, max(map(max, tokens))
        if highest >= size:
            raise ValueError(
                f"{server.completions.name} answered token {highest}, and the policy has {size}: it serves another "
                "model. Serve the folder that the policy starts from."
            )
        return rollout_of(prompts, options, tokens, log_probs)

    def lacking(self, tokens: int) -> Iterator[str]:
        """What a run would fail for, a sentence each: servers that do not answer, and the folder.

        Args:
            tokens: Tokens of the longest row, its response included.
        """
        yield from self._servers_lacking()
        if not self.folder.is_dir():
            yield f"generation.options.folder={self.folder} is no folder. Make it where the vLLM servers see it too."
        for server in self.servers:
            try:
                with server.completions.client() as client:
                    server.response(client, SamplingOptions(1, 0, 1), [0] * (tokens - 1), 0)
                    server.reset.post(client, {})
            except (ValueError, ConnectionError) as error:
                yield str(error)

    def _servers_lacking(self) -> Iterator[str]:
        if len(self.servers) < world_size():
            yield (
                f"generation.options.urls names {len(self.servers)} vLLM servers for {world_size()} processes. Name "
                "one for each."
            )


class _Server:
    """One server.

    Args:
        url: Its address.
        folder: Where the weights are written.
        limits: Arguments of `JSONEndpoint`.
    """

    def __init__(self, url: str, folder: Path, limits: dict[str, Any]) -> None:
        address, who = url.rstrip("/"), "the vLLM server"
        self.folder = folder
        self.completions = JSONEndpoint(f"{address}/v1/completions", who, "response", **limits)
        self.rpc = JSONEndpoint(
            f"{address}/collective_rpc",
            who,
            "sign that it read the weights",
            **limits,
            remedy=f"{_START}, with the FOLDER that the policy starts from, where it sees {folder}.",
        )
        self.reset = JSONEndpoint(
            f"{address}/reset_prefix_cache", who, "sign that it dropped its cache", **limits, remedy=f"{_START}."
        )

    def push(self, client: httpx.Client, model: PreTrainedModel) -> None:
        """Give it the weights of a model."""
        with TemporaryDirectory(prefix="weights-", dir=self.folder) as folder:
            Path(folder).chmod(0o755)  # the server may be another user's
            write_weights(model, folder)
            self.rpc.post(client, {"method": "reload_weights", "kwargs": {"weights_path": folder}})
        self.reset.post(client, {})

    def response(
        self, client: httpx.Client, options: SamplingOptions, prompt: list[int], seed: int
    ) -> tuple[list[int], list[float]]:
        """Tokens of a response and their log-probabilities."""
        found = self.completions.answer(
            client,
            {
                **_WHOLE,
                "prompt": prompt,
                "max_tokens": options.max_new_tokens,
                "temperature": options.temperature,
                "seed": seed,
                "stop_token_ids": list(options.eos_token_ids),
                "ignore_eos": True,  # those alone end it
                "logprobs": 0,
                "return_token_ids": True,
                "return_tokens_as_token_ids": True,
            },
        )
        try:
            (choice,) = found["choices"]
            read, tokens = [*map(int, choice["prompt_token_ids"])], [*map(int, choice["token_ids"])]
            log_probs = [*map(float, choice["logprobs"]["token_logprobs"])]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.completions.name} answered {redacted(found)!r:.80}, without prompt_token_ids, token_ids and "
                "token_logprobs as vLLM gives them. See what is served there, by which version."
            ) from error
        ended = tokens[-1:] and tokens[-1] in options.eos_token_ids
        if read != prompt or len(tokens) != len(log_probs) or not (ended or len(tokens) == options.max_new_tokens):
            raise ValueError(
                f"{self.completions.name} answered {len(tokens)} tokens with {len(log_probs)} log-probs to a prompt of "
                f"{len(read)}; asked were {options.max_new_tokens}, or fewer up to an end token, to one of "
                f"{len(prompt)}. See its --max-model-len, and {_START}."
            )
        return tokens, log_probs
