"""A desk over a store in a temporary folder, and who comes to it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra label")

from web_client import CANARY, Client

from rlhf_lightning.labeling.store import LabelStore
from rlhf_lightning.labeling.web.app import create_app
from rlhf_lightning.labeling.web.desk import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    store = LabelStore(tmp_path / "labels.sqlite")
    instructions = tmp_path / "instructions.md"
    instructions.write_text(
        f"# Read this\n\n{CANARY}\n\n[link](javascript:alert(1)) ![image](http://elsewhere/x.png)\n"
    )
    yield Desk(store, instructions, starts={"start-secret": "me"})
    store.close()


@pytest.fixture
def enter(desk: Desk) -> Callable[..., Client]:
    app = create_app(desk)

    def enter(name: str, role: str = "labeler") -> Client:
        return Client(app).enter(desk.store.add_labeler(name, role))

    return enter
