"""A canary in every known form of a secret: nothing that a run, a sweep or a failure leaves or says holds one."""

import base64
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from command import Said, rlhf

REPOSITORY = Path(__file__).parents[1]
PHRASE = "kanari phrase, with/all @signs & 'quotes'"
FORMS = (
    *("api_key", "nested_in_a_list", "authorization", "x_api_key", "cookie", "address_password", "address_token"),
    *("amazon_signature", "variable_with_default", "variable_in_text", "variable_by_key", "variable_unused"),
    *("list_first", "list_second", "camel_case", "yaml_block", "pem", "json_in_text", "bearer_in_text", "override"),
    *("added_override", "swept_first", "swept_second", "logger_key", "tag", "tag_with_colon", "job_variable"),
    *("number_like", "deep_mapping", "azure_text", "command_line_in_text", "callback_password", "echoed_by_server"),
    *("tokenizer_token", "refused_address", "refused_query", "missing_target", "unknown_step", "bad_override"),
)
CANARY = {form: f"kanari{number:02d}Qw7Zt" for number, form in enumerate(FORMS)}
WELL_KNOWN = {
    "hugging_face": "hf_" + "kanariAbCdEfGhIjKlMnOp01",
    "open_ai": "sk-proj-" + "kanariAbCdEfGhIjKlMnOp02",
    "git_hub": "ghp_" + "kanariAbCdEfGhIjKlMnOp03",
    "git_lab": "glpat-" + "kanariAbCdEfGhIjKlMn04",
    "slack": "xoxb-" + "12345678-kanariAbCd05",
    "google": "AIza" + "kanariAbCdEfGhIjKlMnOpQrStUvWxYz06",
    "amazon": "AKIA" + "KANARIABCDEFGH07",
    "web_token": "eyJ" + "kanariAbCd08.kanariAbCd08.kanariAbCd08",
    "basic_in_text": "Basic " + base64.b64encode(b"kanari:secret09").decode(),
}
PLANTED = {**CANARY, **{form: key.removeprefix("Basic ") for form, key in WELL_KNOWN.items()}, "phrase": PHRASE}
OWN = '''
import json, logging, sys, warnings
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger


def tell(settings):
    """Says its secrets in every way, as careless libraries do; those of the environment too."""
    import os
    values = [item for value in settings.values() for item in (value if isinstance(value, list) else [value])]
    logging.getLogger("own").warning("made with %s", settings)
    for text in (*map(str, values), json.dumps(settings), os.environ["CANARY_HUB_TOKEN"], os.environ["CANARY_PLAIN"]):
        logging.getLogger("own").error("the value is %s indeed", text)
        warnings.warn(f"near {text} it is odd")
        print("plainly", text, file=sys.stderr)


class Scorer:
    name = "own scorer"

    def __init__(self, fail=False, **settings):
        self.settings, self.fail = settings, fail
        tell(settings)

    def __call__(self, prompts, responses):
        if self.fail:
            try:
                raise LookupError(f"cannot reach {self.settings['address']}")
            except LookupError as error:
                raise RuntimeError(f"no scores with {self.settings['api_key']} of {self.settings}") from error
        return [float(len(response)) for response in responses]


class Noisy(CSVLogger):
    def __init__(self, save_dir=".", api_key="", **settings):
        super().__init__(save_dir, "own")
        tell({"api_key": api_key, **settings})


class Watcher(Callback):
    def __init__(self, password):
        tell({"password": password})
'''
EXPERIMENT = f"""# @package _global_
stages: [ppo]
run: canary
model: {{size: small}}
allowed_targets: [own]
tags: ["api_key={CANARY["tag"]}", "password: {CANARY["tag_with_colon"]}", fine]
callbacks: {{own: {{_target_: own.Watcher, password: {CANARY["callback_password"]}}}}}
logger:
  own: {{_target_: own.Noisy, api_key: {CANARY["logger_key"]}}}
ppo:
  init: base
  data: {{batch_size: 8}}
  reward:
    _target_: own.Scorer
    api_key: {CANARY["api_key"]}
    endpoints: [{{name: a, password: {CANARY["nested_in_a_list"]}}}]
    headers:
      Authorization: Bearer {CANARY["authorization"]}
      X-Api-Key: {CANARY["x_api_key"]}
      Cookie: session={CANARY["cookie"]}
    address: "http://ann:{CANARY["address_password"]}@127.0.0.1:9/?seed=1&key={CANARY["address_token"]}"
    storage: "https://host/file?X-Amz-Signature={CANARY["amazon_signature"]}&part=1"
    with_default: "${{oc.env:UNSET_TOKEN,{CANARY["variable_with_default"]}}}"
    in_text: "key ${{oc.env:CANARY_HUB_TOKEN}} of the hub"
    client_secret: "${{oc.env:CANARY_PLAIN}}"
    apiKeys: [{CANARY["list_first"]}, {CANARY["list_second"]}]
    accessToken: {CANARY["camel_case"]}
    text: |
      seed: 1
      api_keys:
        - {CANARY["yaml_block"]}
      end: 2
    identity: "-----BEGIN RSA PRIVATE KEY-----\\n{CANARY["pem"]}\\n-----END RSA PRIVATE KEY-----"
    json: '{{"seed": 1, "token": "{CANARY["json_in_text"]}"}}'
    bearer: send Bearer {CANARY["bearer_in_text"]} there
    auth: {{deep: {{deeper: [{CANARY["deep_mapping"]}]}}}}
    azure: "Endpoint=x;AccountKey={CANARY["azure_text"]}==;Suffix=y"
    command: "tool --seed 1 --api-key {CANARY["command_line_in_text"]} --fast"
    passphrase: "{PHRASE}"
    password: {CANARY["number_like"]}
    notes: {json.dumps(list(WELL_KNOWN.values()))}
"""
VARIABLES = {
    "CANARY_HUB_TOKEN": CANARY["variable_in_text"],
    "CANARY_PLAIN": CANARY["variable_by_key"],
    "OTHER_API_KEY": CANARY["variable_unused"],
}
SHARED = [
    *("hydra.searchpath=[file://own_conf]", "debug=fast", "experiment=mine", "data.source.prompts=40"),
    *("data.source.demonstrations=40", "data.source.text=20", "data.source.validation=16"),
    *("+logger.board={_target_: lightning.pytorch.loggers.TensorBoardLogger}", "hydra/job_logging=default"),
    *(f"+ppo.reward.judge={{url: 'http://host', api_key: {CANARY['override']}}}", "hydra.output_subdir=.hydra"),
    *(f"++ppo.reward.hub_token={CANARY['added_override']}", f"+hydra.job.env_set.X_TOKEN={CANARY['job_variable']}"),
]
DRIVER = """
import json, sys
from rlhf_lightning.cli import main
for overrides in json.load(open("commands.json")):
    print("##", file=sys.stderr)
    sys.argv = ["rlhf", *overrides]
    try:
        main()
        sys.exit("it must fail")
    except SystemExit as ended:
        assert ended.code == 1, ended.code
"""


class Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(500)
        self.end_headers()
        self.wfile.write(f"cannot do with {self.headers['Authorization']}".encode())

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Server) as served:
        thread = Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}/score"
        served.shutdown()


def prepared(folder: Path) -> Path:
    folder.mkdir()
    (folder / "own.py").write_text(OWN, encoding="utf-8")
    (folder / "own_conf" / "experiment").mkdir(parents=True)
    (folder / "own_conf" / "experiment" / "mine.yaml").write_text(EXPERIMENT, encoding="utf-8")
    return folder


def failures(folder: Path) -> Said:
    with server() as address:
        refused = [
            ["experiment=mine", f"+model.tokenizer.token={CANARY['tokenizer_token']}"],
            ["experiment=mine", f"ppo.reward=http://ann:{CANARY['refused_address']}@{'host' * 20}/score"],
            ["experiment=mine", f"ppo.reward=http://host/score?token={CANARY['refused_query']}"],
            [f"ppo.reward={{_target_: own.Gone, token: {CANARY['missing_target']}}}", "allowed_targets=[own]"],
            [f"stages=[api_key={CANARY['unknown_step']}]"],
            [f"model.api_key={CANARY['bad_override']}"],
            [
                "experiment=mine",
                "ppo.reward=null",
                f"++ppo.reward={{url: '{address}', api_key_env: ECHOED, retries: 0}}",
            ],
        ]
        (folder.parent / "commands.json").write_text(
            json.dumps(
                [
                    ["hydra.searchpath=[file://own_conf]", "debug=fast", "stages=[ppo]", "ppo.init=base", *given]
                    for given in refused
                ]
            )
        )
        code = DRIVER.replace("commands.json", "../commands.json")
        variables = {"ECHOED": CANARY["echoed_by_server"], "PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            cwd=folder,
            env={**os.environ, **VARIABLES, **variables},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Said(ended.returncode, ended.stdout + ended.stderr)


KINDS = {
    "run": [],
    "sweep": ["seed=1,2", f"+ppo.reward.pick_token={CANARY['swept_first']},{CANARY['swept_second']}", "-m"],
    "failed": ["+ppo.reward.fail=true"],
    "failed sweep": ["+ppo.reward.fail=true", "seed=1,2", "-m"],
    "refused": None,
}
"""What stands behind the arguments that are `SHARED`; None for the commands that are refused."""


def contents(path: Path) -> bytes:
    """All of a file, and of what is packed in it."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as packed:
        return path.read_bytes() + b"".join(packed.read(name) for name in packed.namelist())


def found_in(content: str) -> set[str]:
    one_line = re.sub(r"\s+", " ", content)  # a screen breaks lines
    return {
        form
        for form, secret in PLANTED.items()
        if secret in content or secret in one_line or secret.replace("'", "''") in content
    }


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "sweep")) for kind in KINDS])
def test_no_canary_is_left(kind: str, tmp_path: Path) -> None:
    folder, arguments = prepared(tmp_path / "here"), KINDS[kind]
    if arguments is None:
        ended = failures(folder)
    else:
        full = {"HYDRA_FULL_ERROR": "1"} if kind == "failed" else {}
        ended = rlhf(
            [*SHARED, *arguments], folder, 300, {**VARIABLES, **full, "COLUMNS": "160", "PYTHONPATH": str(folder)}
        )
    assert (ended.code == 0) == (kind in ("run", "sweep", "refused")), ended.text[-3000:]
    assert len(PLANTED) == len(set(PLANTED.values())) >= 45
    leaks = {"what it said": found_in(ended.text)}
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in ("own.py", "own_conf", "__pycache__")
    ]
    for path in files:
        name = str(path.relative_to(folder))
        leaks[name] = found_in(contents(path).decode("utf-8", errors="replace")) | found_in(name)
    assert {name: sorted(forms) for name, forms in leaks.items() if forms} == {}
    expected = {
        "run": {"stage.json", "config.yaml", "last.ckpt", "hparams.yaml", "rlhf.log", "README.md", "hydra.yaml"},
        "sweep": {"stage.json", "multirun.yaml"},
        "failed": {"config.yaml"},
        "failed sweep": {"multirun.yaml"},
        "refused": set(),
    }
    assert {path.name for path in files} >= expected[kind]
    assert kind != "run" or any("tfevents" in path.name for path in files)
