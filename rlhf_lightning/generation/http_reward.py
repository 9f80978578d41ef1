"""A reward behind an address: prompts and responses go there as JSON, scores come back."""

from collections.abc import Sequence
from typing import Any

from rlhf_lightning.algorithms.batch import PromptString
from rlhf_lightning.arguments import Count, NonNegativeInt, PositiveFloat, checked
from rlhf_lightning.generation.function_reward import messages_of
from rlhf_lightning.generation.json_endpoint import JSONEndpoint
from rlhf_lightning.runs.secrets import redacted


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
        self.name, self.batch_size = url, batch_size
        self.endpoint = JSONEndpoint(
            url, "the reward", "scores", timeout=timeout, retries=retries, api_key_env=api_key_env
        )

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Any]:
        """What the endpoint says of each response.

        Raises:
            ValueError: When an answer has not one score per response.
            ConnectionError: When there is no answer, or one that is an error.
        """
        scores: list[Any] = []
        with self.endpoint.client() as client:
            for start in range(0, len(responses), self.batch_size):
                part = slice(start, start + self.batch_size)
                asked = list(prompts[part])
                found = self.endpoint.answer(
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
