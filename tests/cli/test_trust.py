"""Hostile and clumsy commands: each is refused with a sentence, and nothing that was there is lost or changed.

With `WRITE_TRUST_PAGE=1` in the environment it writes the tables of docs/trust.md (in one process).
"""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from command import rlhf
from rows import SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "trust.md"
SMALL = """# @package _global_
# A run of seconds.
run: done
stages: [sft, collect, reward, ppo, evaluate]
trainer: {limit_train_batches: 2, limit_val_batches: 1}
data: {source: {prompts: 40, demonstrations: 40, text: 20, validation: 16}}
sft: {fit: {epochs: 1}}
collect: {prompts: {train: 8, validation: 8}}
ppo: {data: {batch_size: 8, num_batches: 2}}
evaluate: {num_prompts: 8, num_texts: 4}
"""

OWN = """# @package _global_
# Records of one's own, in the folder data, with lengths that the small model takes.
defaults: [override /data: jsonl]
run: own
data:
  root: data
  lengths: {max_prompt_tokens: 48, max_response_tokens: 26, block_size: 64}
"""
SLOW = ("A key that no constructor knows", "A value of another type", "Models and objects", "Names")
"""Tables whose commands take longest."""
VARYING = (
    (r"\d+ bytes", "... bytes"),
    (r"had \d+ when", "had ... when"),
    (r"the response '.*', the score", "the response '...', the score"),
    (r"\((in step [^;)]*; )?HYDRA_FULL_ERROR=1 shows where\)", ""),
    (r"\S*/site-packages/", ""),
)
"""What differs from machine to machine, and what every sentence ends with."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run, and the option that made it."""
    folder = tmp_path_factory.mktemp("trust") / "here"
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "small.yaml").write_text(SMALL)
    (folder / "conf" / "experiment" / "own.yaml").write_text(OWN)
    said = rlhf(["--config-dir=conf", "experiment=small"], folder, limit=300)
    assert said.code == 0, said.text
    return folder


def content_of(folder):
    """Size and time of every file, in nanoseconds, and where links lead."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def said_in(text, folder):
    """The sentence alone, with what differs from machine to machine left out."""
    sentence = text[text.rindex("rlhf: ") :].split("\n[20")[0] if "rlhf: " in text else text
    sentence = sentence.replace(f"{folder}/", "").replace(str(folder), ".")
    for pattern, instead in VARYING:
        sentence = re.sub(pattern, instead, sentence)
    return " ".join(sentence.removeprefix("rlhf: ").split()).replace("|", "\\|")


def tried(arguments, before, finished, folder, shows_code=False):
    """What a command says, and what is wrong with how it ends; what it shows may be the user's own code."""
    if before is not None or not folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(finished, folder, symlinks=True)
    if before is not None:
        before(folder)
    there = content_of(folder)
    words = shlex.split(arguments)
    words = words[1:] if words[0] == "!" else [*words, "experiment=small"]
    said = rlhf(["--config-dir=conf", *words], folder, limit=25)
    now = content_of(folder)
    changed = [name for name, stamp in there.items() if now.get(name) != stamp]
    faults = [] if said.code in (1, 2) else [f"ended with {said.code}"]
    faults += [f"changed {', '.join(changed)}"] if changed else []
    faults += ["a traceback"] if "Traceback" in said.text and not shows_code else []
    faults += ["nobody foresaw it"] if "nobody foresaw" in said.text else []
    if before is not None or changed:
        shutil.rmtree(folder)
    return said.text, faults


def alone(rows, finished, folder):
    """Each row with what its command says, and what is wrong with that."""
    for row in rows:
        own = "mine.py" in row[2]
        text, faults = tried(row[1], row[3], finished, folder, own)
        sentence = said_in(text, folder)
        heard = text if own else sentence
        yield row, sentence, [*faults, *([] if row[2].lower() in heard.lower() else [f"{row[2]!r} is not said"])]


def together(rows, finished, folder):
    """The same of rows with a setting each: all faults are said at once, so that few commands are enough."""
    commands = []
    for row in rows:
        fitting = next((each for each in commands if row[2] not in [other[2] for other in each]), None)
        if fitting is None:
            commands.append(fitting := [])
        fitting.append(row)
    said = {}
    for command in commands:
        text, faults = tried(" ".join(row[1] for row in command), None, finished, folder)
        lines = text[text.rindex("rlhf: ") :].removeprefix("rlhf: ").splitlines() if "rlhf: " in text else []
        for row in command:
            sentences = [said_in(line, folder) for line in lines if line.startswith((f"{row[2]} ", f"{row[2]}."))]
            said[row] = ([*sentences, ""][0], [*faults, *([] if len(sentences) == 1 else [f"not said once: {lines}"])])
    return [(row, *said[row]) for row in rows]


@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=[pytest.mark.slow] if title in SLOW else []) for title in SETTINGS]
)
def test_every_command_is_refused_with_a_sentence_and_nothing_is_lost(title, finished, tmp_path):
    lines = [f"### {title}", "", "| what is wrong | the arguments of `rlhf` | what it says |", "|---|---|---|"]
    found = []
    try_all = together if title == "A value out of its range" else alone
    for row, sentence, faults in try_all(SETTINGS[title], finished, tmp_path / "here"):
        found += [f"rlhf {row[1]}: {'; '.join(faults)}: {sentence[:300]}"] if faults else []
        lines.append(f"| {row[0]} | `{row[1].removeprefix('! ')}` | {sentence} |")
    page = PAGE.read_text(encoding="utf-8")
    start = page.index(f"{lines[0]}\n")
    end = page.find("\n\n### ", start)  # -1 at the last one: before the end of the last line
    table = "\n".join(lines)
    if os.environ.get("WRITE_TRUST_PAGE"):
        PAGE.write_text(f"{page[:start]}{table}{page[end:]}", encoding="utf-8")
    assert not found, "\n".join(found)
    assert page[start:end] == table


def test_the_page_is_of_these_commands():
    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"(?m)^### (.*)$", page[page.index("## The commands") :]) == [*SETTINGS]
    assert sum(map(len, SETTINGS.values())) >= 100
