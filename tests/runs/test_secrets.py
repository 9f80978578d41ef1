"""Secrets are found in every form, and nothing else is taken for one."""

import io
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.cli import CONFIG_DIR, composed
from rlhf_lightning.runs import secrets
from rlhf_lightning.runs.folders import begin_stage, read_stage
from rlhf_lightning.runs.guard import guard_output
from rlhf_lightning.runs.secret_forms import REDACTED, is_secret
from rlhf_lightning.runs.secrets import redacted, remember_secrets

TEXTS = {
    "ppo.reward={url: https://h/x, api_key: SECRET}": "ppo.reward={url: https://h/x, api_key: (redacted)}",
    "++judge.headers={Authorization: Bearer SECRET, x: 1}": "++judge.headers={Authorization: (redacted), x: 1}",
    "a=1,judge.apiKey=SECRET,seed=1": "a=1,judge.apiKey=(redacted),seed=1",
    "api_key=SECRET,SECRET seed=1": "api_key=(redacted) seed=1",
    "['+j.api_keys=[SECRET, b]', 'seed=1']": "['+j.api_keys=(redacted)', 'seed=1']",
    '{"token": "SE\\"CRET", "seed": 1}': '{"token": "(redacted)", "seed": 1}',
    '"{\\"token\\": \\"SECRET\\", \\"seed\\": 1}"': '"{\\"token\\": \\"(redacted)\\", \\"seed\\": 1}"',
    "{'client-secret': 'SECRET'": "{'client-secret': '(redacted)'",
    "got {'password': 'SECRE": "got {'password': (redacted)",
    "tool --api-key SECRET --seed 1 --token=SECRET": "tool --api-key (redacted) --seed 1 --token=(redacted)",
    "api_keys:\n  - SECRET\n  - b\nseed: 1\n": "api_keys: (redacted)\nseed: 1\n",
    "- token: |\n    SECRET\n    b\nseed: 1": "- token: (redacted)\nseed: 1",
    "password: a SECRET phrase\nseed: 1": "password: (redacted)\nseed: 1",
    "Cookie: a=SECRET; b=2": "Cookie: (redacted)",
    "proxy-authorization: Digest SECRET": "proxy-authorization: (redacted)",
    "is Bearer SECRET there": "is Bearer (redacted) there",
    "is Basic U0VDUkVU= there": "is Basic (redacted) there",
    "ftp://me:SECRET@host/1 and http://longSECRET@host": "ftp://me:(redacted)@host/1 and http://(redacted)@host",
    "https://me:a@SECRET@host/1?mail=a@b": "https://me:(redacted)@host/1?mail=a@b",
    "https://h/?seed=1&key=SECRET&X-Amz-Signature=SECRET#a": "https://h/?seed=1&key=(redacted)&X-Amz-Signature=(redacted)#a",
    "a ${oc.env:MY_TOKEN,SECRET} b": "a ${oc.env:MY_TOKEN,(redacted)} b",
    "api_key=${oc.env:ANY} token: ${oc.env:MY_TOKEN}": "api_key=${oc.env:ANY} token: ${oc.env:MY_TOKEN}",
    "AccountKey=SECRET==;": "AccountKey=(redacted)",
    "x -----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY----- y": "x (redacted) y",
    "https://hooks.slack.com/services/T1/B2/SECRET": "https://hooks.slack.com/services/(redacted)",
}
PLAIN = [
    "max_new_tokens=64 num_tokens: 3, token: 5",
    "eos_token: </s>, stop_token='<|im_end|>' pad_token=[PAD]",
    "key: 7, keys=[1, 2] and keyed random numbers of monkeys",
    "token: null, use_auth_token=false",
    "Basic training of a bearer token, 3 tokens per second",
    "ssh://git@github.com/a/b and http://host:8080/a?page=2&seed=1 at 12:30",
    "sk-learn-model and hf_short",
    "a[1:2] = tokenizer(text).input_ids",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_loses_its_secrets_and_nothing_else(text: str) -> None:
    assert redacted(text) == TEXTS[text]
    assert redacted([{"a": (text, 1)}]) == [{"a": (TEXTS[text], 1)}]
    assert redacted(TEXTS[text]) == TEXTS[text]
    assert "CRE" not in TEXTS[text]


@pytest.mark.parametrize("text", PLAIN)
def test_a_text_without_secrets_stays(text: str) -> None:
    assert redacted(text) == text


def test_names_say_what_is_secret() -> None:
    for name in (
        "apiKey",
        "X-Api-Key",
        "judge.accessToken",
        "APIKey",
        "hubtoken",
        "passwords",
        "api_keys",
        "auth",
        "WANDB_API_KEY",
    ):
        assert is_secret(name), name
    for name in (
        "PWD",
        "OLDPWD",
        "key",
        "keys",
        "monkeys",
        "eosToken",
        "num_tokens",
        "secretary",
        "token_path",
        "author",
        "api_key_env",
    ):
        assert not is_secret(name), name


def test_switches_and_missing_values_stay() -> None:
    plain = {
        "token": 5,
        "use_auth_token": True,
        "password": None,
        "api_key": "${oc.env:MY_KEY}",
        "secrets": [],
        "cookie": "",
    }
    assert redacted(plain) == plain
    assert redacted({"password": 1234, "api_keys": ["a"], "auth": {"a": 1}}) == dict.fromkeys(
        ("password", "api_keys", "auth"), REDACTED
    )


def test_what_was_secret_once_is_found_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_remembered", set())
    remember_secrets(
        {"judge": {"api_key": "battery/staple+1"}, "seed": 1}, "+a.password=correct horse, twice", "token=one"
    )
    for text in ("say battery/staple+1.", "?q=battery%2Fstaple%2B1.", "correct horse, twice.", "correct horse."):
        assert REDACTED in redacted(text)
        assert "staple" not in redacted(text)
        assert "horse" not in redacted(text)
    assert redacted("one battery") == "one battery"  # too short to be searched for


def test_the_directory_that_one_is_in_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/home/ann/project")
    assert redacted("/home/ann/project/a.py") == "/home/ann/project/a.py"


FRAGMENTS = [
    "token",
    "=",
    ": ",
    "'",
    '"',
    "{",
    "}",
    "[",
    "]",
    ",",
    " ",
    "abc12345",
    "--",
    "://",
    "@",
    "?",
    "&",
    "\n",
    "- ",
    "\\",
    REDACTED,
    "Bearer ",
]
FRAGMENTS += ["api_key", "${oc.env:", "Basic a1B2c3D4="]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join))
def test_twice_is_once(text: str) -> None:
    assert redacted(redacted(text)) == redacted(text)


def test_no_shipped_option_holds_what_looks_like_a_secret() -> None:
    texts = [path.read_text(encoding="utf-8") for path in CONFIG_DIR.rglob("*.yaml")]
    assert len(texts) > 40
    assert redacted(texts) == texts
    for name in (
        "experiment=demo",
        "experiment=instructgpt_1.3b",
        "experiment=real",
        "data=ultrafeedback",
        "logger=wandb",
    ):
        config: Any = composed([name, "++model.path=m"])
        assert redacted(config) == config


def test_logs_warnings_and_errors_are_guarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    before = logging.getLogRecordFactory()
    handler = logging.FileHandler(tmp_path / "log")
    logger = logging.getLogger("guarded")
    logger.addHandler(handler)
    try:
        guard_output()
        guard_output()
        sys.stderr.write("token=SECRET\n")
        sys.stderr.writelines(["password: ", "SECRET"])
        try:
            raise ValueError("no answer of http://ann:SECRET@host")
        except ValueError:
            logger.exception("with %s", {"api_key": "SECRET"})
    finally:
        logging.setLogRecordFactory(before)
        logger.removeHandler(handler)
        handler.close()
    text = shown.getvalue() + (tmp_path / "log").read_text()
    assert text.count(REDACTED) >= 4
    assert "SECRET" not in text
    assert "Traceback" in text


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """What an older redactor wrote down is no other setting."""
    begin_stage(tmp_path / "sft", {"stage": "sft", "url": "a"}, overwrite=False)
    path = tmp_path / "sft" / "stage.json"
    path.write_text(path.read_text().replace('"url": "a"', '"url": "http://ann:SECRET@host"'))
    assert (
        begin_stage(tmp_path / "sft", {"stage": "sft", "url": "http://ann:OTHER@host"}, overwrite=False) == "half-done"
    )
    assert read_stage(tmp_path / "sft")["status"] == "half-done"
