"""A reward behind an address: prompts and responses go there as JSON, scores come back."""

import os
import time
from collections.abc import Sequence
from typing import Any

import httpx

from rlhf_lightning.algorithms.batch import PromptString
from rlhf_lightning.arguments import Count, NonNegativeInt, PositiveFloat, checked
from rlhf_lightning.generation.function_reward import messages_of
from rlhf_lightning.runs.secrets import redacted, remember_secrets

_FIRST_WAIT = 0.5
"""Seconds before the first retry; every later one waits twice as long."""


class HTTPReward:
    """Asks an HTTP endpoint for scores.

    It gets `{"prompts": [...], "responses": [...], "messages": [[...]], "fields": [{...}]}` by POST, one entry per
    response, and answers `{"scores": [...]}` or the list itself. Lost connections, timeouts and the answers 429 and 5xx
    are tried again.

    Args:
        url: The address, `http://` or `https://`.
        timeout: Seconds to wait for an answer.
        retries: How many times to try again.
        batch_size: Responses per request.
        api_key_env: Name of the environment variable with a key, sent as `Authorization: Bearer <key>`.

    Raises:
        ValueError: When the address has a password in it, or the variable is not set.
    """

    @checked
    def __init__(
        self,
        url: str,
        *,
        timeout: PositiveFloat = 60.0,
        retries: NonNegativeInt = 3,
        batch_size: Count = 64,
        api_key_env: str | None = None,
    ) -> None:
        address = httpx.URL(url)
        if address.scheme not in ("http", "https") or not address.host or address.userinfo or address.query:
            raise ValueError(
                f"the address of a reward must be http(s)://host/..., without password and query, got "
                f"{redacted(url)!r:.80}. "
                "A key belongs into an environment variable that api_key_env names."
            )
        self.name, self.timeout, self.retries, self.batch_size = url, timeout, retries, batch_size
        self.headers: dict[str, str] = {}
        if api_key_env is not None:
            if not os.environ.get(api_key_env):
                raise ValueError(f"the reward at {url} reads its key from {api_key_env}, which is not set. Export it.")
            self.headers["Authorization"] = f"Bearer {os.environ[api_key_env]}"
            remember_secrets(self.headers)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Any]:
        """What the endpoint says of each response.

        Raises:
            ValueError: When an answer has not one score per response.
            ConnectionError: When there is no answer, or one that is an error.
        """
        scores: list[Any] = []
        with httpx.Client(timeout=self.timeout, headers=self.headers) as client:
            for start in range(0, len(responses), self.batch_size):
                part = slice(start, start + self.batch_size)
                asked = list(prompts[part])
                found = self._answer(
                    client,
                    {
                        "prompts": asked,
                        "responses": list(responses[part]),
                        "messages": [messages_of(prompt) for prompt in asked],
                        "fields": [dict(prompt.fields) if isinstance(prompt, PromptString) else {} for prompt in asked],
                    },
                )
                of_part = found.get("scores") if isinstance(found, dict) else found
                if not isinstance(of_part, list) or len(of_part) != len(asked):
                    raise ValueError(
                        f"the reward at {self.name} answered {redacted(found)!r:.80} to {len(asked)} responses. It "
                        f'must answer {{"scores": [...]}} with {len(asked)} numbers.'
                    )
                scores += of_part
        return scores

    def _answer(self, client: httpx.Client, content: dict[str, Any]) -> Any:
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(_FIRST_WAIT * 2 ** (attempt - 1))
            try:
                answer = client.post(self.name, json=content)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if answer.is_success:
                try:
                    return answer.json()
                except ValueError as error:
                    raise ValueError(
                        f"the reward at {self.name} answered {redacted(answer.text)!r:.80}, no JSON."
                    ) from error
            reason = f"status {answer.status_code}: {redacted(answer.text)!r:.80}"
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS and not answer.is_server_error:
                break
        raise ConnectionError(
            f"the reward at {self.name} gave no scores after {attempt + 1} attempts ({reason}). See whether it runs "
            "and what it logs; reward.timeout and reward.retries give it more time."
        )
