#!/usr/bin/env python
"""Many labelers at once, and a server that is killed again and again: is every acknowledged answer in the export once?

python scripts/label_load.py                                    # 2,000 answers of 20 labelers at 20 a second, 5 kills
python scripts/label_load.py --answers 200 --kills 2
"""

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from rlhf_lightning.labeling.store import LabelStore
from rlhf_lightning.labeling.tasks import Task

COMMAND = [sys.executable, "-c", "from rlhf_lightning.labeling.web.command import main; main()"]


class Server:
    """The real server, which is killed as the power goes out."""

    def __init__(self, run: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.command = [*COMMAND, str(run), "--no-browser", "--port", str(self.port)]
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start, and wait until it answers."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit("the server ended by itself.") from None
                await asyncio.sleep(0.1)

    def kill(self) -> None:
        """Kill it, whatever it is at."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


async def labeler(address: str, token: str, beats: "asyncio.Queue[float]", seconds: list[float]) -> list[str]:
    """Take a task and save an answer at each beat, again and again until the server says that it is saved.

    Returns:
        The submissions that were acknowledged.
    """
    acknowledged = []
    async with httpx.AsyncClient(base_url=address, headers={"Origin": address}, timeout=10) as client:

        async def insist(method: str, path: str, **options: Any) -> httpx.Response:
            while True:
                try:
                    began = time.perf_counter()
                    response = await client.request(method, path, **options)
                    if response.status_code < 500 and response.status_code != 429:
                        seconds.append(time.perf_counter() - began) if method == "POST" else None
                        return response
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.2)

        await insist("GET", f"/l/{token}")
        csrf = re.search(r'data-csrf="(\w+)"', (await insist("GET", "/")).text)
        client.headers["X-CSRF-Token"] = csrf[1] if csrf else ""
        while not beats.empty():
            await asyncio.sleep(max(0.0, beats.get_nowait() - time.monotonic()))
            page = (await insist("GET", "/work/ranking")).text
            found = re.search(r'data-assignment="(\d+)"', page)
            if not found:
                raise SystemExit(f"there was no task for a labeler: {page[:300]}")
            submission = random.randbytes(16).hex()
            value = {"answer": {"ranks": [1, 2, 2, 3]}, "seconds": 1, "submission": submission}
            if (await insist("POST", f"/save/{found[1]}", json=value)).json() == {"saved": True}:
                acknowledged.append(submission)
    return acknowledged


async def load(run: Path, answers: int, labelers: int, per_second: float, kills: int) -> dict[str, Any]:
    """Run it all; returns what came out."""
    store = LabelStore(run / "labels.sqlite")
    texts = [f"Response {letter}. " * 40 for letter in "abcd"]
    store.add_tasks(Task("", "ranking", "load", f"Prompt {number}. " * 20, texts) for number in range(answers))
    tokens = [store.add_labeler(f"labeler {number}") for number in range(labelers)]
    server, seconds = Server(run), []
    await server.start()
    begin = time.monotonic() + 1
    beats: list[asyncio.Queue[float]] = [asyncio.Queue() for _ in tokens]
    for number in range(answers):
        beats[number % labelers].put_nowait(begin + number / per_second)

    async def killer() -> None:
        for _ in range(kills):
            await asyncio.sleep(answers / per_second / (kills + 1))
            server.kill()
            await server.start()

    try:
        people = [
            labeler(f"http://127.0.0.1:{server.port}", token, own, seconds)
            for token, own in zip(tokens, beats, strict=True)
        ]
        *lists, _ = await asyncio.gather(*people, killer())
    finally:
        server.kill()
    subprocess.run([*COMMAND, str(run), "--export", str(run / "export")], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run / "export" / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    exported = Counter(row["submission"] for row in rows)
    acknowledged = [submission for own in lists for submission in own or []]
    ordered = sorted(seconds)
    return {
        "acknowledged": len(acknowledged),
        "missing": sum(submission not in exported for submission in acknowledged),
        "twice": sum(count > 1 for count in exported.values()) + len(rows) - len({row["task"] for row in rows}),
        "never acknowledged": len(exported.keys() - {*acknowledged}),
        "median save, ms": round(1000 * ordered[len(ordered) // 2], 1),
        "p95 save, ms": round(1000 * ordered[int(0.95 * len(ordered))], 1),
        "slowest save, ms": round(1000 * ordered[-1], 1),
    }


def main() -> None:
    """Print what came out; the exit code is 1 where an answer was lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--labelers", type=int, default=20)
    parser.add_argument("--per-second", type=float, default=20)
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(load(Path(folder), options.answers, options.labelers, options.per_second, options.kills))
    Console().print_json(json.dumps(found))
    sys.exit(bool(found["missing"] or found["twice"] or found["acknowledged"] != options.answers))


if __name__ == "__main__":
    main()
