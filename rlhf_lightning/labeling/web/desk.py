"""What all pages share: the store, who asks, what they sent, and how a page is written."""

import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from rlhf_lightning.data.records import RecordError
from rlhf_lightning.labeling.accounts import Account
from rlhf_lightning.labeling.store import LabelStore
from rlhf_lightning.labeling.web.guard import Rate, Site
from rlhf_lightning.labeling.web.preview import Preview
from rlhf_lightning.labeling.web.sessions import Sessions, csrf_token
from rlhf_lightning.runs.errors import PipelineError

TEMPLATES = Path(__file__).with_name("templates")


@dataclass
class Desk:
    """Where labelers come to.

    Args:
        store: Tasks and answers.
        instructions: The Markdown file that labelers read.
        site: Where the page is.
        preview: What a model will read of a demonstration.
        starts: Secrets of links that hold as long as this server runs, and whose they are.
    """

    store: LabelStore
    instructions: Path
    site: Site = field(default_factory=Site)
    preview: Preview | None = None
    starts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Prepare what is made once."""
        self.sessions = Sessions(self.store)
        self.pages = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.pages.globals["moment"] = _moment
        self.requests = Rate(per_second=10, burst=100)
        self.attempts = Rate(per_second=1 / 6, burst=20)

    @property
    def cookie(self) -> str:
        """The name of the cookie: browsers keep those of all ports of a machine together."""
        return f"{'__Host-' if self.site.secure else ''}rlhf-label-{self.sessions.site}"

    def page(
        self, name: str, status: int = 200, account: Account | None = None, token: str = "", **values: Any
    ) -> Response:
        """A page by its template."""
        shared = {"account": account, "csrf": csrf_token(token) if token else "", "site": self.sessions.site}
        return HTMLResponse(self.pages.get_template(name).render(shared | values), status)

    def owner(self, token: str) -> Account | None:
        """Whose secret link it is."""
        for known, name in self.starts.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                return next((each for each in self.store.labelers() if each.name == name), None)
        return self.store.labeler_of(token)

    def sign_in(self, account: Account) -> Response:
        """Let a browser in.

        Not by a redirect: to a cookie of the strict kind that belongs to the site from which one followed the link.
        """
        response = self.page("welcome.html", account=account)
        response.set_cookie(
            self.cookie,
            self.sessions.open(account.name),
            max_age=self.sessions.lasts,
            httponly=True,
            samesite="strict",
            secure=self.site.secure,
        )
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


@dataclass(frozen=True)
class Visit:
    """A request of somebody who is signed in.

    Args:
        desk: Where they came to.
        request: What they asked for.
        account: Who it is.
        token: The secret of their session.
        sent: What they sent: the fields of a form, or a JSON object.
    """

    desk: Desk
    request: Request
    account: Account
    token: str
    sent: dict[str, Any]

    def page(self, name: str, status: int = 200, **values: Any) -> Response:
        """A page for them."""
        return self.desk.page(name, status, self.account, self.token, **values)


Handler = Callable[[Visit], Response]


def for_labelers(handler: Handler, role: str | None = None) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint for those who are signed in; what they send is read, and comes from a page that we gave them.

    Args:
        handler: Makes the answer; it may wait.
        role: Of those who may; None is everybody.
    """

    async def endpoint(request: Request) -> Response:
        body = await request.body()
        return await run_in_threadpool(_answer, request, body, handler, role)

    return endpoint


def _answer(request: Request, body: bytes, handler: Handler, role: str | None) -> Response:
    desk: Desk = request.app.state.desk
    is_json = request.headers.get("content-type", "").split(";")[0] == "application/json"
    try:
        token = request.cookies.get(desk.cookie, "")
        account = desk.sessions.account(token) if token else None
        if account is None:
            raise HTTPException(401, "You are not signed in: open your link.")
        if not desk.requests.allows(account.name):
            raise HTTPException(429, "Too many requests; wait a moment.")
        if role is not None and account.role != role:
            raise HTTPException(404, "There is no such page.")
        sent = _sent(body, is_json) if request.method == "POST" else {}
        if request.method == "POST":
            given = request.headers.get("x-csrf-token") or str(sent.get("csrf", ""))
            if not hmac.compare_digest(given.encode(errors="replace"), csrf_token(token).encode()):
                raise HTTPException(403, "This was not sent by a page that you opened; load the page again.")
        return handler(Visit(desk, request, account, token, sent))
    except (HTTPException, ValueError, OSError, PipelineError) as error:
        status, sentence = _refusal(error)
        if is_json:
            return JSONResponse({"error": sentence}, status)
        if status == 401:
            return desk.page("sign_in.html", 401, said="")
        return desk.page("refused.html", status, said=sentence)


def _refusal(error: Exception) -> tuple[int, str]:
    if isinstance(error, HTTPException):
        return error.status_code, error.detail
    if isinstance(error, RecordError | UnicodeError):
        return 422, str(error)
    return 409 if isinstance(error, ValueError) else 503, str(error)


def _sent(body: bytes, is_json: bool) -> dict[str, Any]:
    try:
        if not is_json:
            return {
                name: values[-1]
                for name, values in parse_qs(body.decode(), keep_blank_values=True, max_num_fields=50).items()
            }
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "What was sent cannot be read.") from error
    if not isinstance(value, dict | None):
        raise HTTPException(400, "What was sent is no object.")
    return value or {}


async def follow_link(request: Request) -> Response:
    """Sign in by a secret link."""
    desk: Desk = request.app.state.desk
    account = await run_in_threadpool(desk.owner, request.path_params["token"])
    if account is None:
        return desk.page("sign_in.html", 404, said="This link is not one of ours, or it was replaced by a new one.")
    return await run_in_threadpool(desk.sign_in, account)


async def sign_in(request: Request) -> Response:
    """Sign in by name and password."""
    desk: Desk = request.app.state.desk
    if request.method == "GET":
        return desk.page("sign_in.html", said="")
    sent = _sent(await request.body(), is_json=False)
    name, password = str(sent.get("name", "")), str(sent.get("password", ""))
    address = request.client.host if request.client else "nobody"
    if not (desk.attempts.allows(f"from {address}") and desk.attempts.allows(f"as {name}")):
        return desk.page("sign_in.html", 429, said="Too many attempts; wait a minute.")
    account = await run_in_threadpool(desk.store.check_password, name, password)
    if account is None:
        return desk.page("sign_in.html", 403, said="Name or password are not right.")
    return await run_in_threadpool(desk.sign_in, account)


def sign_out(visit: Visit) -> Response:
    """Sign this browser out."""
    visit.desk.sessions.close(visit.token)
    response = RedirectResponse("/sign-in", 303)
    response.delete_cookie(visit.desk.cookie, secure=visit.desk.site.secure, httponly=True, samesite="strict")
    return response


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
