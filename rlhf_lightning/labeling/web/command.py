"""`rlhf-label`: a page on which people write demonstrations, rank and rate; for this machine alone unless told so."""

import argparse
import ipaddress
import json
import re
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.text import Text

from rlhf_lightning.data.records import Prompt, RecordError
from rlhf_lightning.data.rows.records_of import read_records
from rlhf_lightning.labeling.export import write_exports
from rlhf_lightning.labeling.store import LabelStore
from rlhf_lightning.labeling.tasks import Task
from rlhf_lightning.labeling.web.preview import TEMPLATE
from rlhf_lightning.runs.errors import PipelineError
from rlhf_lightning.runs.extras import needs_extra
from rlhf_lightning.runs.terminal import harmless

STORE, INSTRUCTIONS = "labels.sqlite", "instructions.md"
LOCAL = "me"
"""The labeler who started the page, and leads."""
_FIELDS = {field.name for field in fields(Task)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `rlhf-label`."""
    options = _options(arguments)
    console, errors = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        _label(options, console)
    except KeyboardInterrupt:
        console.print("Ended; everything that was saved is kept.")
    except (ValueError, OSError, ImportError, PipelineError) as error:
        errors.print(Text(harmless(f"rlhf-label: {error}")))
        sys.exit(1)


def _label(options: argparse.Namespace, console: Console) -> None:
    folder: Path = options.folder
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the folder of a run.")
    if not options.export:
        with needs_extra("rlhf-label", "label"):
            import starlette as starlette
            import uvicorn as uvicorn
    store = LabelStore(folder / STORE)
    _add_tasks(store, options, console)
    if options.export:
        for path in write_exports(store, options.export):
            console.print(Text(harmless(str(path))))
        return
    instructions = folder / INSTRUCTIONS
    if not instructions.exists():
        shutil.copyfile(Path(__file__).parents[1] / INSTRUCTIONS, instructions)
    from rlhf_lightning.labeling.web.serve import serve

    if options.model is None:
        made = folder / "sft" / "model"
        options.model = made if (made / TEMPLATE).exists() else None
    known = {each.name for each in store.labelers()}
    links = {name: store.add_labeler(name) for name in options.labelers if name not in known}
    if LOCAL not in known:
        store.add_labeler(LOCAL, "admin")
    serve(store, instructions, options, console, {LOCAL: secrets.token_urlsafe(32)}, links)


def _add_tasks(store: LabelStore, options: argparse.Namespace, console: Console) -> None:
    if options.import_:
        console.print(f"{store.add_tasks(read_tasks(options.import_))} tasks are new.")
    if options.demonstrations:
        slots = demonstration_slots(options.demonstrations, options.prompts)
        if len(slots) < options.demonstrations:
            console.print(f"{options.prompts} has {len(slots)} prompts, not {options.demonstrations}.")
        console.print(f"{store.add_tasks(slots)} demonstrations are new.")


def read_tasks(path: Path) -> list[Task]:
    """Tasks of a file of JSON lines, with the fields of `Task`; `id` and those that have a default may be left out.

    Raises:
        ValueError: When a row is none; file, line and fault are named.
    """
    tasks = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or row.keys() - _FIELDS:
                raise RecordError(f"a task is an object with the fields {', '.join(sorted(_FIELDS))}")
            tasks.append(Task(**{"id": "", "batch": path.stem, "prompt": None, **row}))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return tasks


def demonstration_slots(count: int, prompts: Path | None) -> list[Task]:
    """Demonstrations to write: for the prompts of a file, and where there are none for prompts of the labelers' own.

    Args:
        count: How many.
        prompts: A file of prompts, in any form that records have; the first `count` are taken.
    """
    batch = "demonstrations"
    if prompts is None:
        return [Task("", "demonstration", batch, None, known={"slot": str(number)}) for number in range(count)]
    records = read_records(str(prompts), Prompt)[:count]
    known = [{"user": each.user, "source": each.source, "labels": each.labels} for each in records]
    return [
        Task("", "demonstration", batch, each.prompt, known={name: value for name, value in of.items() if value})
        for each, of in zip(records, known, strict=True)
    ]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "rlhf-label", description="Write demonstrations, rank and rate in a browser. Nothing leaves this machine."
    )
    parser.add_argument(
        "folder", type=Path, metavar="RUN", help="the folder of a run (runs/mine); made where it is missing"
    )
    parser.add_argument(
        "--labelers", type=_names, default=[], metavar="NAME,NAME", help="add labelers, and print the link of each"
    )
    parser.add_argument("--demonstrations", type=_count, metavar="N", help="open N demonstrations to write")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="the prompts of the demonstrations (labelers' own)"
    )
    parser.add_argument("--import", dest="import_", type=Path, metavar="FILE", help="add tasks, one JSON object a line")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write what was saved as JSON lines, and end")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="a model, by whose chat template demonstrations are shown (the run's)",
    )
    parser.add_argument("--no-browser", dest="browser", action="store_false", help="do not open the page in a browser")
    parser.add_argument("--port", type=int, default=8765, help="a free one is taken where it is in use (8765)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (127.0.0.1: this machine alone)")
    parser.add_argument(
        "--public", metavar="NAME", help="the name at which browsers elsewhere reach the page; needs TLS or a proxy"
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate chain in PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its key in PEM")
    parser.add_argument(
        "--behind-proxy",
        action="store_true",
        help="a proxy on this machine terminates TLS, and passes Host and X-Forwarded-For on",
    )
    options = parser.parse_args(arguments)
    if options.labelers and options.export:
        parser.error("--export ends without a page, so that --labelers would get no link; give one of them")
    if options.export and options.export.exists() and not options.export.is_dir():
        parser.error(f"--export {options.export} is a file; name a folder")
    if options.prompts and not options.demonstrations:
        parser.error("--prompts are those of --demonstrations N; give both")
    if options.model and not (options.model / TEMPLATE).is_file():
        parser.error(f"--model {options.model} has no {TEMPLATE}; name another folder, or leave it out")
    if not 0 <= options.port <= 65535:
        parser.error(f"--port {options.port} is none; give 0 to 65535")
    if (options.tls_cert is None) != (options.tls_key is None):
        parser.error("--tls-cert and --tls-key come together")
    if (said := _exposure(options)) is not None:
        parser.error(said)
    for name in ("tls_cert", "tls_key"):
        file = getattr(options, name)
        if file is not None and not Path(file).is_file():
            parser.error(f"--{name.replace('_', '-')} {file} is no file; name the one in PEM")
    return options


def _exposure(options: argparse.Namespace) -> str | None:
    """What keeps the page from being served so; None where nothing does."""
    try:
        local = options.host == "localhost" or ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        return f"--host {options.host} is no address; give 127.0.0.1, 0.0.0.0 or one of this machine"
    protected = options.tls_cert is not None or options.behind_proxy
    if not local and not (options.public and protected):
        return (
            f"--host {options.host} lets other machines in. Give --public with the name that browsers use, and either "
            "--tls-cert and --tls-key, or --behind-proxy where a proxy terminates TLS; or leave --host out"
        )
    if options.public and not re.fullmatch(r"[A-Za-z0-9.-]+(:\d+)?", options.public):
        return f"--public {options.public} is no name; give it as in label.example.org, without https://"
    if options.public and not protected:
        return "--public needs --tls-cert and --tls-key, or --behind-proxy where a proxy terminates TLS"
    if options.behind_proxy and not options.public:
        return "--behind-proxy needs --public with the name that browsers use"
    return None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of demonstrations; give 1 or more")
    return int(text)
