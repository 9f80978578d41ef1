"""Speed and memory, side by side: every contender in a process of its own, steps in turn, medians of ratios.

    python scripts/benchmark.py                    all rows that need no peers
    python scripts/benchmark.py --peers            and those against TRL, in virtual environments made for it
    python scripts/benchmark.py reward --repeats 3 rows whose name contains "reward"
    python scripts/benchmark.py growth             how a reward step grows with model, K, lengths and batch
    python scripts/benchmark.py --device cuda --minutes 12   the rows for a GPU, the most telling ones first
    python scripts/benchmark.py --device cuda --tiny         the same code on a CPU, with a tiny model: tried, not timed

Rows are added to docs/benchmark.json, and the tables and the pictures are drawn from it. Machines differ and
are shared: only ratios of one run mean anything.
"""

import argparse
import datetime
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.predicted import predicted
from benchmarks.rows import COPY, Row, growth, rows, tiny
from rich.console import Console

from rlhf_lightning.parallel.throughput import dense_peak
from rlhf_lightning.runs.signals import ended_by_signals

ROOT = Path(__file__).resolve().parent.parent
STARTED = time.monotonic()
PEERS = {"peers": "trl==1.16.0", "peers_ppo": "trl==1.12.0"}
# Freed memory stays with the process, and large blocks use large pages: up to twice as fast on a CPU, for everyone.
ALLOCATOR = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592"


class Contender:
    """A worker process that takes one step whenever it is told to."""

    def __init__(self, module, function, shape, python, allocator):
        environment = os.environ | {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0"}
        if allocator:
            environment["GLIBC_TUNABLES"] = ALLOCATOR
        worker = ROOT / "scripts" / "benchmarks" / "worker.py"
        self.log = Path(os.environ.get("TMPDIR", "/tmp")) / f"benchmark-{os.getpid()}-{module}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, worker, module, function, json.dumps(shape)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
            )

    def step(self):
        """Units per second of one step, the peak memory so far in bytes, and FLOPs and bytes per second if counted."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"it stopped; see {self.log}:\n" + "".join(self.log.read_text()[-1500:]))
        report = json.loads(line)
        counted = {name: report[name] / report["seconds"] for name in ("flops", "bytes") if name in report}
        return report["units"] / report["seconds"], report["peak"], counted

    def close(self):
        """End the process."""
        self.process.kill()
        self.process.wait()


def measure(row: Row, repeats: int, pythons: dict[str, str], device: str) -> dict:
    """One row: the contenders warm up, then take turns."""
    contenders = []
    try:
        for module, function, shape in filter(None, (row.ours, row.other)):
            shape = {"device": device} | shape
            contenders.append(Contender(module, function, shape, pythons.get(module, sys.executable), not row.memory))
        for contender in contenders:
            for _ in range(1 if row.memory else 2):
                contender.step()
        steps = [[contender.step() for contender in contenders] for _ in range(2 if row.memory else repeats)]
    finally:
        for contender in contenders:
            contender.close()
    sides = range(len(contenders))
    peaks = [max(step[side][1] for step in steps) / 2**20 for side in sides]
    if row.memory:
        ours, other = peaks
        return {"ours": ours, "other": other, "ratio": ours / other, "range": None, "unit": "MiB"}
    speeds = [statistics.median(step[side][0] for step in steps) for side in sides]
    found = {"ours": speeds[0], "other": None, "ratio": None, "range": None, "unit": row.unit}
    if row.other is not None:
        ratios = [own[0] / rival[0] for own, rival in steps]
        found |= {"other": speeds[1], "ratio": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
    if device == "cuda":
        counted = {name: statistics.median(step[0][2][name] for step in steps) for name in steps[-1][0][2]}
        found |= {"peaks": peaks, "counted": counted}
    return found


def machine(device: str) -> dict:
    """What the numbers belong to."""
    names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) or [platform.processor()]
    where, peak = f"{len(os.sched_getaffinity(0))} cores of {names[0]}", None
    if device == "cuda":
        import torch

        torch.cuda.init()
        where, peak = torch.cuda.get_device_name(), dense_peak()
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run(
        [*git[:3], "status", "--porcelain", "-uno", "rlhf_lightning"], capture_output=True, check=False
    )
    versions = " ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lightning"))
    return {
        "date": datetime.date.today().isoformat(),
        "peak": peak,
        "machine": where,
        "commit": commit + ("+" if changed.stdout else ""),
        "versions": versions,
    }


def make_peers() -> dict[str, str]:
    """Virtual environments for the peers, below .peers/; made once."""
    pythons = {}
    for module, requirement in PEERS.items():
        folder = ROOT / ".peers" / requirement.replace("==", "-")
        pythons[module] = str(folder / "bin" / "python")
        if not (folder / ".installed").exists():
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            install = [
                folder / "bin" / "python",
                "-m",
                "pip",
                "install",
                "-q",
                "-c",
                ROOT / "scripts" / "constraints.txt",
            ]
            subprocess.run([*install, requirement, "peft"], check=True)
            (folder / ".installed").touch()
    return pythons


def table(found: dict) -> str:
    """The rows as Markdown."""
    lines = [
        "| work | ours | other | against | ratio | aim |",
        "|---|--:|--:|---|--:|--:|",
    ]
    for key, row in found.items():
        name = key.removesuffix(f", against {row['against']}")
        spread = "" if row["range"] is None else " ({:.2f} to {:.2f})".format(*row["range"])
        aim = "" if row["aim"] is None else f"{'at most' if row['unit'] == 'MiB' else 'at least'} {row['aim']:g}"
        ours, other = (f"{row[side]:.3g} {row['unit']}" for side in ("ours", "other"))
        lines.append(f"| {name} | {ours} | {other} | {row['against']} | {row['ratio']:.2f}{spread} | {aim} |")
    return "\n".join([*lines, "", *stamps(found), ""])


def gpu_table(found: dict) -> str:
    """The rows of a GPU as Markdown, with what the work is of what the GPU could do, and the most memory."""
    lines = [
        "| work | ours | of the GPU | GiB | other | GiB | against | ratio | aim |",
        "|---|--:|--:|--:|--:|--:|---|--:|--:|",
    ]
    for key, row in found.items():
        name = key.removesuffix(f", against {row['against']}")
        other = "" if row["other"] is None else f"{row['other']:.3g}"
        ratio = "" if row["range"] is None else "{:.2f} ({:.2f} to {:.2f})".format(row["ratio"], *row["range"])
        peaks = [f"{peak / 1024:.1f}" for peak in row["peaks"]] + [""]
        words = f"| {name} | {row['ours']:.3g} {row['unit']} | {share(row, found)} | {peaks[0]} | {other} | {peaks[1]} "
        lines.append(words + f"| {row['against']} | {ratio} | {'' if row['aim'] is None else row['aim']} |")
    words = "MFU: FLOPs that the work needs (`parallel/throughput.py`), of the GPU's peak in 16 bits. Bandwidth: bytes "
    words += "that decoding cannot do without (weights, keys and values), of what a copy moves."
    return "\n".join([*lines, "", words, "", *stamps(found), ""])


def share(row: dict, found: dict) -> str:
    """Which part of the peak, or of the measured bandwidth, was used; empty where that is not known."""
    copied = found.get(COPY.key)
    if "bytes" in row["counted"] and copied:
        return f"{row['counted']['bytes'] / copied['ours'] / 1e9:.0%} of the bandwidth"
    return f"{row['counted']['flops'] / row['peak']:.0%} MFU" if "flops" in row["counted"] and row["peak"] else ""


def stamps(found: dict) -> list[str]:
    """When and where the rows were measured."""
    seen = {(row["date"], row["machine"], row["commit"], row["versions"]) for row in found.values()}
    return [f"{date}, {where}, commit {commit}, {versions}." for date, where, commit, versions in sorted(seen)]


def picture(found: dict, path: Path) -> None:
    """How many times as fast, row by row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    speeds = {name: row for name, row in found.items() if row["unit"] != "MiB"}
    figure, axes = pyplot.subplots(figsize=(8, 0.26 * len(speeds) + 0.8), layout="constrained")
    places = range(len(speeds))[::-1]
    for place, row in zip(places, speeds.values(), strict=True):
        met = row["aim"] is None or row["ratio"] >= row["aim"]
        axes.barh(place, row["ratio"], color="#4477aa" if met else "#bbbbbb")
        axes.text(0.31, place, f"{row['ratio']:.3g}", va="center", fontsize=7, color="white" if met else "black")
        if not met:
            axes.plot(row["aim"], place, "|", color="#cc3311", markersize=9)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(places, list(speeds), fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(0.3, 40)
    axes.margins(y=0.01)
    axes.set_xlabel("times as fast; grey: below the aim, which the red mark shows")
    figure.savefig(path, dpi=110)


def growth_table(found: dict) -> str:
    """Seconds per step and peak memory of the rows that grow, as Markdown."""
    lines = ["| what grows | s/step | separate | ratio | MiB | separate | ratio |", "|---|--:|--:|--:|--:|--:|--:|"]
    for name, value, speed, memory in growth():
        if speed.key in found and memory.key in found:
            fast, lean, prompts = found[speed.key], found[memory.key], speed.ours[2]["prompts"]
            own, other = prompts / fast["ours"], prompts / fast["other"]
            words = f"| {name} = {value} | {own:.3f} | {other:.3f} | {own / other:.2f} "
            lines.append(words + f"| {lean['ours']:.0f} | {lean['other']:.0f} | {lean['ratio']:.2f} |")
    beside = ["Predicted by the memory planner, and by counting:", "", predicted()]
    return "\n".join([*lines, "", *stamps(found), "", *beside])


def growth_picture(found: dict, path: Path) -> None:
    """The same as curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for name, *_ in growth()))
    figure, axes = pyplot.subplots(2, len(names), figsize=(3 * len(names), 5), layout="constrained", sharex="col")
    for column, name in enumerate(names):
        points = [point for point in growth() if point[0] == name and {row.key for row in point[2:]} <= found.keys()]
        for side, label in (("ours", "prompt read once"), ("other", "one forward per response")):
            speeds = [point[2].ours[2]["prompts"] / found[point[2].key][side] for point in points]
            peaks = [found[point[3].key][side] for point in points]
            for row, values in enumerate((speeds, peaks)):
                axes[row][column].plot([point[1] for point in points], values, "o-", label=label)
        axes[0][column].set_title(name)
        for row in (0, 1):
            axes[row][column].set_ylim(bottom=0)
    axes[0][0].set_ylabel("seconds per step")
    axes[1][0].set_ylabel("peak memory, MiB")
    axes[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure what was asked for and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of the names of rows; default: all")
    parser.add_argument("--peers", action="store_true", help="also the rows against TRL")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no row after so many")
    parser.add_argument("--tiny", action="store_true", help="the rows for a GPU on this CPU, with a tiny model")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmark.json")
    arguments = parser.parse_args()
    if arguments.tiny and arguments.out == parser.get_default("out"):
        parser.error("--tiny tries the rows and measures nothing: name another file, --out FILE.")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    console = Console()
    pythons = make_peers() if arguments.peers else {}
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    failed = 0
    for row in rows(arguments.device):
        if arguments.names and not any(name in row.name for name in arguments.names):
            continue
        if time.monotonic() - STARTED > arguments.minutes * 60:
            console.print(f"{row.key}: left out, {arguments.minutes:g} minutes are over")
            continue
        if arguments.tiny and "flex" in row.name:
            console.print(f"{row.key}: skipped, flex attention has no backward pass on a CPU")
            continue
        if row.other is not None and row.other[0] in PEERS and not arguments.peers:
            console.print(f"{row.key}: skipped, needs --peers")
            continue
        try:
            result = measure(tiny(row) if arguments.tiny else row, arguments.repeats, pythons, arguments.device)
        except RuntimeError as error:
            console.print(f"[red]{row.key}[/]: {error}", markup=True)
            failed += 1
            continue
        result |= {"against": row.against, "aim": row.aim} | machine("cpu" if arguments.tiny else arguments.device)
        found[row.key] = result
        words = " and ".join(f"{result[side]:.4g}" for side in ("ours", "other") if result[side] is not None)
        ratio = "" if result["ratio"] is None else f", ratio {result['ratio']:.2f}"
        counted = f", {share(result, found)}" if arguments.device == "cuda" else ""
        aim = "" if row.aim is None else f", aim {row.aim:g}"
        console.print(f"{row.key}: {words} {result['unit']}{ratio}{aim}{counted}; {time.monotonic() - STARTED:.0f} s")
        arguments.out.with_suffix(".unfinished").write_text(json.dumps(found, indent=1) + "\n")
        arguments.out.with_suffix(".unfinished").rename(arguments.out)
        write_pages(found, arguments.out)
    write_pages(found, arguments.out)
    if arguments.tiny and failed:
        raise SystemExit(f"{failed} rows failed.")


def write_pages(found: dict, out: Path) -> None:
    """Tables and pictures of all that has been measured, in files beside the records."""
    kinds = {kind: {row.key: found[row.key] for row in rows(kind) if row.key in found} for kind in ("cpu", "cuda")}
    grown = {key: row for key, row in kinds["cpu"].items() if key.startswith("growth")}
    compared = {key: row for key, row in kinds["cpu"].items() if key not in grown}
    for records, stem, write, draw in (
        (compared, out.stem, table, picture),
        (grown, "growth", growth_table, growth_picture),
        (kinds["cuda"], "gpu", gpu_table, None),
    ):
        if records:
            out.with_name(f"{stem}.md").write_text(write(records))
            if draw:
                draw(records, out.with_name(f"{stem}.png"))


if __name__ == "__main__":
    with ended_by_signals():  # whatever is measured then is ended by the blocks that started it
        main()
