"""Steps that need the extra `curation`."""

import random
import sys

import pytest

from rlhf_lightning.curation.language import LanguageIdentifier
from rlhf_lightning.curation.near import near_duplicate_groups
from rlhf_lightning.curation.personal import Finding
from rlhf_lightning.curation.presidio import PresidioFinder

REASON = "needs the extra curation"


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("datasketch", lambda: near_duplicate_groups(["a"])),
        ("py3langid", LanguageIdentifier),
        ("presidio_analyzer", PresidioFinder),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, package, use):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf"needs {package.split('.')[0]}.*: pip install 'rlhf-lightning\[curation\]'"
    ):
        use()


def jaccard(first, second):
    sets = [{text[start : start + 5] for start in range(len(text) - 4)} for text in (first, second)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


STORY = "please write a short story about a small cat that lives in a house by the sea and catches fish every day"
ALIKE = STORY.replace("small cat", "small dog")
LESS = "could you tell me how a cat that lives in a house by the sea learns to swim without being afraid of water"


def test_near_duplicates():
    pytest.importorskip("datasketch", reason=REASON)
    assert jaccard(STORY, ALIKE) > 0.85
    assert jaccard(STORY, LESS) < 0.6
    assert near_duplicate_groups([STORY, LESS, ALIKE, "hi", STORY]).tolist() == [0, 1, 0, 3, 0]
    assert near_duplicate_groups([]).tolist() == []


def test_near_duplicates_are_the_same_in_any_order():
    pytest.importorskip("datasketch", reason=REASON)
    source = random.Random(0)
    words = [f"word{number}" for number in range(200)]
    texts = [" ".join(source.choices(words, k=20)) for _ in range(40)]
    texts += [text.replace(text.split()[7], "other") for text in texts[:15]]

    def groups(order):
        found = {}
        for text, group in zip(order, near_duplicate_groups(order), strict=True):
            found.setdefault(int(group), set()).add(text)
        return {frozenset(group) for group in found.values()}

    first = groups(texts)
    assert len(first) < 45
    for _ in range(3):
        source.shuffle(texts)
        assert groups(texts) == first


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Write a short story about a cat that lives by the sea.", "en"),
        ("Schreibe eine kurze Geschichte über eine Katze, die am Meer lebt.", "de"),
        ("Écris une courte histoire sur un chat qui vit au bord de la mer.", "fr"),
        ("写一个关于住在海边的猫的短故事。", "zh"),
        ("12345", "unsure"),
    ],
)
def test_languages(text, language):
    pytest.importorskip("py3langid", reason=REASON)
    assert LanguageIdentifier()(text) == language


def test_presidio_without_a_model():
    pytest.importorskip("presidio_analyzer", reason=REASON)
    find = PresidioFinder()
    text = "send it to 16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ for John Smith"
    assert find(text) == [Finding("crypto", 11, 45)]
    assert find("what does the cat eat in 2021 ?") == []


def test_presidio_with_a_model_that_is_not_installed():
    pytest.importorskip("presidio_analyzer", reason=REASON)
    with pytest.raises(OSError, match="no_such_model"):
        PresidioFinder("no_such_model")
