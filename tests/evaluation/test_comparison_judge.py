"""Judges that compare, and a chat model behind an address, against a server in a thread."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlhf_lightning.evaluation import comparison_judge
from rlhf_lightning.evaluation.comparison_judge import compares, pair_verdicts
from rlhf_lightning.evaluation.endpoint_judge import EndpointJudge
from rlhf_lightning.generation import json_endpoint
from rlhf_lightning.generation.http_reward import HTTPReward


def longer(prompt, response_a, response_b):
    return 0.5 + 0.5 * ((len(response_a) > len(response_b)) - (len(response_a) < len(response_b)))


def verdict(text):
    """The longer one of the two that are shown."""
    first, second = text.split("[Response 1]\n")[1].split("\n\n[End")[0].split("\n\n[Response 2]\n")
    return "tie" if len(first) == len(second) else "1" if len(first) > len(second) else "2"


class Server(ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.failures, self.says, self.answer = [], [], lambda text: f"Well.\n\n{verdict(text)}", None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1/chat/completions"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({**content, "key": self.headers["Authorization"]})
        status = self.server.failures.pop(0) if self.server.failures else 200
        said = {"choices": [{"message": {"content": self.server.says(content["messages"][-1]["content"])}}]}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(said if self.server.answer is None else self.server.answer).encode())

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(json_endpoint, "_FIRST_WAIT", 0.001)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_who_compares_is_known_by_its_parameters(server):
    assert all(map(compares, (longer, EndpointJudge, EndpointJudge(server.url, "m"))))
    assert not any(map(compares, (HTTPReward, HTTPReward(server.url), len, dict, lambda prompts, responses: [])))


def test_a_text_that_stands_there_twice_is_a_tie_that_nobody_is_asked_about(monkeypatch):
    monkeypatch.setattr(comparison_judge, "BATCH", 2)
    asked = []

    def judge(prompt, response_a, response_b):
        asked.append(prompt)
        return None if prompt == "r" else 1

    assert [*pair_verdicts(judge, "pqr", ["a", "b", "c"], ["a", "d", "e"])] == [[0.5, 1.0], [None]]
    assert asked == ["q", "r"]
    with pytest.raises(ValueError, match=r"test_comparison_judge.*must say 1, 0.5 or 0 of two responses, got 2"):
        next(pair_verdicts(lambda prompt, response_a, response_b: 2, "p", ["a"], ["b"]))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_what_was_said_before_an_error_is_kept_and_nobody_is_asked_after_it(concurrency):
    asked = []

    def judge(prompt, response_a, response_b):
        asked.append(prompt)
        if prompt == "p20":
            raise ConnectionError("no answer")
        time.sleep(0.01)
        return 1

    judge.concurrency = concurrency
    prompts = [f"p{number}" for number in range(60)]
    verdicts = pair_verdicts(judge, prompts, ["a"] * 60, ["b"] * 60)
    assert next(verdicts) == [1.0] * 20
    with pytest.raises(ConnectionError, match="no answer"):
        next(verdicts)
    assert len(asked) < 30


def test_the_judge_says_which_response_is_better_whatever_comes_first(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sesame-of-the-judge")
    judge = EndpointJudge(server.url, "gpt", api_key_env="JUDGE_KEY")
    texts = [("aa", "b"), ("a", "bbb"), ("a", "b")] * 8
    prompts = [f"prompt {number}" for number in range(len(texts))]
    (found,) = pair_verdicts(judge, prompts, *zip(*texts, strict=True))
    assert found == [1.0, 0.0, 0.5] * 8
    question = {each["messages"][1]["content"] for each in server.asked}
    firsts = [text.split("[Response 1]\n")[1].split("\n")[0] for text in question]
    assert 6 < sum("a" in first for first in firsts) < 18, "either response comes first"
    assert {each["key"] for each in server.asked} == {"Bearer sesame-of-the-judge"}
    assert server.asked[0].keys() == {"model", "temperature", "max_tokens", "messages", "key"}
    assert "user: prompt 0\n" in min(question)


def test_a_judge_that_looks_at_the_place_prefers_nothing_in_both_orders(server):
    server.says = lambda text: "**1**"
    judge = EndpointJudge(server.url, "gpt")
    said = [judge(f"p{number}", "a", "b") for number in range(40)]
    assert 8 < sum(said) < 32
    assert said == [1 - judge(f"p{number}", "b", "a") for number in range(40)]
    assert [EndpointJudge(server.url, "gpt", seed=1)(f"p{n}", "a", "b") for n in range(40)] != said
    server.asked.clear()
    assert [EndpointJudge(server.url, "gpt", both_orders=True)(f"p{n}", "a", "b") for n in range(4)] == [0.5] * 4
    assert len(server.asked) == 8
    server.says = verdict
    assert EndpointJudge(server.url, "gpt", both_orders=True)("p", "a", "bb") == 0.0


@pytest.mark.parametrize("answer", ["I cannot tell.", "", None, "1 or 2", "3", "1\nI think"])
def test_an_answer_without_a_verdict_is_none(server, answer):
    server.says = lambda text: answer
    assert EndpointJudge(server.url, "gpt")("p", "a", "b") is None
    assert EndpointJudge(server.url, "gpt", both_orders=True)("p", "a", "b") is None


@pytest.mark.parametrize(("answer", "expected"), [("Verdict: Tie.", 0.5), ("because\n  response 1 ", 1.0), ("2", 0.0)])
def test_verdicts_may_be_dressed(server, answer, expected):
    server.says = lambda text: answer
    said = EndpointJudge(server.url, "gpt")
    assert said("p", "a", "b") in (expected, 1 - expected)
    assert said("p", "a", "b") + said("p", "b", "a") == 1.0


def test_what_may_pass_is_tried_again_and_what_is_no_completion_is_refused(server, monkeypatch):
    server.failures = [503, 429]
    assert EndpointJudge(server.url, "gpt")("p", "aa", "b") == 1.0
    server.failures = [500] * 2
    with pytest.raises(ConnectionError, match=r"the judge at .* gave no answer after 2 attempts \(status 500"):
        EndpointJudge(server.url, "gpt", retries=1)("p", "aa", "b")
    monkeypatch.setenv("JUDGE_KEY", "sesame-of-the-judge")
    server.answer = {"error": "Bearer sesame-of-the-judge"}
    with pytest.raises(ValueError, match=r"no chat completion\. The url must be that of the completions") as error:
        EndpointJudge(server.url, "gpt", api_key_env="JUDGE_KEY")("p", "aa", "b")
    assert "sesame" not in str(error.value)
    with pytest.raises(ValueError, match=r"the judge at .* reads its key from NO_KEY, which is not set"):
        EndpointJudge(server.url, "gpt", api_key_env="NO_KEY")
