"""What an interrupted step has done: synced, known by what it belongs to, and never dropped in silence."""

import json
import os

import pytest

from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation.policies import PolicySamples
from rlhf_lightning.recipe.kept import KeptPolicies, KeptRankings
from rlhf_lightning.runs.folders import PipelineError

OURS = {"step": "abc", "seed": 4, "batch_size": 2}
FIRST = [Comparison("p", ["a", "b"], [1, 2], labeler="ann"), None]
SECOND = [Comparison("q", ["c", "d\u2028"], [2, 1])]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "ranked.train.unfinished"
    kept = KeptRankings(path, OURS)
    kept.add(FIRST)
    kept.add(SECOND)
    return path


def test_every_batch_is_on_the_disk_when_it_is_added(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), fsync(handle)))
    kept = KeptRankings(tmp_path / "ranked", OURS)
    assert not synced
    kept.add(FIRST)
    assert len(synced) >= 2  # what it belongs to, and the batch
    before = len(synced)
    kept.add(SECOND)
    assert len(synced) == before + 1


def test_it_goes_on_after_what_was_added(file):
    assert json.loads(file.read_bytes().splitlines()[0]) == OURS
    assert KeptRankings(file, OURS).rankings == [*FIRST, *SECOND]


@pytest.mark.parametrize("tail", [b'[{"prompt": "q"', b"[null]", b"\x00" * 40])
def test_a_torn_last_line_is_cut(file, tail):
    whole = file.read_bytes()
    file.write_bytes(whole + tail)
    assert KeptRankings(file, OURS).rankings == [*FIRST, *SECOND]
    assert file.read_bytes() == whole


@pytest.mark.parametrize("tail", [b"", b'{"step": "a'])
def test_one_torn_within_its_first_line_begins_anew(file, tail):
    file.write_bytes(tail)
    kept = KeptRankings(file, OURS)
    kept.add(FIRST)
    assert KeptRankings(file, OURS).rankings == FIRST


@pytest.mark.parametrize(
    ("number", "line", "said"),
    [
        (1, b'{"step": "another", "seed": 4, "batch_size": 2}\n', r"line 1: the rankings in it belong to .*another"),
        (1, b'[null, {"prompt": "p"}]\n', "line 1: the rankings in it belong to"),  # of an earlier version
        (2, b"[{]\n", r"cannot be read \(line 2: "),
        (2, b"\xff\xfe\n", r"cannot be read \(line 2: "),
        (2, b'[{"prompt": "p"}]\n', "line 2: no batch of rankings"),
        (3, b"7\n", "line 3: no batch of rankings"),
        (3, b'[{"prompt": "p", "completions": ["a", "b"], "ranks": [1]}]\n', "line 3: no batch of rankings"),
    ],
)
def test_a_foreign_or_damaged_line_is_named_with_what_to_do(file, number, line, said):
    lines = file.read_bytes().splitlines(keepends=True)
    lines[number - 1] = line
    file.write_bytes(b"".join(lines))
    with pytest.raises(PipelineError, match=rf"ranked\.train\.unfinished.*{said}.*delete the damaged line"):
        KeptRankings(file, OURS)
    assert file.read_bytes() == b"".join(lines)


def test_a_policy_is_measured_once(tmp_path):
    samples = PolicySamples(["a", "b\ud800"], [1.0, 2.0], kl=[0.1, 1 / 3], metadata={"rude": [None, 1.0]})
    kept = KeptPolicies(tmp_path / "measured", OURS)
    assert kept.of("sft", lambda: (samples, 0.1)) == (samples, 0.1)
    assert kept.of("ppo", lambda: (samples, None)) == (samples, None)
    again = KeptPolicies(tmp_path / "measured", OURS)
    assert again.of("sft", lambda: pytest.fail("measured again")) == (samples, 0.1)
    assert again.of("ppo", lambda: pytest.fail("measured again")) == (samples, None)


@pytest.mark.parametrize("line", ["7", '["sft", {}]', '["sft", {"answers": []}, null]', '["sft", 7, null]'])
def test_a_line_that_is_no_policy_is_named(tmp_path, line):
    (tmp_path / "measured").write_text(f"{json.dumps(OURS)}\n{line}\n")
    with pytest.raises(PipelineError, match=r"measured, line 2: no measured policy.*will be made again"):
        KeptPolicies(tmp_path / "measured", OURS)
