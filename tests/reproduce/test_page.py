"""The page with all runs, with some, and with none: well-formed, self-contained, every figure there."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_runs import write_runs

from rlhf_lightning.reproduce.__main__ import main
from rlhf_lightning.reproduce.claims import CLAIMS, kinds_of

SEEDS = (1, 2, 3)
TRIED = sum(not claim.undecidable for claim in CLAIMS)
SOME = [claim.number for claim in CLAIMS if claim.name in ("rates", "whole-rankings")]


class Page(HTMLParser):
    """Tags and text; fails where an element is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "col"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "text"):
            self.words.append(data)


def report(folder: Path, *arguments: str) -> tuple[Page, str, dict]:
    assert main(["--only-report", "--runs", str(folder), "--report", str(folder / "out"), *arguments]) == 0
    text = (folder / "out" / "claims.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "http" not in text.replace("http-equiv", "")
    assert "script" not in page.tags
    assert not [
        value for name, value in page.attributes if name in ("src", "href") and not (value or "").startswith("#")
    ]
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    table = (folder / "out" / "claims.md").read_text(encoding="utf-8")
    return page, table, json.loads((folder / "out" / "claims.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_all_runs(tmp_path: Path) -> None:
    write_runs(tmp_path, seeds=SEEDS)
    page, table, numbers = report(tmp_path, "--seeds", "1,2,3")
    assert f"{TRIED} of {TRIED} findings hold; {len(CLAIMS) - TRIED} cannot be decided here" in page.text
    assert [claim["verdict"] for claim in numbers["claims"]].count("holds") == TRIED
    assert table.count("| holds |") == TRIED
    labels = [value or "" for name, value in page.attributes if name == "aria-label"]
    for figure in (
        "claim 1 win rate against large SFT, by training labelers",
        "claim 8 large models",
        "claim 17 small models, accuracy",
        "claim 19 translation",
        "claim 20 win rate against SFT",
        "claim 22 mean Likert score",
        "claim 33 validation loss",
    ):
        assert any(label.startswith(figure + ":") for label in labels), figure
    assert page.tags.count("svg") == len(labels) > 25
    assert numbers["seeds"] == [1, 2, 3]
    assert numbers["cores"] >= 1
    assert numbers["cpu"]
    assert numbers["commits_of_the_runs"] == ["0123456789abcdef"]
    assert {"git_commit", "date", "rules"} <= numbers.keys()
    rows = {(row["measure"], row["at"], row["who"]): row for row in numbers["claims"][0]["rows"]}
    assert rows["win rate against large SFT, by training labelers", "large", "SFT"]["value"] == 0.5


def test_some_runs(tmp_path: Path) -> None:
    write_runs(tmp_path, {("pairs", "all", "loss"): 0.4}, kinds_of(SOME), SEEDS)
    page, table, numbers = report(tmp_path, "--seeds", "1,2,3")
    verdicts = {claim["number"]: claim["verdict"] for claim in numbers["claims"]}
    assert {number for number, verdict in verdicts.items() if verdict in ("holds", "does not hold")} == set(SOME)
    assert f"1 of 2 findings hold; {TRIED - 2} have not been run to the end" in page.text
    assert "shuffled pairs end with the higher validation loss: -0.150" in page.text
    assert "medium-s1" in page.text
    assert table.count("| not run |") == TRIED - 2
    assert page.tags.count("svg") > 5


def test_no_runs(tmp_path: Path) -> None:
    page, _, numbers = report(tmp_path, "--seeds", "4")
    assert f"0 of 0 findings hold; {TRIED} have not been run" in page.text
    assert "fewer than the five seeds" in page.text
    assert "svg" not in page.tags
    assert numbers["commits_of_the_runs"] == []


def test_rules_are_on_the_page(tmp_path: Path) -> None:
    page, _, _ = report(tmp_path, "--seeds", "4")
    for claim in CLAIMS:
        assert " ".join((claim.rule or claim.undecidable).split()) in page.text
        assert " ".join(claim.paper.split()) in page.text


@pytest.mark.slow
def test_a_note_is_shown_only_where_its_claim_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explained = {"note": "The world is <small>.", "failed": ["shuffled pairs end with the higher validation loss"]}
    claims = [replace(claim, **(explained if claim.name == "whole-rankings" else {"note": ""})) for claim in CLAIMS]
    monkeypatch.setattr("rlhf_lightning.reproduce.claims.CLAIMS", claims)
    lower_loss, as_accurate = {("pairs", "all", "loss"): 0.4}, {("pairs", "all", "accuracy"): 0.75}
    for number, changes in enumerate(({}, lower_loss, as_accurate)):
        missed = changes == lower_loss
        runs = tmp_path / str(number)
        write_runs(runs, changes, kinds_of(SOME), SEEDS)
        page, table, numbers = report(runs, "--seeds", "1,2,3")
        assert ("The world is <small>." in page.text) == missed
        assert ("does not hold. The world is <small>." in table) == missed
        assert "small" not in page.tags[: page.tags.index("table")]
        notes = {claim["number"]: claim["note"] for claim in numbers["claims"]}
        assert (notes[SOME[1]] == "The world is <small>.") == missed
        assert notes[SOME[0]] is None
