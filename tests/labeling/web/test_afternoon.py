"""A person of the sealed world has the whole afternoon of docs/label.md, in a real browser and by the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from label_server import CHROMIUM, Server

from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.data.labeling import record_row
from rlhf_lightning.labeling.export import write_exports
from rlhf_lightning.labeling.web.command import demonstration_slots
from rlhf_lightning.runs.errors import WaitingError
from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.sandbox.data import SandboxData
from rlhf_lightning.sandbox.labelers import screened_labelers

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium"),
    pytest.mark.filterwarnings("ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
]
WRITTEN, RANKED, RATED = 20, 30, 10
AFTERNOON = [
    "run=mine",
    "rounds=2",
    "stages=[sft,collect,reward,ppo_ptx,evaluate]",
    "data=jsonl",
    "data.lengths={max_prompt_tokens: 48, max_response_tokens: 26, block_size: 192, prompt_template: '{prompt}'}",
    "model.size=small",
    "sft.fit.epochs=2",
    "sft.data.batch_size=4",
    "collect.labelers=people",
    f"collect.prompts={{train: {RANKED - 5}, validation: 5}}",
    "collect.sampling={min_responses: 3, max_responses: 5}",
    "reward.bias_demonstrations=0",
    "ppo.data={batch_size: 16, num_batches: 3}",
    "ppo_ptx.data.text_batch_size=4",
    "evaluate=sandbox",
    "evaluate.policies=[sft,ppo_ptx]",
    "evaluate.num_prompts=40",
    f"evaluate.people={{prompts: {RATED}}}",
]


def rlhf(folder: Path) -> None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        places = [f"paths.runs={folder}/runs", f"data.root={folder}/own", f"data.labels={folder}/runs/mine/labels"]
        run(compose("config", [*places, *AFTERNOON]))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Prompts and text of the world, as somebody's own files."""
    world, folder = SandboxData(prompts=120, demonstrations=8, text=60, validation=60), tmp_path / "own"
    folder.mkdir()
    for kind, split in (("prompts", "train"), ("prompts", "validation"), ("prompts", "test"), ("text", "train")):
        rows = [json.dumps(record_row(record)) for record in world.records(kind, split) or []]
        (folder / f"{kind}.{split}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    return folder


class Person:
    """Looks at the page, and does what it asks."""

    def __init__(self, page: sync_api.Page, server: Server) -> None:
        (self.taste,) = screened_labelers(1)
        self.page, self.server = page, server
        page.goto(f"{server.base}/l/{server.store.add_labeler(self.taste.name)}")
        page.wait_for_url(f"{server.base}/")

    def work(self, kind: str, do: Callable[[str], None]) -> int:
        """All tasks of a kind; returns how many there were."""
        count, page = 0, self.page
        page.goto(f"{self.server.base}/work/{kind}")
        page.wait_for_load_state("networkidle")
        while (form := page.locator("#work")).count():
            assignment = form.get_attribute("data-assignment")
            do(page.inner_text(".prompt .text"))
            page.keyboard.press("Control+Enter")
            # The page goes on by itself.
            page.wait_for_function("id => document.querySelector('#work')?.dataset.assignment !== id", arg=assignment)
            page.wait_for_load_state("networkidle")
            count += 1
        return count

    def write(self, prompt: str) -> None:
        self.page.fill("#response", self.taste.demonstrate(prompt))

    def texts(self) -> list[str]:
        return [text.strip() for text in self.page.locator(".output .output-text").all_text_contents()]

    def rank(self, prompt: str) -> None:
        """The page puts outputs in the order of the scores, so that scores by rank are an order."""
        for rank in self.taste.rank(prompt, self.texts()):
            self.page.keyboard.press(str(8 - rank))
            self.page.keyboard.press(".")

    def rate(self, prompt: str) -> None:
        for text in self.texts():
            self.page.keyboard.press(str(self.taste.likert(prompt, text)))
            self.page.keyboard.press(".")


def test_an_afternoon(tmp_path: Path, own: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    server = Server(folder)
    server.store.add_tasks(demonstration_slots(WRITTEN, own / "prompts.train.jsonl"))
    server.start()
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            person = Person(browser.new_page(), server)
            assert person.work("demonstration", person.write) == WRITTEN
            write_exports(server.store, folder / "labels")
            for _ in range(2):
                with pytest.raises(WaitingError, match=rf"collect waits .*rlhf-label {folder}\."):
                    rlhf(tmp_path)
                assert person.work("ranking", person.rank) == RANKED
                with pytest.raises(WaitingError, match="evaluate waits"):
                    rlhf(tmp_path)
                assert person.work("evaluation", person.rate) == RATED
            rlhf(tmp_path)
            browser.close()
    finally:
        server.kill()
    for round_folder, policies in ((folder, {"sft"}), (folder / "round-2", {"sft", "ppo_ptx"})):
        rows = (round_folder / "collect" / "comparisons.train.jsonl").read_text().splitlines()
        assert len(rows) == RANKED - 5
        for row in map(json.loads, rows):
            assert row["ranks"] == person.taste.rank(row["prompt"], row["completions"])
            assert row["labeler"] == person.taste.name
            assert set(row["labeling"]["policies"]) <= policies
        people = read_stage(round_folder / "evaluate")["metrics"]["people"]
        assert people["answers"] == RATED
        assert set(people["policies"]) == {"sft", "ppo_ptx"}
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "By people" in page
    assert "Rankings" in page
