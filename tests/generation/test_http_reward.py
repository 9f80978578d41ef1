"""A reward behind an address, against a server in a thread."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from rlhf_lightning.algorithms.batch import PromptString
from rlhf_lightning.generation import json_endpoint
from rlhf_lightning.generation.http_reward import HTTPReward


class Server(HTTPServer):
    """Answers with the number of words of each response, after the statuses in ``failures``."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.failures, self.asked, self.answer = [], [], None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/score"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({**content, "headers": dict(self.headers), "path": self.path})
        status = self.server.failures.pop(0) if self.server.failures else 200
        scores = {"scores": [len(text.split()) for text in content["responses"]]}
        body = json.dumps(scores if self.server.answer is None else self.server.answer).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(json_endpoint, "_FIRST_WAIT", 0.001)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


PROMPTS = [PromptString("p", [{"role": "user", "content": "p"}], {"answer": "x"}), "q", "r"]
RESPONSES = ["a", "a b", "a b c"]


def test_batches_go_there_and_scores_come_back(server, monkeypatch):
    monkeypatch.setenv("SCORER_KEY", "sesame")
    reward = HTTPReward(server.url, batch_size=2, api_key_env="SCORER_KEY")
    assert reward(PROMPTS, RESPONSES) == [1, 2, 3]
    first, second = server.asked
    assert (first["prompts"], first["responses"]) == (["p", "q"], ["a", "a b"])
    assert first["messages"] == [[{"role": "user", "content": text}] for text in "pq"]
    assert first["fields"] == [{"answer": "x"}, {}]
    assert second["responses"] == ["a b c"]
    assert first["headers"]["Authorization"] == "Bearer sesame"
    assert HTTPReward(f"{server.url}?api-version=2")(["p"], ["a b"]) == [2]
    assert server.asked[-1]["path"] == "/score?api-version=2"
    server.answer = [0.5, 1.5, 2.5]
    assert HTTPReward(server.url)(PROMPTS, RESPONSES) == [0.5, 1.5, 2.5]
    assert reward([], []) == []


def test_what_may_pass_is_tried_again(server):
    server.failures = [500, 429, 503]
    assert HTTPReward(server.url)(PROMPTS, RESPONSES) == [1, 2, 3]
    assert len(server.asked) == 4
    server.failures = [500] * 3
    with pytest.raises(ConnectionError, match=r"gave no scores after 2 attempts \(status 500"):
        HTTPReward(server.url, retries=1)(PROMPTS, RESPONSES)
    assert len(server.asked) == 6


def test_what_will_not_pass_is_not(server):
    server.failures = [404]
    with pytest.raises(ConnectionError, match=r"after 1 attempts \(status 404"):
        HTTPReward(server.url)(PROMPTS, RESPONSES)
    nobody = f"http://127.0.0.1:{server.server_port + 1 if server.server_port < 65535 else 1}/"
    with pytest.raises(ConnectionError, match=r"after 3 attempts \(ConnectError"):
        HTTPReward(nobody, retries=2, timeout=5)(PROMPTS, RESPONSES)


@pytest.mark.parametrize("answer", [{"score": 1}, [1.0], {"scores": [1.0] * 4}, "no", 1])
def test_another_number_of_scores_is_refused(server, answer):
    server.answer = answer
    with pytest.raises(ValueError, match=r"to 3 responses. It must answer \{\"scores\""):
        HTTPReward(server.url)(PROMPTS, RESPONSES)


def test_settings_that_cannot_work_are_refused():
    for url in (
        "ftp://x/",
        "http://",
        "https://me:word@host/",
        "http://host/?key=word",
        "http://host/?v=1&api-key=word",
    ):
        with pytest.raises(ValueError, match="without password and key"):
            HTTPReward(url)
    for name, value in (("timeout", 0), ("retries", -1), ("batch_size", 0)):
        with pytest.raises(ValueError, match=rf"^{name} must be a (whole )?number (above|of at least) \d"):
            HTTPReward("http://x/", **{name: value})
    with pytest.raises(ValueError, match="reads its key from NO_SUCH_KEY, which is not set"):
        HTTPReward("http://x/", api_key_env="NO_SUCH_KEY")
