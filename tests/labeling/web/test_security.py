"""What the page refuses, who sees what, and that text of prompts and responses stays text."""

import html
import re
from html.parser import HTMLParser

import pytest
from web_client import BASE, CANARY, Client, ranking

from rlhf_lightning.labeling.tasks import Task
from rlhf_lightning.labeling.web.app import create_app
from rlhf_lightning.labeling.web.guard import Rate, Site


class Seen(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.addresses = set(), set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "script":
            self.scripts.append(dict(attrs).get("src", "inline"))
        # A link may lead elsewhere, when somebody follows it; nothing else may.
        names = ("src", "action", *(("href",) if tag != "a" else ()))
        self.addresses += [value for name, value in attrs if name in names]
        self.scripts += [value for name, value in attrs if name == "href" and value.startswith("javascript")]


ANSWER = {"ranks": [1, 2, 2], "likert": [7, 3, 3]}


def said(submission="s"):
    return {"answer": ANSWER, "seconds": 2, "submission": submission}


def opened(client, path="/work/ranking"):
    return int(re.search(r'data-assignment="(\d+)"', client.get(path).text)[1])


def test_nobody_sees_anything_without_a_link(desk):
    desk.store.add_tasks([ranking()])
    stranger = Client(create_app(desk))
    for path in ("/", "/work/ranking", "/own", "/instructions", "/admin"):
        assert stranger.get(path).status_code == 401
    for path in ("/save/1", "/draft/1", "/preview/1", "/undo", "/admin/labelers", "/admin/export", "/sign-out"):
        assert stranger.post(path, {}).status_code == 401
    assert stranger.get("/l/guessed").status_code == 404
    assert desk.store.progress()["given_out"] == 0


def test_the_link_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(desk, enter):
    response = Client(create_app(desk)).get(f"/l/{desk.store.add_labeler('zoe')}")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert response.headers["referrer-policy"] == "no-referrer"
    # The cookie is no link, nor the other way round: neither the history nor a log of addresses has what signs in.
    secret = cookie.split("=", 1)[1].split(";")[0]
    assert Client(create_app(desk)).get(f"/l/{secret}").status_code == 404


def test_a_restart_signs_nobody_out_and_a_new_link_does(desk, enter):
    anna, lead = enter("anna"), enter("lead", "admin")
    again = Client(create_app(desk))
    again.cookies = anna.cookies
    assert again.get("/").status_code == 200
    link = re.search(r"/l/([\w-]+)", lead.form("/admin/link", name="anna").text)[1]
    assert again.get("/").status_code == 401
    assert again.enter(link).get("/").status_code == 200
    again.form("/sign-out")
    assert again.get("/").status_code == 401


def test_the_link_of_the_start_holds_as_long_as_the_server(desk):
    desk.store.add_labeler("me", "admin")
    assert Client(create_app(desk)).enter("start-secret").get("/admin").status_code == 200


def test_passwords(desk, enter):
    lead = enter("lead", "admin")
    enter("anna")
    assert "10 characters" in lead.form("/admin/password", name="anna", password="short").text
    lead.form("/admin/password", name="anna", password="a long password")
    browser = Client(create_app(desk))
    assert browser.form("/sign-in", name="anna", password="another password").status_code == 403
    assert browser.form("/sign-in", name="anna", password="a long password").status_code == 200
    assert browser.get("/").status_code == 200
    desk.attempts = Rate(per_second=0.1, burst=2, clock=lambda: 0.0)
    tries = [browser.form("/sign-in", name="lead", password="guess").status_code for _ in range(4)]
    assert tries == [403, 403, 429, 429]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://127.0.0.1:8765"}, 403),
        ({"Origin": ""}, 403),
        ({"X-CSRF-Token": "f" * 64}, 403),
        ({"X-CSRF-Token": ""}, 403),
        ({"Host": "evil.example:8765", "Origin": "http://evil.example:8765"}, 421),
        ({"Host": "127.0.0.1.evil.example", "Origin": "http://127.0.0.1.evil.example"}, 421),
        ({"Host": "127.0.0.1@evil.example"}, 421),
        ({}, 200),
    ],
)
def test_only_our_own_pages_can_send(desk, enter, headers, status):
    desk.store.add_tasks([ranking()])
    anna = enter("anna")
    number = opened(anna)
    assert anna.post(f"/save/{number}", said(), **headers).status_code == status
    assert len(desk.store.answers()) == (status == 200)


def test_a_stranger_by_another_name_of_the_host_reads_nothing(desk, enter):
    anna = enter("anna")
    assert anna.get("/", headers={"Host": "rebound.example:8765"}).status_code == 421
    assert anna.get("/static/page.js", headers={"Host": "rebound.example:8765"}).status_code == 421


def test_a_public_page_is_at_its_name_alone(desk):
    desk.site = Site(frozenset({"label.example.org"}), secure=True)
    app = create_app(desk)
    outside = Client(app, "https://label.example.org")
    token = desk.store.add_labeler("anna")
    cookie = outside.get(f"/l/{token}").headers["set-cookie"]
    assert cookie.startswith("__Host-")
    assert "Secure" in cookie
    assert outside.get("/").status_code == 200
    assert outside.post("/undo", {}).status_code == 409  # nothing to take back, but let in
    assert Client(app, BASE).get("/").status_code == 421


def test_what_is_too_large_or_no_object_is_refused(desk, enter):
    desk.store.add_tasks([ranking()])
    anna = enter("anna")
    number = opened(anna)
    assert anna.post(f"/draft/{number}", {"state": "x" * 1_000_001}).status_code == 413
    headers = {"Origin": BASE, "X-CSRF-Token": anna.csrf, "Content-Type": "application/json"}
    for content in (b"", b"[1]", b"{", b"\xff", b"[" * 100_000, b'{"answer": 1}', b'{"answer": {}, "seconds": "1"}'):
        response = anna.request("POST", f"/save/{number}", content=content, headers=headers)
        assert response.status_code == 400, content[:20]
        assert response.json()["error"]

    async def endless():
        while True:
            yield b"x" * 100_000

    response = anna.request("POST", f"/draft/{number}", content=endless(), headers=headers)
    assert response.status_code == 413
    assert desk.store.answers() == []


def test_too_much_of_one_labeler_does_not_stop_another(desk, enter):
    desk.requests = Rate(per_second=1, burst=10, clock=lambda: 0.0)
    anna, ben = enter("anna"), enter("ben")
    assert [anna.get("/").status_code for _ in range(20)].count(429) == 11  # one went into signing in
    assert ben.get("/").status_code == 200


def test_a_rate_by_hand():
    now = [0.0]
    rate = Rate(per_second=2, burst=3, clock=lambda: now[0])
    assert [rate.allows("a") for _ in range(4)] == [True, True, True, False]
    assert rate.allows("b")
    now[0] = 0.5
    assert [rate.allows("a") for _ in range(2)] == [True, False]


def test_labelers_see_and_change_their_own_work_alone(desk, enter):
    desk.store.add_tasks([ranking(0), ranking(1)])
    anna, ben = enter("anna"), enter("ben")
    hers, his = opened(anna), opened(ben)
    assert hers != his
    for path, value in ((f"/save/{hers}", said()), (f"/draft/{hers}", {"state": {}}), (f"/preview/{hers}", {})):
        assert ben.post(path, value).status_code == 409
    assert ben.post(f"/draft/{hers}", None).status_code == 409
    anna.post(f"/save/{hers}", said())
    assert ben.post("/undo", {}).status_code == 409
    assert "Prompt 0" in anna.get("/own").text
    assert "Prompt" not in ben.get("/own").text
    assert [answer.labeler for answer in desk.store.answers()] == ["anna"]


def test_only_who_leads_sees_the_overview(desk, enter):
    anna = enter("anna")
    assert anna.get("/admin").status_code == 404
    for path in ("labelers", "link", "password", "export"):
        assert anna.form(f"/admin/{path}", name="anna", password="a long password").status_code == 404
    assert [each.name for each in desk.store.labelers()] == ["anna"]


def test_files_outside_are_not_served(desk, enter):
    anna = enter("anna")
    for path in (
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/",
    ):
        assert anna.get(path).status_code == 404
    assert anna.get("/static/label.css").status_code == 200
    assert "MIT License" in anna.get("/static/sortable-LICENSE.txt").text


def test_every_answer_has_the_headers(desk, enter):
    anna = enter("anna")
    for path in ("/", "/nothing", "/static/page.js", "/sign-in"):
        headers = anna.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
    assert anna.get("/").headers["cache-control"] == "no-store"


def test_text_stays_text_on_every_page(desk, enter):
    talk = [{"role": "system", "content": CANARY}, {"role": "user", "content": CANARY}]
    known = {"use_case": CANARY, "source": CANARY, "labels": {CANARY: CANARY}}
    desk.store.add_tasks(
        [
            Task("", "ranking", CANARY, talk, [CANARY, f"{CANARY} 2"], [CANARY, None], known=known),
            Task("", "evaluation", CANARY, CANARY, [CANARY], [CANARY]),
            Task("", "demonstration", CANARY, CANARY, known=known),
            Task("", "demonstration", "own", None, known={**known, "prompt_kind": "user_based"}),
        ]
    )
    lead = enter("lead", "admin")
    texts = [lead.get(f"/work/{kind}").text for kind in ("ranking", "evaluation", "demonstration")]
    number = opened(lead, "/work/demonstration")
    lead.post(f"/draft/{number}", {"at": 1, "state": {"response": CANARY}})
    texts.append(lead.get("/work/demonstration").text)
    answer = {"prompt_kind": "given", "response": CANARY}
    assert lead.post(f"/save/{number}", {"answer": answer, "seconds": 1, "submission": "1"}).json() == {"saved": True}
    texts += [lead.get(path).text for path in ("/work/demonstration", "/own", "/admin", "/instructions", "/")]
    lead.form("/admin/labelers", name=CANARY)
    texts.append(lead.form("/admin/labelers", name=CANARY).text)
    for text in texts:
        seen = Seen()
        seen.feed(text)
        assert seen.tags.isdisjoint({"img", "b", "iframe", "style", "svg"})
        assert not [name for name in seen.attributes if name.startswith("on") or name == "style"]
        assert all(source.startswith("/static/") for source in seen.scripts)
        assert not [address for address in seen.addresses if not re.match(r"/(?!/)|#", address)]
        assert "49" not in re.sub(r"\d{2,}:\d\d|[0-9a-f]{16,}", "", text)  # what {{ 7 * 7 }} would become
    assert html.escape(CANARY) in texts[0].replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    assert all("policies" not in text and "sft" not in text for text in texts)
