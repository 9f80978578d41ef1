"""The pages of who leads the labeling: who did what, how far labelers agree, screening, labelers, export."""

import io
import tempfile
import zipfile
from pathlib import Path

from starlette.responses import Response

from rlhf_lightning.evaluation.table_3 import TABLE_3
from rlhf_lightning.labeling.export import write_exports
from rlhf_lightning.labeling.numbers import labeling_numbers
from rlhf_lightning.labeling.web import forms
from rlhf_lightning.labeling.web.desk import Visit

ALPHAS = {"ranks": "Order", **TABLE_3}


def overview(visit: Visit, link: tuple[str, str] | None = None, said: str = "") -> Response:
    """Everything on one page."""
    store = visit.desk.store
    return visit.page(
        "admin.html",
        numbers=labeling_numbers(store),
        batches={batch: store.progress(batch) for batch in dict.fromkeys(task.batch for task in store.tasks())},
        labelers=store.labelers(),
        kinds=forms.KINDS,
        alphas=ALPHAS,
        link=link,
        said=said,
        instructions=visit.desk.instructions,
    )


def add_labeler(visit: Visit) -> Response:
    """Add somebody, and show their link this once."""
    name = _name(visit)
    try:
        return overview(visit, (name, _link(visit, visit.desk.store.add_labeler(name))))
    except ValueError as error:
        return overview(visit, said=str(error))


def new_link(visit: Visit) -> Response:
    """Give somebody a new link; the old one ends, and with it where they are signed in."""
    name = _name(visit)
    token = visit.desk.store.new_token(name)
    if name != visit.account.name:
        visit.desk.sessions.close_all(name)
    return overview(visit, (name, _link(visit, token)))


def set_password(visit: Visit) -> Response:
    """Let somebody sign in by a password, too."""
    name = _name(visit)
    try:
        visit.desk.store.set_password(name, str(visit.sent.get("password", "")))
    except ValueError as error:
        return overview(visit, said=str(error))
    return overview(visit, said=f"{name} can sign in by this password now.")


def export(visit: Visit) -> Response:
    """All that was saved, as a ZIP file of JSON lines."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in write_exports(visit.desk.store, Path(folder)):
            archive.write(path, path.name)
    headers = {"Content-Disposition": 'attachment; filename="labels.zip"'}
    return Response(buffer.getvalue(), media_type="application/zip", headers=headers)


def _name(visit: Visit) -> str:
    return str(visit.sent.get("name", "")).strip()


def _link(visit: Visit, token: str) -> str:
    return f"{visit.desk.site.scheme}://{visit.request.headers['host']}/l/{token}"
