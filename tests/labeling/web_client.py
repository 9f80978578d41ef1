"""A browser without a browser, and tasks to label."""

import asyncio
import re
from typing import Any

import httpx

from rlhf_lightning.labeling.tasks import Task

BASE = "http://127.0.0.1:8765"
CANARY = '<script>window.hit = 1</script>{{ 7 * 7 }}<img src=x onerror="window.hit=1">\' onload="window.hit=1" <b>'


class Client:
    """Somebody's browser: keeps cookies, sends what browsers send."""

    def __init__(self, app: Any, base: str = BASE) -> None:
        self.app, self.base, self.cookies = app, base, httpx.Cookies()
        self.csrf = ""

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url=self.base, cookies=self.cookies) as client:
                response = await client.request(method, path, **options)
                self.cookies = client.cookies
                return response

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx.Response:
        response = self.request("GET", path, **options)
        if found := re.search(r'data-csrf="(\w+)"', response.text):
            self.csrf = found[1]
        return response

    def post(self, path: str, value: Any = None, **headers: str) -> httpx.Response:
        """Send JSON as our scripts do."""
        return self.request(
            "POST", path, json=value, headers={"Origin": self.base, "X-CSRF-Token": self.csrf, **headers}
        )

    def form(self, path: str, **fields: str) -> httpx.Response:
        return self.request("POST", path, data={"csrf": self.csrf, **fields}, headers={"Origin": self.base})

    def enter(self, token: str) -> "Client":
        assert self.get(f"/l/{token}").status_code == 200
        assert self.get("/").status_code == 200
        return self


def ranking(number: int = 0, count: int = 3, **fields: Any) -> Task:
    return Task("", "ranking", "b", f"Prompt {number}", [f"text {place}" for place in range(count)], **fields)
