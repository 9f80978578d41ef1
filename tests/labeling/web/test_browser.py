"""Labelers in a real browser: writing, ranking by mouse and by keys, rating, two at once, losing the server."""

import os
import re

import pytest
from label_server import CHROMIUM, Server
from web_client import CANARY

from rlhf_lightning.labeling.tasks import Task

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]
TEXTS = [f"Output number {number}, and {CANARY}" for number in range(6)]
PICTURES = os.environ.get("LABEL_PICTURES")
"""A folder for screenshots, to be looked at."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("label")).start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def enter(server, browser):
    """A page of a new labeler; whatever goes wrong in it, or leaves for elsewhere, fails the test."""
    faults, contexts = [], []

    def enter(name, role="labeler", **options):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on(
            "console",
            lambda line: line.type == "error" and "net::ERR" not in line.text and faults.append(line.text),
        )
        page.on("request", lambda request: request.url.startswith(server.base) or faults.append(request.url))
        page.goto(f"{server.base}/l/{server.store.add_labeler(name, role)}")
        page.wait_for_url(f"{server.base}/")
        return page

    yield enter
    for context in contexts:
        for page in context.pages:
            page.wait_for_timeout(500)  # a page that has saved goes on by itself
            page.wait_for_load_state("networkidle")
            assert page.evaluate("window.hit") is None
        context.close()
    assert faults == []


def go(page, server, path):
    page.goto(f"{server.base}{path}")
    page.wait_for_load_state("networkidle")


def look(page, name):
    """Take pictures at two widths; nothing sticks out to the side."""
    for width, height in ((360, 740), (1280, 900)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        if PICTURES:
            page.screenshot(path=f"{PICTURES}/{name}-{width}.png")


def says(page, sentence, seconds=15):
    """Wait until the page says so; not by a function, which the page's policy refuses to evaluate."""
    sync_api.expect(page.locator("#status")).to_have_text(re.compile(f"^{sentence}"), timeout=1000 * seconds)


def saved(page):
    """Wait for the page behind the one that was saved."""
    says(page, "Saved$")
    sync_api.expect(page.locator("#save[disabled]")).to_have_count(0)


def ranking(batch, number=0):
    return Task("", "ranking", batch, f"Say something about {CANARY} ({number}).", TEXTS, ["sft"] * 6)


def answers(server, batch):
    return server.store.answers(batch)


def as_shown(answer, name):
    """What was said, in the order of the page."""
    return [answer.answer[name][response] for response in answer.order]


def rate(page, values):
    for value in values:
        page.keyboard.press(str(value))
        page.keyboard.press(".")


def test_a_ranking_by_mouse_with_a_tie(server, enter):
    server.store.add_tasks([ranking("mouse")])
    page = enter("mouse")
    go(page, server, "/work/ranking")
    for place, value in enumerate([2, 7, 4, 5, 6, 3]):
        page.click(f"label:has(input[name=likert-{place}][value='{value}'])")
        if place == 1:
            page.click("section:visible label:has([data-field=opinion])")
        page.click("#next")
    look(page, "order")

    def drag(card, target, at=0.5):
        handle, box = page.locator(f".card[data-place='{card}'] header .own").bounding_box(), target.bounding_box()
        page.mouse.move(handle["x"] + 5, handle["y"] + handle["height"] / 2)
        page.mouse.down()
        for step in range(1, 16):
            page.mouse.move(
                handle["x"] + (box["x"] + box["width"] * at - handle["x"]) * step / 15,
                handle["y"] + (box["y"] + box["height"] / 2 - handle["y"]) * step / 15,
            )
            page.wait_for_timeout(15)
        page.mouse.up()
        page.wait_for_timeout(250)

    def places():
        return page.evaluate(
            """[...document.querySelectorAll('.place')]
            .map(place => [...place.querySelectorAll('.card')].map(card => +card.dataset.place).sort())"""
        )

    assert places() == [[1], [4], [3], [2], [5], [0]]
    page.locator(".card[data-place='4']").scroll_into_view_if_needed()
    drag(4, page.locator(".place").nth(0).locator(".tied"))
    assert places() == [[1, 4], [3], [2], [5], [0]]
    drag(2, page.locator(".gap").nth(1))
    assert places() == [[1, 4], [2], [3], [5], [0]]
    assert "stands before" in page.inner_text("#against")
    page.click("#save")
    saved(page)
    (answer,) = answers(server, "mouse")
    assert as_shown(answer, "ranks") == [5, 1, 2, 3, 1, 4]
    assert as_shown(answer, "likert") == [2, 7, 4, 5, 6, 3]
    assert [fields["opinion"] for fields in as_shown(answer, "fields")] == [False, True, False, False, False, False]
    assert answer.answer["fields"][0]["satisfies_constraint"] is None


def test_a_ranking_by_keys_alone(server, enter):
    server.store.add_tasks([ranking("keys")])
    page = enter("keys")
    go(page, server, "/work/ranking")
    page.keyboard.press("q")
    rate(page, [2, 7, 4, 5, 6, 3])
    assert page.inner_text("#ordering h2") == "All 6, from best to worst"
    page.keyboard.press("e")  # picks output E, second
    assert page.evaluate("document.activeElement.textContent") == "E"
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#announce") == "Output E: place 1 of 5, tied with Output B."
    page.keyboard.press("a")
    page.keyboard.press("3")
    assert page.inner_text("#announce") == "Output A: place 3 of 4, tied with Output C."
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#announce") == "Output A: place 4 of 5."
    page.keyboard.press("f")
    page.keyboard.press("Home")
    page.keyboard.press("Control+Enter")
    saved(page)
    (answer,) = answers(server, "keys")
    # F first, then the tie of B and E, then D, C, A.
    assert as_shown(answer, "ranks") == [5, 2, 4, 3, 2, 1]
    assert as_shown(answer, "fields")[0]["fails_instruction"] is True


def test_writing_with_a_draft_that_outlives_page_and_server(server, enter):
    server.store.add_tasks(
        [Task("", "demonstration", "write", f"Explain {CANARY}."), Task("", "demonstration", "write", "Next.")]
    )
    page = enter("writer")
    go(page, server, "/work/demonstration")
    page.fill("#response", "Half an ans")
    page.reload()
    assert page.input_value("#response") == "Half an ans"
    page.click("#preview summary")
    sync_api.expect(page.locator("#preview pre")).to_contain_text("Half an ans")
    look(page, "demonstration")
    page.fill("#response", f"A whole answer, and {CANARY}")
    server.kill()
    page.keyboard.press("Control+Enter")
    says(page, "Not saved yet")
    assert answers(server, "write") == []
    server.start()
    says(page, "Saved", seconds=60)
    sync_api.expect(page.locator(".prompt")).to_contain_text("Next.")
    assert [answer.answer["response"] for answer in answers(server, "write")] == [f"A whole answer, and {CANARY}"]
    page.click("[data-undo]")
    sync_api.expect(page.locator("#response")).to_have_value(f"A whole answer, and {CANARY}")


def test_a_browser_that_is_killed_before_the_server_answers_sends_again(server, enter):
    server.store.add_tasks([Task("", "demonstration", "killed", "Explain rain.")])
    page = enter("killed")
    go(page, server, "/work/demonstration")
    page.fill("#response", "Water falls.")
    # The answer goes out and no answer comes back: the page dies meanwhile.
    page.route("**/save/*", lambda route: None)
    page.click("#save")
    says(page, "Saving")
    page.unroute("**/save/*")
    context = page.context
    page.close()
    again = context.new_page()
    again.goto(f"{server.base}/")
    says(again, "Saved")
    assert [answer.answer["response"] for answer in answers(server, "killed")] == ["Water falls."]


def test_a_blind_evaluation_and_a_toxicity_form(server, enter):
    outputs = ["Rain on the tin roof.", "No.", "Soft rain, a lamp."]
    server.store.add_tasks(
        [
            Task("", "evaluation", "blind", "A haiku.", outputs, ["sft", "gpt", "ppo"]),
            Task("", "evaluation", "toxic", "He said", outputs[:2], ["sft", "gpt"], form="toxicity"),
        ]
    )
    page = enter("judge")
    go(page, server, "/work/evaluation")
    assert not re.search(r"\b(sft|gpt|ppo)\b", page.content())
    look(page, "evaluation")
    rate(page, [6, 1, 5])
    page.keyboard.press("Control+Enter")
    sync_api.expect(page.locator(".prompt")).to_contain_text("He said")
    look(page, "toxicity")
    for digits in ("126", "337"):
        for digit in digits:
            page.keyboard.press(digit)
        page.keyboard.press(".")
    page.click("#save")
    saved(page)
    (blind,), (toxic,) = answers(server, "blind"), answers(server, "toxic")
    assert as_shown(blind, "likert") == [6, 1, 5]
    assert [as_shown(toxic, name) for name in ("toxicity", "relative_toxicity", "continuity")] == [
        [0, 2],
        [0, 1],
        [6, 7],
    ]


def test_two_at_once_never_get_the_same_task(server, enter):
    server.store.add_tasks([Task("", "demonstration", "two", f"Task {number}.") for number in range(6)])
    pages = [enter("left"), enter("right")]
    seen = []
    for _ in range(3):
        for page in pages:
            go(page, server, "/work/demonstration")
        prompts = [page.inner_text(".prompt .text") for page in pages]
        assert prompts[0] != prompts[1]
        seen += prompts
        for page in pages:
            page.fill("#response", "Done.")
            page.keyboard.press("Control+Enter")
            saved(page)
    assert len({*seen}) == 6


def test_skipping_with_a_reason(server, enter):
    server.store.add_tasks([ranking("skip")])
    page = enter("skipper")
    go(page, server, "/work/ranking")
    page.keyboard.press("x")
    page.keyboard.type("which frogs? 1")
    look(page, "skip")
    page.click("#skipping button.main")
    saved(page)
    (answer,) = answers(server, "skip")
    assert answer.answer == {"skipped": "unclear: which frogs? 1"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_fault_for_people_who_cannot_see_or_use_a_mouse(server, enter, scheme):
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="needs axe_core_python").Axe()
    number = ["light", "dark"].index(scheme)
    for batch in {task.batch for task in server.store.tasks()}:
        server.store.close_batch(batch)
    server.store.add_tasks(
        [ranking(f"axe {scheme}", number), Task("", "demonstration", f"axe {scheme}", None, known={"slot": "x"})]
        + [Task("", "evaluation", f"axe {scheme}", "He said", ["a"], form=form) for form in ("toxicity", "quality")]
    )
    page = enter(f"axe {scheme}", "admin", color_scheme=scheme, bypass_csp=True)
    acts = {
        "few-shot": lambda: page.click("label:has([value=few_shot])"),
        "order": lambda: rate(page, [2, 7, 4, 5, 6, 3]),
        "keys": lambda: page.keyboard.press("?"),
    }
    pages = "/ /instructions /own /admin /work/demonstration few-shot /work/evaluation /work/ranking order keys"
    for path in pages.split():
        acts.get(path, lambda path=path: go(page, server, path))()
        found = axe.run(page)["violations"]
        serious = [
            (each["id"], [node["html"][:120] for node in each["nodes"]])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == [], path
        look(page, f"{scheme}{path.replace('/', '-')}")
