"""Nothing reaches for the network unless an id of the hub is named: a mistyped path is refused before it is asked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.runs.hub import here_or_hub_id, is_hub_id

PACKAGE = Path(__file__).parents[2]
MISTYPED = [
    "/nonexistent/folder",
    "./missing",
    "../missing",
    "~/models/missing",
    "runs/demo/sft/model",
    "here/missing",
    "here/",
    "missing.safetensors",
    "owner/tokenizer.json",
    "a name with spaces",
    "",
]


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """A working directory with one folder, `here`, and one model in it, `here/model`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "Qwen/Qwen2.5-0.5B", "CohereForAI/aya_dataset"])
def test_an_id_may_be_asked_for(name):
    assert is_hub_id(name)
    assert here_or_hub_id(name) == name


@pytest.mark.parametrize("path", MISTYPED)
def test_what_looks_like_a_path_is_none(path):
    assert not is_hub_id(path)


@pytest.mark.parametrize("path", [path for path in MISTYPED if path not in ("here/", "")])
def test_a_missing_path_is_one_sentence(path):
    with pytest.raises(FileNotFoundError) as error:
        here_or_hub_id(path)
    assert str(error.value).startswith(f"there is no file or folder {path} here, and it looks like a path")
    assert "Mend the path" in str(error.value)


@pytest.mark.parametrize("path", ["here", "here/", "here/model", "./here/model"])
def test_what_is_there_is_no_id(path):
    assert not is_hub_id(path)
    assert here_or_hub_id(path) == path


ASK = """
import contextlib, json, sys, time
connections = []
def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        connections.append(event)
        raise OSError("no sockets here")
sys.addaudithook(watch)
from huggingface_hub import HfApi
from rlhf_lightning.data.rows.files import read_rows
from rlhf_lightning.generation.text_reward import TextReward
from rlhf_lightning.models.loading import load_causal_lm, model_config
from rlhf_lightning.tokenization.loading import load_tokenizer
from rlhf_lightning.models.scalar_head import load_scalar_model

MODELS = [load_causal_lm, model_config, load_tokenizer, load_scalar_model, TextReward]
LOADERS = [*MODELS, lambda path: list(read_rows(path, "train"))]
load_tokenizer("sandbox/small"), load_causal_lm("sandbox/small")  # what is on this machine needs no network either
answers = []
for path in json.loads(sys.argv[1]):
    for load in LOADERS if not path.startswith("sandbox/") else MODELS:
        start = time.perf_counter()
        try:
            load(path)
        except Exception as error:
            answers.append([path, str(error), time.perf_counter() - start])
        else:
            answers.append([path, "loaded", 0.0])
refused = len(connections)
with contextlib.suppress(Exception):
    HfApi().model_info("nobody/nothing")
print(json.dumps({"answers": answers, "connections": refused, "asked": len(connections) - refused}))
"""


def test_no_loader_asks_the_hub_for_a_mistyped_path(tmp_path):
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    environment |= {"PYTHONPATH": str(PACKAGE), "HF_HOME": str(tmp_path / "cache")}
    paths = [path for path in MISTYPED if path not in ("here/", "")] + ["sandbox/huge"]
    command = [sys.executable, "-W", "ignore", "-c", ASK, json.dumps(paths)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["connections"] == 0
    assert seen["asked"] > 0, "the guard would not have seen a connection"
    assert len(seen["answers"]) == 6 * len(paths) - 1
    for path, message, seconds in seen["answers"]:
        sentence = f"the sandbox has no model '{path}'" if path == "sandbox/huge" else f"file or folder {path} here"
        assert sentence in message
        assert seconds < 1.0, path
