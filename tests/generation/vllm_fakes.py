"""vLLM as far as its interface is documented, with a transformers model inside: how it draws, and its server."""

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


@torch.no_grad()
def drawn(
    model: Any, prompt: list[int], seed: int, limit: int, ends: list[int], temperature: float
) -> tuple[list[int], list[float]]:
    """Tokens and their log-probabilities, after the temperature."""
    generator = torch.Generator().manual_seed(seed)
    tokens, log_probs = list[int](), list[float]()
    while len(tokens) < limit and (not tokens or tokens[-1] not in ends):
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
        steps = (logits / (temperature or 1.0)).log_softmax(-1)
        chosen = steps.exp().multinomial(1, generator=generator) if temperature else steps.argmax()
        tokens.append(int(chosen))
        log_probs.append(float(steps[tokens[-1]]))
    return tokens, log_probs


class FakeServer(ThreadingHTTPServer):
    """`vllm serve`. It remembers what it was asked, and which folder it read its weights from.

    Args:
        model: What it starts with.
    """

    daemon_threads = True

    def __init__(self, model: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.lock = copy.deepcopy(model), threading.Lock()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.keys: set[str | None] = set()
        self.statuses: dict[str, int] = {}
        """Errors, by path."""
        self.changes: dict[str, Any] = {}
        """What it says otherwise of a response."""
        self.deaf = False
        """Whether it keeps its weights whatever it is told."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def answer(self, path: str, content: dict[str, Any]) -> tuple[int, Any]:
        """Status and body; None for an empty one."""
        if path in self.statuses:
            return self.statuses[path], {"error": {"message": "refused"}}
        if path == "/reset_prefix_cache":
            return 200, None
        if path == "/collective_rpc":
            assert content.keys() == {"method", "kwargs"}
            return self.reloaded(**content["kwargs"])
        assert path == "/v1/completions"
        return self.completion(content)

    def reloaded(self, weights_path: str) -> tuple[int, Any]:
        assert Path(weights_path).is_absolute()
        assert (Path(weights_path) / "config.json").exists()
        weights = load_file(Path(weights_path) / "model.safetensors")
        own = self.model.state_dict()
        if any(own[name].shape != weight.shape for name, weight in weights.items()):
            return 500, {"error": {"message": "size mismatch"}}
        if not self.deaf:
            self.model.load_state_dict(weights, strict=False)
            self.model.tie_weights()
        return 200, {"results": [None]}

    def completion(self, content: dict[str, Any]) -> tuple[int, Any]:
        prompt, limit = content["prompt"], content["max_tokens"]
        assert content["return_token_ids"]
        assert content["ignore_eos"]
        assert (content["top_p"], content["top_k"], content["logprobs"]) == (1.0, -1, 0)
        longest = self.model.config.max_position_embeddings
        if len(prompt) + limit > longest:
            return 400, {"error": {"message": f"This model's maximum context length is {longest} tokens."}}
        tokens, log_probs = drawn(
            self.model, prompt, content["seed"], limit, content["stop_token_ids"], content["temperature"]
        )
        choice = {
            "index": 0,
            "text": "not read",
            "token_ids": tokens,
            "prompt_token_ids": prompt,
            "logprobs": {"token_logprobs": log_probs, "tokens": [f"token_id:{token}" for token in tokens]},
            **self.changes,
        }
        return 200, {"object": "text_completion", "choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"  # one connection for many requests

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, content))
            self.server.keys.add(self.headers["Authorization"])
            status, body = self.server.answer(self.path, content)
        written = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def serving(model: Any) -> Iterator[FakeServer]:
    """A server in a thread, with other weights than the model's."""
    with FakeServer(model) as server:
        for parameter in server.model.parameters():
            parameter.data *= 1.5
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
