"""A part of a source, drawn at random: what trains on a million of 96 million rows."""

import json
from collections import Counter

import pytest

from rlhf_lightning.data.records import RecordError, Text
from rlhf_lightning.data.rows.records_of import drawn, read_records
from rlhf_lightning.data.sources import FileData


def test_as_many_as_wanted_in_their_order():
    found = list(drawn(range(1000), 50))
    assert len(set(found)) == 50
    assert found == sorted(found) == list(drawn(range(1000), 50))
    assert list(drawn(iter(range(5)), 5)) == list(drawn(range(5), 9)) == [0, 1, 2, 3, 4]
    assert list(drawn(range(5), None)) == [0, 1, 2, 3, 4]


def test_each_is_as_likely():
    """Of 40 items 10 are drawn: over 500 strangers each comes up in a quarter of them."""
    counts = Counter(each % 40 for start in range(500) for each in drawn(_after(start), 10))
    # 500 draws with chance 1/4: 5 standard deviations are 48.
    assert len(counts) == 40
    assert all(abs(count - 125) < 48 for count in counts.values())


def _after(start):
    """The items, rolled, so that the same places fall on others."""
    return [(start * 7 + number) % 40 for number in range(40)]


def test_malformed_rows_are_not_among_them(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{n}"} if n % 2 else {"other": n}) + "\n" for n in range(40)))
    aside = []
    records = read_records({"path": str(path), "sample": 8}, Text, aside.append)
    assert len(records) == 8
    assert len(aside) == 20
    numbers = [int(record.text[1:]) for record in records]
    assert numbers == sorted(numbers)
    assert numbers[-1] > 15


def test_a_sample_is_a_count(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "t"}\n')
    with pytest.raises(RecordError, match=r"data.source.files.text.train.sample must be .* got 0"):
        FileData(str(tmp_path), {"text": {"train": {"path": "text.jsonl", "sample": 0}}})


def test_samples_of_another_size_are_other_records(tmp_path):
    (tmp_path / "text.jsonl").write_text('{"text": "t"}\n{"text": "u"}\n')

    def data(**options):
        return FileData(str(tmp_path), {"text": {"train": {"path": "text.jsonl", **options}}})

    assert len(data(sample=1).records("text", "train")) == 1
    assert data(sample=1).fingerprint() != data().fingerprint()
