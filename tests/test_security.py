"""What a configuration, a model, a checkpoint or a record cannot do; what never leaves the machine or gets written."""

import ast
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.types import RunMode
from hydra.utils import get_object
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from packaging.version import Version

from rlhf_lightning.cli import composed, main
from rlhf_lightning.cli.sweep import runs_of
from rlhf_lightning.evaluation.tables import sample_table
from rlhf_lightning.generation.text_reward import TextReward
from rlhf_lightning.models.export import export_causal_lm
from rlhf_lightning.models.loading import load_causal_lm
from rlhf_lightning.models.scalar_head import load_scalar_model
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.recipe.legend import legend_of
from rlhf_lightning.recipe.pipeline import RECIPE, Pipeline
from rlhf_lightning.runs.folders import PipelineError, Runs, begin_stage, read_stage
from rlhf_lightning.runs.secrets import REDACTED, redacted
from rlhf_lightning.runs.targets import FACTORIES, builder
from rlhf_lightning.tokenization.loading import load_tokenizer
from rlhf_lightning.training.checkpoint import newest_whole

REPOSITORY = Path(__file__).parents[1]
IN_THE_CONFIG, IN_THE_ENVIRONMENT = "correct-horse-battery", "staple-and-nothing-else"


class Bomb:
    """Runs a command when it is unpickled by anyone who lets it."""

    def __init__(self, canary: Path) -> None:
        self.command = f"touch {canary}"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


# Sockets


CLOSED = """
import json, sys
opened = []
def watch(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        opened.append(event)
        raise OSError(f"no sockets here: {event}")
sys.addaudithook(watch)
import socket
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError:
    pass
assert opened == ["socket.getaddrinfo"], "the watch must see what it is for"
opened.clear()
from rlhf_lightning.cli import main
main()
assert opened == [], opened
print("closed to the end")
"""
TINY_RUN = [
    "stages=[sft,collect,reward,ppo,evaluate]",
    *("run=sealed", "debug=fast", "model.size=small", "sft.fit.epochs=1", "ppo.data.batch_size=8", "evaluate=default"),
    *("evaluate.policies=[base,sft,ppo]", "data.source.prompts=40", "data.source.demonstrations=40"),
    *("data.source.text=20", "data.source.validation=16", "reward.folds=labeler"),
]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The recipe on the sealed world in a process whose sockets are closed, with secrets about; its runs and output."""
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "watched.py").write_text(CLOSED, encoding="utf-8")
    # Nor does it need to be told that it is offline.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment |= {"HUB_API_KEY": IN_THE_ENVIRONMENT, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}
    command = [sys.executable, "-W", "ignore", str(folder / "watched.py"), f"paths.runs={folder / 'runs'}", *TINY_RUN]
    command += [f"curate.evaluation=[{{path: x, token: {IN_THE_CONFIG}}}]"]
    command += ["tags=['key ${oc.env:HUB_API_KEY} of the hub']"]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return folder, result.stdout


def test_a_run_opens_no_socket(sealed: tuple[Path, str]) -> None:
    _, shown = sealed
    assert shown.endswith("closed to the end\n")
    assert all(f"{stage} " in shown for stage in ("sft", "collect", "reward", "ppo", "evaluate", "report"))


def test_a_run_writes_below_its_folder_alone(sealed: tuple[Path, str]) -> None:
    folder, _ = sealed
    assert {path.name for path in folder.iterdir()} == {"runs", "watched.py"}
    assert {path.name for path in (folder / "runs").iterdir()} == {"sealed"}


def test_a_run_writes_no_secret_down(sealed: tuple[Path, str]) -> None:
    folder, shown = sealed
    files = [path for path in (folder / "runs").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"stage.json", "config.yaml", "index.html", "results.json", "last.ckpt"}
    secrets = (IN_THE_CONFIG.encode(), IN_THE_ENVIRONMENT.encode())
    assert [path for path in files if any(secret in path.read_bytes() for secret in secrets)] == []
    assert all(secret.decode() not in shown for secret in secrets)
    written = yaml.safe_load((folder / "runs" / "sealed" / "reward" / "config.yaml").read_text(encoding="utf-8"))
    assert written["tags"] == [f"key {REDACTED} of the hub"]
    assert written["curate"]["evaluation"] == [{"path": "x", "token": REDACTED}]


# What a configuration names


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.os.system",
        "torch.nn.parallel.distributed.os.system",
        "lightning.pytorch.trainer.trainer.os.system",
        "builtins.eval",
        "subprocess.run",
        "torch.utils.collect_env.run",  # a function of torch's own that hands a text to the shell
        "torch.hub.load",
        "torch.load",
        "rlhf_lightning.parallel.sharding.call_unsharded",  # a function of ours that calls what it is given
        "rlhf_lightning.cli.command.builder",
        "rlhf_lightning.runs.targets.importlib.import_module",
        "rlhf_lightning.models.scalar_head.ScalarHeadModel.from_causal_lm",
        "rlhf_lightning.runs.identity.subprocess.Popen",
        "torch.nn.Module.__call__",
        "lightning.pytorch.cli.LightningCLI",
    ],
)
def test_a_target_that_is_not_allowed_does_nothing_however_deep(target: str, canary: Path) -> None:
    bad = {"_target_": target, "_args_": [f"touch {canary}"]}
    node = {"_target_": "torch.nn.Identity", "a": [{"b": {"_target_": "torch.nn.Identity", "c": [1, {"d": bad}]}}]}
    for tried in (bad, node, {**node, "_partial_": True}):
        with pytest.raises(PipelineError, match=f"_target_ {re.escape(target)} is neither .*allowed_targets"):
            builder([])(tried)
    assert not canary.exists()


def shell(canary: Path, place: str = "torch.utils.collect_env.run") -> dict[str, Any]:
    return {"_target_": place, "_args_": [f"touch {canary}"]}


def test_a_call_of_what_is_built_from_pairs_does_nothing(canary: Path) -> None:
    pairs = [["_target_", "torch.utils.collect_env.run"], ["_args_", [f"touch {canary}"]]]
    inner = {"_target_": "rlhf_lightning.cli.command.builder", "more_targets": ["torch"]}
    node = {"_target_": "rlhf_lightning.parallel.sharding.call_unsharded", "_args_": [inner, pairs]}
    with pytest.raises(PipelineError, match="allowed_targets"):
        builder([])(node)
    for other in (pairs, tuple(map(tuple, pairs)), "os.system", None, {"a": 1}):
        with pytest.raises(PipelineError, match="a mapping with _target_"):
            builder(["torch"])(other)
    assert not canary.exists()


@pytest.mark.parametrize("kind", [list, tuple, lambda values: {"deep": [tuple(values)]}])
def test_a_target_in_any_sequence_is_seen(kind: Any, canary: Path) -> None:
    node = {"_target_": "torch.nn.Identity", "a": kind([1, ("x", shell(canary))])}
    with pytest.raises(PipelineError, match="allowed_targets"):
        builder([])(node)
    assert not canary.exists()


def test_what_runs_a_command_would_run_it_where_it_is_allowed(canary: Path) -> None:
    """Or else the tests around this one could not fail."""
    builder(["torch"])({"_target_": "torch.nn.Identity", "a": (shell(canary),)})
    assert canary.exists()


def test_nothing_is_built_before_all_is_checked(canary: Path) -> None:
    node = {"_target_": "torch.nn.Identity", "a": shell(canary), "b": {"_target_": "os.system", "_args_": ["true"]}}
    with pytest.raises(PipelineError, match=r"os\.system"):
        builder(["torch"])(node)
    assert not canary.exists()


def test_every_factory_is_a_function_and_none_is_missing() -> None:
    """Each function that an option of the configuration names is listed, and the list has no others."""
    named = set()
    for path in (REPOSITORY / "conf").rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"_target_: ((?:rlhf_lightning|transformers)\.[\w.]+)", text))
    found = [get_object(name) for name in named]
    functions = {f"{one.__module__}.{one.__qualname__}" for one in found if not isinstance(one, type)}
    assert functions <= set(FACTORIES)
    others = {name for name in set(FACTORIES) - functions if not name.startswith("transformers.optimization.get_")}
    assert others == {"rlhf_lightning.models.scalar_head.load_scalar_model"}
    assert all(callable(get_object(name)) for name in FACTORIES)


@pytest.mark.parametrize(
    "overrides",
    [
        ["+hydra.callbacks.x={_target_: torch.utils.collect_env.run, _args_: [touch CANARY]}"],
        ["+hydra.callbacks.x={_target_: os.system, command: touch CANARY}"],
        ["+hydra.callbacks.x={_target_: hydra.utils.call, config: {_target_: os.system, command: touch CANARY}}"],
        ["+hydra.callbacks.x={_target_: rlhf_lightning.parallel.sharding.call, _args_: [touch CANARY]}"],
        ["+a={_target_: torch.utils.collect_env.run, _args_: [touch CANARY]}", "+hydra.callbacks.x=${a}"],
        ["+a=torch.utils.collect_env.run", "+hydra.callbacks.x={_target_: '${a}', _args_: [touch CANARY]}"],
        ["experiment=evil", "--config-dir=EVIL"],
        ["experiment=evil,null", "--config-dir=EVIL", "-m"],
        ["hydra/job_logging=default", "hydra.job_logging.handlers.console.stream=ext://os.environ"],
        ["hydra/hydra_logging=default", "+hydra.hydra_logging.handlers.x={class: subprocess.Popen, args: [touch]}"],
        ["seed=1,2", "+hydra.callbacks.x={_target_: torch.utils.collect_env.run, _args_: [touch CANARY]}", "-m"],
    ],
)
def test_hydra_builds_nothing_that_is_not_allowed(
    overrides: list[str],
    canary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    handler = {"version": 1, "handlers": {"x": {"()": "torch.utils.collect_env.run", "command": f"touch {canary}"}}}
    evil = tmp_path / "groups" / "experiment" / "evil.yaml"
    evil.parent.mkdir(parents=True)
    evil.write_text("# @package _global_\n" + json.dumps({"hydra": {"job_logging": handler}}), encoding="utf-8")
    given = [text.replace("CANARY", str(canary)).replace("EVIL", str(tmp_path / "groups")) for text in overrides]
    monkeypatch.setattr(sys, "argv", ["rlhf", f"paths.runs={tmp_path / 'runs'}", "stages=[pretrain]", *given])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert re.search("the node hydra names .*allowed_targets|cannot be found", capfd.readouterr().err)
    assert not canary.exists()


@pytest.mark.parametrize("overrides", [[], ["hydra/job_logging=default"], ["hydra/hydra_logging=default"]])
def test_what_hydra_brings_is_allowed(overrides: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["rlhf", f"paths.runs={tmp_path / 'runs'}", "stages=[pretrain]", *overrides])
    main()


def test_a_pickled_job_is_not_run_again(monkeypatch: pytest.MonkeyPatch, canary: Path) -> None:
    canary.with_suffix(".pickle").write_bytes(pickle.dumps(Bomb(canary)))
    for flag in ("--experimental-rerun", "--exp"):
        monkeypatch.setattr(sys, "argv", ["rlhf", flag, str(canary.with_suffix(".pickle"))])
        with pytest.raises(SystemExit, match="reads a pickle"):
            main()
    assert not canary.exists()


def test_a_target_that_is_not_there_is_named() -> None:
    with pytest.raises(PipelineError, match="needs p: the configuration has"):
        builder([])({"_target_": "torch.nn.Dropout", "p": "???"})
    with pytest.raises(PipelineError, match=r"_target_ torch\.nn\.Identty cannot be found: .* Check how it is spelled"):
        builder([])({"_target_": "torch.nn.Identty"})


@pytest.mark.parametrize("target", ["os.system", "torch.utils.collect_env.run"])
def test_a_target_inside_a_text_does_nothing(target: str, canary: Path) -> None:
    hidden = f"${{oc.decode:'{{_target_: {target}, _args_: [touch {canary}]}}'}}"
    kept = builder([])({"_target_": "torch.nn.Identity", "a": hidden, "_partial_": True})
    assert kept.keywords == {"a": hidden}
    with pytest.raises(PipelineError, match="allowed_targets"):
        builder([])({"_target_": f"${{oc.decode:{target}}}", "_args_": [f"touch {canary}"]})
    assert not canary.exists()


def test_a_whole_configuration_with_such_a_target_is_a_sentence(tmp_path: Path, canary: Path) -> None:
    config = composed([f"paths.runs={tmp_path / 'runs'}", "stages=[sft]", "model.size=small", "debug=fast"])
    config["sft"]["module"]["optimizer"] = {"_target_": "os.system", "_args_": [f"touch {canary}"], "_partial_": False}
    with pytest.raises(PipelineError, match=r"os\.system is neither"):
        Pipeline(config, builder([]), Runs(tmp_path / "runs", "bad")).run()
    assert not canary.exists()


def test_users_can_allow_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text("def brevity(weight):\n    return weight * 2\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "my_rewards.brevity", "weight": 21}
    with pytest.raises(PipelineError, match="add its package to allowed_targets"):
        builder([])(node)
    with pytest.raises(PipelineError, match="allowed_targets"):
        builder(["my_reward"])(node)  # a part of a name is no package
    assert builder(["my_rewards"])(node) == 42
    assert builder(["torch.utils.collect_env"])({"_target_": "torch.utils.collect_env.get_python_platform"})


# Pickles and code that comes with models


def test_a_checkpoint_with_a_command_is_skipped(tmp_path: Path, canary: Path, tiny_gpt2: Any) -> None:
    module = LanguageModelModule(tiny_gpt2, torch.optim.SGD)
    torch.save({"state_dict": module.state_dict(), "epoch": Bomb(canary)}, tmp_path / "last.ckpt")
    (tmp_path / "previous.ckpt").write_bytes(pickle.dumps(Bomb(canary)))
    said: list[str] = []
    assert newest_whole(tmp_path, module, said.append) is None
    assert [f"{name}.ckpt is skipped" in line for name, line in zip(("last", "previous"), said, strict=True)]
    assert not canary.exists()
    torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert canary.exists(), "the bomb must be one"


LOADERS = {"causal": load_causal_lm, "scalar": load_scalar_model, "text": TextReward}


@pytest.mark.parametrize("kind", LOADERS)
def test_pickled_weights_are_not_read(
    kind: str, tmp_path: Path, canary: Path, tiny_gpt2: Any, tiny_tokenizer: Any
) -> None:
    folder = tmp_path / "model"
    export_causal_lm(tiny_gpt2, tiny_tokenizer, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(canary)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors, and a pickle is not read"):
        LOADERS[kind](str(folder))
    assert not canary.exists()


@pytest.mark.parametrize("kind", [*LOADERS, "tokenizer"])
def test_code_of_a_model_does_not_run(
    kind: str, tmp_path: Path, canary: Path, tiny_gpt2: Any, tiny_tokenizer: Any
) -> None:
    folder = tmp_path / "model"
    export_causal_lm(tiny_gpt2, tiny_tokenizer, folder)
    (folder / "bad.py").write_text(f"import os\nos.system('touch {canary}')\n", encoding="utf-8")
    places = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    _edit(folder / "config.json", auto_map={place: "bad.Bad" for place in places}, model_type="bad")
    _edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["bad.Bad", None]}, tokenizer_class="Bad")
    with pytest.raises(ValueError, match="trust_remote_code"):
        ({**LOADERS, "tokenizer": load_tokenizer}[kind])(str(folder))
    assert not canary.exists()


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_no_option_trusts_code_and_no_code_unpickles() -> None:
    options = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "conf").rglob("*.yaml")]
    assert [line for text in options for line in text.splitlines() if re.search("trust_remote_code: *true", line)] == []
    seen = 0
    for path in (REPOSITORY / "rlhf_lightning").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system"), path
                assert given.get("shell", "False") == "False", path
                if name in ("torch.load", "trainer.fit"):
                    seen += 1
                    assert given["weights_only"] == "True", path
    assert seen >= 3


# Names that become paths


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/tmp/x", "..", ".", ""])
def test_a_run_stays_below_the_folder_ofruns_of(name: str, tmp_path: Path) -> None:
    for names in ((name, ()), ("good", (name,)), ("good", ("fine", name))):
        with pytest.raises(PipelineError, match=r"names of folders below paths\.runs .*got '"):
            Runs(tmp_path, *names)
    assert Runs(tmp_path, "group/run.1").folder("sft") == tmp_path / "group" / "run.1" / "sft"


@pytest.mark.parametrize("override", ["run=../../x", "upstream=../..", "upstream=[fine,/etc]"])
def test_the_command_line_refuses_such_names(override: str) -> None:
    with pytest.raises(PipelineError, match="names of folders below"):
        runs_of(composed([override]), None)


def job(dirname: str, folder: Path) -> Any:
    return OmegaConf.create(
        {
            "hydra": {
                "mode": RunMode.MULTIRUN,
                "sweep": {"dir": str(folder)},
                "job": {"override_dirname": dirname, "num": 0},
            }
        }
    )


def test_overrides_of_a_sweep_make_one_folder_without_secrets(tmp_path: Path) -> None:
    config = {"run": "sweep", "upstream": None, "paths": {"runs": str(tmp_path)}}
    runs = runs_of(config, job("model.path=../../../etc,judge.api_key=correct-horse,seed=1", tmp_path))
    assert re.fullmatch(r"sweep\.model\.path=(\.\._){3}etc,judge\.api_key=_redacted_,seed=1-[0-9a-f]{8}", runs.run)
    other = runs_of(config, job("model.path=.._.._../etc,judge.api_key=correct-horse,seed=1", tmp_path))
    assert other.run != runs.run  # which differ in a slash only
    assert (tmp_path / runs.run).resolve().parent == tmp_path.resolve()


def test_fields_of_records_are_text_and_nothing_else(tmp_path: Path) -> None:
    """Sources and labelers that look like paths, markup and markers: no file is named after them, nothing breaks."""
    hostile = ["../../../evil", "/etc/passwd", "[/INST] [bold]x", "a\x00b", "team\nx", "{prompt}"]
    rows = [
        {"prompt": f"[/INST] {name} <b>", "completions": ["the cat .", "go [/x]"], "ranks": [1, 2]}
        | {"source": name, "labeler": name}
        for name in hostile * 3
    ]
    told = [{"prompt": "[/INST] hello", "response": "[/x] go", "user": name, "source": name} for name in hostile]
    (tmp_path / "data").mkdir()
    for name, lines in (("comparisons", rows), ("demonstrations", told)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "data" / "bad.jsonl").write_text('{"prompt": "p", "response": "[/INST]", "source": ["/x"]}\n')
    overrides = ["data=jsonl", f"data.root={tmp_path / 'data'}", "stages=[reward]", "reward.init=base", "debug=fast"]
    overrides += [
        "model.size=small",
        "reward.folds=source",
        "data.lengths.block_size=64",
        f"paths.runs={tmp_path / 'r'}",
    ]
    overrides += ["data.lengths.max_prompt_tokens=64", "data.lengths.max_response_tokens=32"]
    config = composed(overrides)
    config["data"]["source"]["files"] = {
        "comparisons": dict.fromkeys(("train", "validation"), "comparisons.jsonl"),
        "demonstrations": {"train": "demonstrations.jsonl"},
    }
    Pipeline(config, builder([]), Runs(tmp_path / "r", "run")).run()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "r"}
    assert {path.name for path in (tmp_path / "r").iterdir()} == {"run"}
    metrics = read_stage(tmp_path / "r" / "run" / "reward")["metrics"]
    assert set(hostile) <= set(metrics["validation"])
    names = {path.name for path in (tmp_path / "r").rglob("*")}
    assert not any("evil" in name or "passwd" in name or "INST" in name for name in names)


def test_markup_in_prompts_and_responses_is_shown_as_it_is() -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    samples = {"prompts": ["[INST] hi [/INST]"], "sft": {"responses": ["[/x] [red]no"]}}
    console.print(sample_table(samples, legend_of(RECIPE)))
    shown = console.export_text()
    assert "[INST] hi [/INST]" in shown
    assert "[/x] [red]no" in shown


# Secrets


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "hub_token",
        "HF_TOKEN",
        "api_key",
        "apikey",
        "openai_api_key",
        "password",
        "client_secret",
        "secret_key",
        "aws_secret_access_key",
        "credentials",
        "db_passwd",
        "use_auth_token",
    ],
)
def test_what_such_a_name_holds_is_secret(name: str) -> None:
    assert redacted({"a": [{name: "x1"}], "b": f"cmd {name}=x1,seed=2"}) == {
        "a": [{name: REDACTED}],
        "b": f"cmd {name}={REDACTED},seed=2",
    }
    assert redacted({name: None}) == {name: None}


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer",
        "max_prompt_tokens",
        "eos_token",
        "pad_token_id",
        "bos_token",
        "unk_token",
        "tokens",
        "keys",
        "key",
        "missing_eos_penalty",
        "tokenizer_path",
        "secretary",
    ],
)
def test_what_other_names_hold_is_not(name: str) -> None:
    assert redacted({name: "x1", "b": f"{name}=x1"}) == {name: "x1", "b": f"{name}=x1"}


def test_secrets_of_the_environment_and_well_known_keys_are_found_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "corr.ct+horse")
    monkeypatch.setenv("SHORT_TOKEN", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-and-long")
    plain = {"url": "https://me:corr.ct+horse@host/1", "like": "corrXct+horse", "n": "false-and-long", "one": 1}
    assert redacted(plain) == {**plain, "url": f"https://me:{REDACTED}@host/1"}
    for key in (f"hf_{'a1' * 17}", f"sk-{'b2' * 12}", f"sk-ant-api03-{'c3' * 12}", f"ghp_{'d4' * 18}"):
        assert redacted([f"see {key}."]) == [f"see {REDACTED}."]
    assert redacted("sk-learn-model and hf_short") == "sk-learn-model and hf_short"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="ascii"), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "lr", "token"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_what_is_not_secret_stays_and_twice_changes_no_more(value: Any) -> None:
    def without(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: without(item) for name, item in part.items() if name != "token"}
        return [without(item) for item in part] if isinstance(part, list) else part

    once = redacted(value)
    assert redacted(once) == once
    assert without(once) == without(value)


def test_a_new_token_is_no_new_setting(tmp_path: Path) -> None:
    identity = {"stage": "sft", "config": {"model": {"path": "m", "token": "old", "lr": 1.0}}}
    assert begin_stage(tmp_path / "sft", identity, overwrite=False) == "fresh"
    identity["config"] = {"model": {"path": "m", "token": "new", "lr": 1.0}}
    assert begin_stage(tmp_path / "sft", identity, overwrite=False) == "half-done"
    # The fingerprint of a stage without secrets is what it was before there was any redaction.
    begin_stage(tmp_path / "plain", {"stage": "sft", "config": {"lr": 1.0}}, overwrite=False)
    assert read_stage(tmp_path / "plain")["fingerprint"] == "7bfe992cbfe18f25"


# Dependencies


@pytest.mark.parametrize(
    ("name", "floor"), [("lightning", "2.6.6"), ("torch", "2.10"), ("transformers", "5.10.1"), ("hydra-core", "1.3.6")]
)
def test_dependencies_start_where_their_holes_are_mended(name: str, floor: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {own.name: own.specifier for own in map(Requirement, project["dependencies"])}
    floors = [Version(own.version) for own in wanted[name] if own.operator == ">="]
    assert len(floors) == 1
    assert floors[0] >= Version(floor)
    if name == "lightning":
        assert not any(wanted[name].contains(bad) for bad in ("2.6.2", "2.6.3"))
    pinned = (REPOSITORY / "scripts" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {own.name: own.specifier for own in map(Requirement, (line for line in pinned if line and line[0] != "#"))}
    assert "torch" in pins
    if name in pins:
        assert wanted[name].contains(next(iter(pins[name])).version)
