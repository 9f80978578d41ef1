"""The application: which address is which page."""

from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from rlhf_lightning.labeling.web import admin, pages
from rlhf_lightning.labeling.web.desk import Desk, Handler, follow_link, for_labelers, sign_in, sign_out
from rlhf_lightning.labeling.web.guard import Guard

STATIC = Path(__file__).with_name("static")


class _Files(StaticFiles):
    """Files of the page, which a browser keeps and asks each time whether they are new."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def create_app(desk: Desk) -> Starlette:
    """The application for a desk, as any ASGI server runs it."""

    def route(path: str, handler: Handler, method: str = "GET", role: str | None = None) -> Route:
        return Route(path, for_labelers(handler, role), methods=[method])

    routes = [
        Mount("/static", _Files(directory=STATIC), name="static"),
        Route("/l/{token}", follow_link),
        Route("/sign-in", sign_in, methods=["GET", "POST"]),
        route("/sign-out", sign_out, "POST"),
        route("/", pages.home),
        route("/work/{kind}", pages.work),
        route("/save/{number:int}", pages.save, "POST"),
        route("/draft/{number:int}", pages.draft, "POST"),
        route("/preview/{number:int}", pages.preview, "POST"),
        route("/undo", pages.undo, "POST"),
        route("/own", pages.own),
        route("/instructions", pages.instructions),
        route("/admin", admin.overview, role="admin"),
        route("/admin/labelers", admin.add_labeler, "POST", role="admin"),
        route("/admin/link", admin.new_link, "POST", role="admin"),
        route("/admin/password", admin.set_password, "POST", role="admin"),
        route("/admin/export", admin.export, "POST", role="admin"),
    ]
    handlers: dict[int | type[Exception], Callable[[Request, Exception], Response]] = {
        404: lambda _, error: desk.page("refused.html", 404, said="There is no such page."),
        405: lambda _, error: desk.page("refused.html", 405, said="This address cannot be used so."),
    }
    app = Starlette(routes=routes, middleware=[Middleware(Guard, desk.site)], exception_handlers=handlers)
    app.state.desk = desk
    return app
