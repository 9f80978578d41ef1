"""The page with all runs, with some, and with none: well-formed, self-contained, every figure there."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_runs import write_runs

from rlhf_lightning.reproduce.__main__ import main
from rlhf_lightning.reproduce.claims import CLAIMS, kinds_of


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


def test_all_runs(tmp_path: Path) -> None:
    write_runs(tmp_path)
    page, table, numbers = report(tmp_path)
    assert "12 of 12 claims hold" in page.text
    assert [claim["verdict"] for claim in numbers["claims"]] == ["holds"] * 12
    assert table.count("| holds |") == 12
    labels = [value or "" for name, value in page.attributes if name == "aria-label"]
    for figure in (
        "claim 1 win rate against large SFT, by the true utility",
        "claim 3 large models",
        "claim 6 small models, few-shot accuracy",
        "claim 7 few-shot accuracy",
        "claim 7 win rate against SFT",
        "claim 8 mean Likert score",
        "claim 11 validation loss",
        "claim 12 pretraining loss by text rows",
    ):
        assert any(label.startswith(figure + ":") for label in labels), figure
    assert page.tags.count("svg") == len(labels) > 25
    assert numbers["seeds"] == [1, 2, 3]
    assert numbers["cores"] >= 1
    assert numbers["cpu"]
    assert numbers["commits_of_the_runs"] == ["0123456789abcdef"]
    assert {"git_commit", "date", "rules"} <= numbers.keys()
    rows = {(row["measure"], row["at"], row["who"]): row for row in numbers["claims"][0]["rows"]}
    assert rows["win rate against large SFT, by the true utility", "large", "SFT"]["value"] == 0.5


def test_some_runs(tmp_path: Path) -> None:
    write_runs(tmp_path, {("pairs", "all", "loss"): 0.4}, kinds_of([8, 9]))
    page, table, numbers = report(tmp_path)
    verdicts = {claim["number"]: claim["verdict"] for claim in numbers["claims"]}
    assert {number for number, verdict in verdicts.items() if verdict != "not run"} == {8, 9}
    assert "1 of 2 claims hold; 10 have not been run to the end" in page.text
    assert "shuffled pairs end with the higher validation loss: -0.150" in page.text
    assert "medium-s1" in page.text
    assert table.count("| not run |") == 10
    assert page.tags.count("svg") > 5


def test_no_runs(tmp_path: Path) -> None:
    page, _, numbers = report(tmp_path, "--seeds", "4")
    assert "0 of 0 claims hold; 12 have not been run" in page.text
    assert "fewer than the three seeds" in page.text
    assert "svg" not in page.tags
    assert numbers["commits_of_the_runs"] == []


def test_rules_are_on_the_page(tmp_path: Path) -> None:
    page, _, _ = report(tmp_path, "--seeds", "4")
    for claim in CLAIMS:
        assert " ".join(claim.rule.split()) in page.text
        assert claim.paper in page.text


def test_a_note_is_shown_only_where_its_claim_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explained = {"note": "The world is <small>.", "failed": ["shuffled pairs end with the higher validation loss"]}
    claims = [replace(claim, **(explained if claim.number == 9 else {"note": ""})) for claim in CLAIMS]
    monkeypatch.setattr("rlhf_lightning.reproduce.claims.CLAIMS", claims)
    lower_loss, as_accurate = {("pairs", "all", "loss"): 0.4}, {("pairs", "all", "accuracy"): 0.75}
    for number, changes in enumerate(({}, lower_loss, as_accurate)):
        missed = changes == lower_loss
        runs = tmp_path / str(number)
        write_runs(runs, changes, kinds_of([8, 9]))
        page, table, numbers = report(runs)
        assert ("The world is <small>." in page.text) == missed
        assert ("does not hold. The world is <small>." in table) == missed
        assert "small" not in page.tags[: page.tags.index("table")]
        notes = {claim["number"]: claim["note"] for claim in numbers["claims"]}
        assert (notes[9] == "The world is <small>.") == missed
        assert notes[8] is None
