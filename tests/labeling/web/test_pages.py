"""What labelers and who leads them can do on the pages, without a browser."""

import io
import json
import re
import zipfile

import pytest
from web_client import Client, ranking

from rlhf_lightning.labeling.tasks import FIELDS, Task
from rlhf_lightning.labeling.web.forms import fields, in_task_order, page_state
from rlhf_lightning.labeling.web.preview import template_preview


def shown(client, path):
    """The number of the task on a page, and its draft."""
    text = client.get(path).text
    draft = re.search(r'data-draft="([^"]*)"', text)[1].replace("&#34;", '"').replace("&amp;", "&")
    return int(re.search(r'data-assignment="(\d+)"', text)[1]), json.loads(draft)


def texts_in_order(client):
    return re.findall(r'aria-label="Text of output \w">(.*?)</div>', client.get("/work/ranking").text)[:4]


def test_ranks_come_back_in_the_order_of_the_task(desk, enter):
    desk.store.add_tasks([ranking(count=4)])
    anna = enter("anna")
    number, _ = shown(anna, "/work/ranking")
    order = [int(text[-1]) for text in texts_in_order(anna)]
    assert sorted(order) == [0, 1, 2, 3]
    # She likes them as they stand on the page, the last two alike.
    answer = {"ranks": [1, 2, 3, 3], "likert": [7, 5, 2, 2], "fields": [{"opinion": True}, {}, {}, {}]}
    assert anna.post(f"/save/{number}", {"answer": answer, "seconds": 3.5, "submission": "x"}).json() == {"saved": True}
    (saved,) = desk.store.answers()
    assert {order[0]: 1, order[1]: 2, order[2]: 3, order[3]: 3} == dict(enumerate(saved.answer["ranks"]))
    assert saved.answer["likert"][order[0]] == 7
    assert saved.answer["fields"][order[0]] == {"opinion": True}
    assert (saved.seconds, saved.order) == (3.5, order)


def test_the_page_and_the_task_are_each_others_inverse():
    order = [2, 0, 3, 1]
    page = {"ranks": [1, 2, 2, 3], "likert": [7, 6, 6, 1], "skipped": "no"}
    from rlhf_lightning.labeling.store import Assignment

    task = in_task_order(page, order)
    assert task["likert"] == [6, 1, 7, 6]  # the response 2 stood first, 0 second, ...
    back = page_state(Assignment(1, ranking(count=4), "anna", order, 0.0, task))["state"]
    assert {name: back[name] for name in page} == page
    assert back["groups"] == [[0], [1, 2], [3]]


def test_a_save_is_one_save_however_often_it_is_sent(desk, enter):
    desk.store.add_tasks([ranking(count=2)])
    anna = enter("anna")
    number, _ = shown(anna, "/work/ranking")
    value = {"answer": {"ranks": [1, 2]}, "seconds": 1, "submission": "once"}
    assert [anna.post(f"/save/{number}", value).json() for _ in range(3)] == [{"saved": True}] * 3
    assert len(desk.store.answers()) + len(desk.store.answers(undone=True)) == 1
    assert "nothing more for you" in anna.get("/work/ranking").text


@pytest.mark.parametrize("page", ["save", "draft", "preview"])
def test_a_number_of_no_task_is_refused(desk, enter, page):
    answer = {"answer": {"ranks": [1, 2]}, "draft": {}, "seconds": 1, "submission": "s"}
    assert enter("anna").post(f"/{page}/{10**22}", answer).status_code == 409


def test_what_is_no_answer_is_refused_with_a_sentence_and_the_draft_stays(desk, enter):
    desk.store.add_tasks([ranking(count=2)])
    anna = enter("anna")
    number, _ = shown(anna, "/work/ranking")
    anna.post(f"/draft/{number}", {"at": 5, "state": {"likert": [3, None]}})
    response = anna.post(f"/save/{number}", {"answer": {"ranks": [1, 3]}, "seconds": 1, "submission": "x"})
    assert response.status_code == 422
    assert "dense" in response.json()["error"]
    assert shown(anna, "/work/ranking") == (number, {"at": 5, "state": {"likert": [3, None]}})


def test_text_that_is_no_unicode_is_a_draft_and_no_answer(desk, enter):
    desk.store.add_tasks([Task("", "demonstration", "b", "Hi.")])
    anna = enter("anna")
    number, _ = shown(anna, "/work/demonstration")
    headers = {"Origin": anna.base, "X-CSRF-Token": anna.csrf, "Content-Type": "application/json"}
    for path, status in (("draft", 200), ("save", 422)):
        content = b'{"answer": {"response": "\\ud800"}, "state": "\\ud800", "seconds": 1, "submission": "x"}'
        content = content if path == "save" else b'{"at": 1, "state": {"response": "\\ud800"}}'
        assert anna.request("POST", f"/{path}/{number}", content=content, headers=headers).status_code == status
    assert shown(anna, "/work/demonstration")[1]["state"]["response"] == "\ud800"


def test_undo_brings_the_answer_back_as_it_stood_on_the_page(desk, enter):
    desk.store.add_tasks([ranking(0), ranking(1)])
    anna = enter("anna")
    number, _ = shown(anna, "/work/ranking")
    assert anna.post("/undo", {}).status_code == 409
    answer = {"ranks": [2, 1, 1], "likert": [1, 5, 6]}
    anna.post(f"/save/{number}", {"answer": answer, "seconds": 1, "submission": "x"})
    assert anna.post("/undo", {}).json() == {"url": "/work/ranking"}
    again, draft = shown(anna, "/work/ranking")
    assert again == number
    assert draft["state"]["likert"] == [1, 5, 6]
    assert draft["state"]["groups"] == [[1, 2], [0]]
    assert desk.store.answers() == []


def test_skipping_is_counted(desk, enter):
    desk.store.add_tasks([ranking(0), ranking(1)])
    anna = enter("anna")
    number, _ = shown(anna, "/work/ranking")
    anna.post(f"/save/{number}", {"answer": {"skipped": "unclear: which frogs?"}, "seconds": 1, "submission": "x"})
    home = anna.get("/").text
    assert "1 done, 1 of them skipped" in home
    assert ">1</span> left" in home


def test_what_a_labeler_writes_alone(desk, enter):
    desk.store.add_tasks([Task("", "demonstration", "b", None, known={"slot": str(slot)}) for slot in range(3)])
    anna = enter("anna")
    pairs = [{"query": "hot", "response": "cold"}, {"query": "up", "response": "down"}]
    answers = [
        {"prompt_kind": "plain", "prompt": "Say hi.", "response": "Hi."},
        {"prompt_kind": "few_shot", "instruction": "Opposites.", "pairs": pairs},
    ]
    previews = []
    for answer in answers:
        number, _ = shown(anna, "/work/demonstration")
        previews.append(anna.post(f"/preview/{number}", {"answer": answer}).json()["text"])
        anna.post(f"/save/{number}", {"answer": answer, "seconds": 1, "submission": answer["prompt_kind"]})
    assert previews == ["Say hi.\n\nHi.", "Opposites.\n\nhot\ncold\n\nup\n\ndown"]
    number, _ = shown(anna, "/work/demonstration")
    assert "Not complete" in anna.post(f"/preview/{number}", {"answer": {"prompt_kind": "plain"}}).json()["text"]
    assert len(desk.store.answers(kind="demonstration")) == 2


def test_the_preview_is_what_the_model_reads_where_that_is_known(desk, enter):
    desk.preview = lambda prompt, response: f"<|user|>{prompt}<|assistant|>{response}"
    desk.store.add_tasks([Task("", "demonstration", "b", "Hi.")])
    anna = enter("anna")
    number, _ = shown(anna, "/work/demonstration")
    said = anna.post(f"/preview/{number}", {"answer": {"prompt_kind": "given", "response": "Ho."}})
    assert said.json() == {"text": "<|user|>Hi.<|assistant|>Ho."}


def test_the_chat_template_of_a_model_writes_the_preview(tmp_path):
    template = """{{ bos_token }}{% for message in messages %}
{% if message.role == "system" %}{{ raise_exception("no system messages") }}{% endif %}
<{{ message.role }}>{{ message.content }}{{ eos_token }}{% endfor %}"""
    (tmp_path / "chat_template.jinja").write_text(template)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"bos_token": {"content": "[B]"}, "eos_token": "[E]", "x_token": null}'
    )
    preview = template_preview(tmp_path)
    assert preview("Hi.", "Ho {{ 7 * 7 }}.") == "[B]<user>Hi.[E]<assistant>Ho {{ 7 * 7 }}.[E]"
    talk = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi."}]
    assert "no system messages" in preview(talk, "Ho.")


def test_every_field_has_a_key_of_its_own():
    names, _, keys = zip(*fields(ranking()), strict=True)
    assert names == FIELDS
    # Keys that mean something else on the same page: undo, skip, next, back, help.
    assert len({*keys, *"zx.,?"}) == len(FIELDS) + 5
    assert fields(Task("", "evaluation", "b", "Hi.", ["a"], form="toxicity")) == []


def test_the_overview_tells_who_did_what_and_how_far_they_agree(desk, enter):
    planted = ranking(9, planted={"ranks": [1, 2, 3]})
    desk.store.add_tasks([ranking(0, labelers_wanted=2), planted])
    lead = enter("lead", "admin")
    assert "No task was done by two" in lead.get("/admin").text
    for name, likes in (("anna", [1, 2, 3]), ("ben", [1, 3, 2])):
        desk.store.add_labeler(name)
        for number in range(2):
            given = desk.store.next_task(name)
            desk.store.save(given.id, name, {"ranks": likes}, 61 + number, f"{name} {number}")
    text = re.sub(r"<[^>]*>|\s+", " ", lead.get("/admin").text)
    text = re.sub(r"\s+", " ", text)
    assert "1 tasks were done by several labelers" in text
    assert "anna and ben 67 %" in text  # they differ on one pair of three
    assert "anna 0 2 0 0 1 min 1 s 100 %" in text
    assert "passes" in text
    assert "below the cut-off" in text  # two pairs of three are less than three of four


def test_the_overview_adds_labelers_once_and_exports(desk, enter):
    desk.store.add_tasks([ranking(0)])
    lead = enter("lead", "admin")
    link = re.search(r"http://127.0.0.1:8765(/l/[\w-]+)", lead.form("/admin/labelers", name="zoe ").text)[1]
    assert "/l/" not in lead.get("/admin").text
    assert "already" in lead.form("/admin/labelers", name="zoe").text
    zoe = Client(lead.app)
    assert zoe.get(link).status_code == 200
    number, _ = shown(zoe, "/work/ranking")
    zoe.post(f"/save/{number}", {"answer": {"ranks": [1, 2, 3]}, "seconds": 1, "submission": "x"})
    archive = zipfile.ZipFile(io.BytesIO(lead.form("/admin/export").content))
    (row,) = archive.read("comparisons.train.jsonl").decode().splitlines()
    assert json.loads(row)["labeler"] == "zoe"
    assert {"answers.jsonl", "demonstrations.train.jsonl", "undone.jsonl"} <= {*archive.namelist()}


def test_instructions_are_the_file_of_the_run(desk, enter):
    anna = enter("anna")
    assert "<h1>Read this</h1>" in anna.get("/instructions").text
    desk.instructions.write_text("## Something *else*\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    text = anna.get("/instructions").text
    assert "<h2>Something <em>else</em></h2>" in text
    assert "<td>2</td>" in text


def test_a_closed_batch_is_no_work(desk, enter):
    desk.store.add_tasks([ranking(0)])
    desk.store.close_batch("b")
    assert "no tasks yet" in enter("anna").get("/").text
