"""An address that is asked by POST with JSON, and answers with JSON."""

import os
import time
from typing import Any

import httpx

from rlhf_lightning.runs.secret_forms import is_secret_in_query
from rlhf_lightning.runs.secrets import redacted, remember_secrets

_FIRST_WAIT = 0.5
"""Seconds before the first retry; every later one waits twice as long."""


class JSONEndpoint:
    """An HTTP endpoint. Lost connections, timeouts and the answers 429 and 5xx are tried again.

    Args:
        url: The address, `http://` or `https://`.
        who: What errors call it, such as `the reward`.
        gives: What it gives, in errors.
        timeout: Seconds to wait for an answer.
        retries: How many times to try again.
        api_key_env: Name of the environment variable with a key, sent as `Authorization: Bearer <key>`.
        remedy: What errors advise besides.

    Raises:
        ValueError: When the address has a password in it, or the variable is not set.
    """

    def __init__(
        self,
        url: str,
        who: str,
        gives: str,
        *,
        timeout: float,
        retries: int,
        api_key_env: str | None,
        remedy: str = "timeout and retries of its setting give it more time.",
    ) -> None:
        address = httpx.URL(url)
        keyed = address.userinfo or any(map(is_secret_in_query, address.params))
        if address.scheme not in ("http", "https") or not address.host or keyed:
            raise ValueError(
                f"the address of {who} must be http(s)://host/..., without password and key, got "
                f"{redacted(url)!r:.80}. A key belongs into an environment variable that api_key_env names."
            )
        self.url, self.name, self.gives = url, f"{who} at {url}", gives
        self.timeout, self.retries, self.remedy = timeout, retries, remedy
        self.headers: dict[str, str] = {}
        if api_key_env is not None:
            if not os.environ.get(api_key_env):
                raise ValueError(f"{self.name} reads its key from {api_key_env}, which is not set. Export it.")
            self.headers["Authorization"] = f"Bearer {os.environ[api_key_env]}"
            remember_secrets(self.headers)

    def client(self) -> httpx.Client:
        """A connection that is kept open; threads may share it."""
        return httpx.Client(timeout=self.timeout, headers=self.headers)

    def answer(self, client: httpx.Client, content: dict[str, Any]) -> Any:
        """What it answers to a question.

        Raises:
            ValueError: When the answer is no JSON.
            ConnectionError: When there is no answer, or one that is an error.
        """
        answer = self.post(client, content)
        try:
            return answer.json()
        except ValueError as error:
            raise ValueError(f"{self.name} answered {redacted(answer.text)!r:.80}, no JSON.") from error

    def post(self, client: httpx.Client, content: dict[str, Any]) -> httpx.Response:
        """The same, of any type.

        Raises:
            ConnectionError: When there is no answer, or one that is an error.
        """
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(_FIRST_WAIT * 2 ** (attempt - 1))
            try:
                answer = client.post(self.url, json=content)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if answer.is_success:
                return answer
            reason = f"status {answer.status_code}: {redacted(answer.text)!r:.80}"
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS and not answer.is_server_error:
                break
        refused = reason.startswith(("status 401", "status 403"))
        key = "a key belongs into the environment variable that api_key_env of its setting names."
        raise ConnectionError(
            f"{self.name} gave no {self.gives} after {attempt + 1} attempts ({reason}). See whether it runs and what "
            f"it logs; {key if refused else self.remedy}"
        )
