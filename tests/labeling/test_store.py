"""What the store promises: nothing twice, nothing lost, sentences for what is wrong."""

import random
import resource
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhf_lightning.data.records import RecordError
from rlhf_lightning.labeling.database import VERSION
from rlhf_lightning.labeling.store import LabelStore
from rlhf_lightning.labeling.tasks import Task
from rlhf_lightning.runs.errors import PipelineError

RANKS = {"ranks": [1, 2, 2]}


def ranking(number, batch="b", **changes):
    return Task("", "ranking", batch, f"p{number}", ["x", "y", "z"], ["sft", "ppo", None], **changes)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    made = LabelStore(tmp_path / "run" / "labels.sqlite", lease_seconds=60, clock=clock)
    for name in ("ann", "bob", "cem"):
        made.add_labeler(name)
    yield made
    made.close()


def save(store, labeler, answer=RANKS, seconds=2.0):
    assignment = store.next_task(labeler)
    assert store.save(assignment.id, labeler, answer, seconds, f"{labeler}/{random.random()}")
    return assignment


def test_tasks_are_added_once(store):
    tasks = [ranking(0), ranking(1), ranking(2, batch="c"), Task("", "demonstration", "b", "p")]
    assert store.add_tasks(tasks) == 4
    assert store.add_tasks([*tasks, ranking(3)]) == 1
    assert store.tasks() == [*tasks, ranking(3)]
    assert store.tasks("b", "ranking") == [ranking(0), ranking(1), ranking(3)]
    assert store.add_tasks([ranking(0, known={"user": "another with the same prompt"})]) == 0
    with pytest.raises(ValueError, match=r"there is a task \w+ already, with another 'labelers_wanted' \(1, not 2\)"):
        store.add_tasks([ranking(4), ranking(0, labelers_wanted=2)])
    assert store.tasks() == [*tasks, ranking(3)]


def test_a_task_stays_in_hands_until_it_is_saved(store):
    store.add_tasks([ranking(0), ranking(1)])
    first, other = store.next_task("ann"), store.next_task("bob")
    assert (first.task, other.task) == (ranking(0), ranking(1))
    assert store.next_task("ann") == first
    assert store.next_task("cem") is None
    assert store.progress() == {"wanted": 2, "done": 0, "skipped": 0, "given_out": 2}
    assert store.save(first.id, "ann", {"skipped": "unclear"}, 3.0, "s")
    assert store.next_task("ann") is None
    assert store.progress() == {"wanted": 2, "done": 1, "skipped": 1, "given_out": 1}


def test_an_order_of_their_own_is_kept(store):
    task = Task("", "ranking", "b", "p", [f"r{number}" for number in range(9)], labelers_wanted=3)
    store.add_tasks([task])
    orders = {name: store.next_task(name).order for name in ("ann", "bob", "cem")}
    assert all(sorted(order) == [*range(9)] for order in orders.values())
    assert len({*map(tuple, orders.values())}) == 3
    save(store, "ann", {"ranks": [1] * 9})
    assert store.answers()[0].order == orders["ann"]
    assert store.next_task("bob").order == orders["bob"]


def test_shared_tasks_go_to_as_many_as_are_wanted_and_to_nobody_twice(store):
    store.add_tasks([ranking(0, labelers_wanted=2), ranking(1)])
    assert save(store, "ann").task.prompt == "p0"
    assert store.next_task("ann").task.prompt == "p1"
    assert store.next_task("bob").task.prompt == "p0"
    assert store.next_task("cem") is None
    assert store.progress()["wanted"] == 3


def test_everybody_gets_planted_items_and_progress_knows_nothing_of_them(store):
    store.add_tasks([ranking(0, planted={"ranks": [1, 2, 3]}), ranking(1)])
    for name in ("ann", "bob", "cem"):
        assert save(store, name).task.planted == {"ranks": [1, 2, 3]}
    assert save(store, "cem").task.prompt == "p1"
    assert store.next_task("ann") is None
    assert store.progress() == {"wanted": 1, "done": 1, "skipped": 0, "given_out": 0}


def test_kinds_and_batches(store):
    store.add_tasks([ranking(0), Task("", "demonstration", "c", None)])
    assert store.next_task("ann", "demonstration").task.prompt is None
    assert store.next_task("ann", "ranking").task == ranking(0)
    assert store.next_task("ann", "evaluation") is None
    assert store.next_task("ann", "demonstration").task.prompt is None  # still in hands
    assert store.next_task("bob", "demonstration") is None
    assert store.progress("c") == {"wanted": 1, "done": 0, "skipped": 0, "given_out": 1}
    assert store.progress("nothing") == {"wanted": 0, "done": 0, "skipped": 0, "given_out": 0}


def test_what_nobody_works_on_goes_to_somebody_else(store, clock):
    store.add_tasks([ranking(0)])
    mine = store.next_task("ann")
    clock.now += 59
    store.save_draft(mine.id, "ann", {"ranks": [1]})
    clock.now += 59
    store.save_draft(mine.id, "ann", None)  # a sign of life
    clock.now += 59
    assert store.next_task("bob") is None
    clock.now += 2
    assert store.progress()["given_out"] == 0
    assert store.next_task("bob").task == ranking(0)
    assert store.next_task("ann") is None
    clock.now += 61
    back = store.next_task("ann")  # bob has gone to sleep as well
    assert (back.id, back.draft) == (mine.id, {"ranks": [1]})
    assert store.next_task("bob") is None


def test_an_answer_after_its_time_is_kept(store, clock):
    store.add_tasks([ranking(0), ranking(1)])
    late = store.next_task("ann")
    clock.now += 61
    save(store, "bob")
    assert store.save(late.id, "ann", {"ranks": [2, 1, 1]}, 9.0, "late")
    assert [(answer.labeler, answer.task.prompt) for answer in store.answers()] == [("bob", "p0"), ("ann", "p0")]
    assert store.progress() == {"wanted": 2, "done": 1, "skipped": 0, "given_out": 0}
    assert store.next_task("cem").task == ranking(1)


def test_saving_again_changes_nothing(store):
    store.add_tasks([ranking(0), ranking(1)])
    mine = store.next_task("ann")
    for answer in (RANKS, {"ranks": [2, 1, 1]}):  # as a page that heard no answer sends it again
        assert store.save(mine.id, "ann", answer, 5.0, "one")
    (answer,) = store.answers()
    assert (answer.answer, answer.seconds, answer.submission) == (RANKS, 5.0, "one")
    assert store.undo("ann").draft == RANKS
    assert store.save(mine.id, "ann", RANKS, 5.0, "one")
    assert store.answers() == []  # what was taken back stays so, however late the page sends it again
    other = store.next_task("bob")
    with pytest.raises(ValueError, match="was saved for another task"):
        store.save(other.id, "bob", RANKS, 5.0, "one")


def test_an_answer_said_anew_leaves_the_old_one_in_the_history(store, clock):
    store.add_tasks([ranking(0)])
    mine = store.next_task("ann")
    store.save(mine.id, "ann", RANKS, 5.0, "one")
    clock.now += 1
    store.save(mine.id, "ann", {"ranks": [2, 1, 1]}, 6.0, "two")
    assert [answer.answer["ranks"] for answer in store.answers()] == [[2, 1, 1]]
    (old,) = store.answers(undone=True)
    assert (old.answer, old.submission, old.undone_at) == (RANKS, "one", clock.now)
    assert store.progress()["done"] == 1


def test_undo_goes_back_answer_by_answer(store):
    store.add_tasks([ranking(number) for number in range(3)])
    done = [save(store, "ann", {"ranks": [1, 2, 3]}), save(store, "ann")]
    save(store, "bob")
    assert store.undo("cem") is None
    reopened = store.undo("ann")
    assert (reopened.id, reopened.draft, reopened.order) == (done[1].id, RANKS, done[1].order)
    assert store.next_task("ann").id == done[1].id
    assert store.undo("ann").id == done[0].id
    assert store.undo("ann") is None
    assert [answer.labeler for answer in store.answers()] == ["bob"]
    assert store.progress() == {"wanted": 3, "done": 1, "skipped": 0, "given_out": 2}
    assert [answer.answer for answer in store.answers(undone=True)] == [{"ranks": [1, 2, 3]}, RANKS]
    save(store, "ann", {"ranks": [3, 2, 1]})
    assert [answer.answer for answer in store.answers()] == [RANKS, {"ranks": [3, 2, 1]}]


def test_a_task_that_was_taken_back_and_left_goes_to_somebody_else(store, clock):
    store.add_tasks([ranking(0)])
    save(store, "ann")
    store.undo("ann")
    assert store.next_task("bob") is None
    clock.now += 61
    assert store.next_task("bob").task == ranking(0)


def test_a_closed_batch_is_given_out_no_more_and_keeps_its_answers(store):
    store.add_tasks([ranking(0), ranking(1), ranking(2), ranking(3, batch="c")])
    save(store, "ann")
    late, other = store.next_task("ann"), store.next_task("bob")
    store.close_batch("b")
    assert store.undo("ann") is None
    assert store.next_task("ann").task == ranking(3, batch="c")
    assert store.next_task("bob") is None
    assert store.save(late.id, "ann", RANKS, 1.0, "late")
    assert store.save(other.id, "bob", RANKS, 1.0, "later")
    assert len(store.answers("b")) == 3
    # What the run has gone on with stays; the same saving sent once more is known.
    assert store.save(late.id, "ann", RANKS, 1.0, "late")
    with pytest.raises(ValueError, match="this answer is in use already, and stays as it is"):
        store.save(late.id, "ann", {"skipped": "changed my mind"}, 1.0, "anew")
    assert [answer.skipped for answer in store.answers("b")] == [False] * 3


@pytest.mark.parametrize(
    ("labeler", "answer", "seconds", "submission", "said"),
    [
        ("bob", RANKS, 1.0, "s", "no task 1 was given to bob"),
        ("ann", {"ranks": [1, 2]}, 1.0, "s", "'ranks' must hold 3 values"),
        ("ann", RANKS, float("nan"), "s", "seconds must be a number of at least 0, got nan"),
        ("ann", RANKS, -1.0, "s", "seconds must be"),
        ("ann", RANKS, 1.0, "", "submission must be 1 to 100 characters"),
    ],
)
def test_what_cannot_be_saved_leaves_everything_as_it_was(store, labeler, answer, seconds, submission, said):
    store.add_tasks([ranking(0)])
    mine = store.next_task("ann")
    with pytest.raises((RecordError, ValueError), match=said):
        store.save(mine.id, labeler, answer, seconds, submission)
    assert store.answers() == []
    assert store.next_task("ann") == mine


def test_strangers_get_nothing(store):
    store.add_tasks([ranking(0)])
    with pytest.raises(ValueError, match="there is no labeler 'zed'"):
        store.next_task("zed")
    mine = store.next_task("ann")
    with pytest.raises(ValueError, match="no task 1 was given to bob"):
        store.save_draft(mine.id, "bob", {})
    for number in (99, 0, 10**30):
        with pytest.raises(ValueError, match=f"no task {number} was given to ann"):
            store.save_draft(number, "ann", {})


def test_any_text_comes_back(store):
    text = 'Zoë said "ja"\\n \u2028 \x00 \U0001f600 <script>alert(1)</script> \'; DROP TABLE saves; --'
    store.add_tasks([Task("", "demonstration", text, text, known={"user": text})])
    mine = store.next_task("ann")
    store.save_draft(mine.id, "ann", {"response": "\ud800"})
    assert store.next_task("ann").draft == {"response": "\ud800"}
    store.save(mine.id, "ann", {"response": text}, 1.0, text)
    (answer,) = store.answers(text)
    assert (answer.task.prompt, answer.answer["response"], answer.submission) == (text, text, text)


def test_links_and_passwords(store):
    pytest.importorskip("argon2", reason="extra label is not installed")
    token = store.add_labeler("Zoë K.", "admin")
    assert (store.labeler_of(token).name, store.labeler_of(token).role) == ("Zoë K.", "admin")
    assert [account.name for account in store.labelers()] == ["ann", "bob", "cem", "Zoë K."]
    assert store.labeler_of("") is None
    store.set_password("ann", "correct horse")
    assert store.check_password("ann", "correct horse").name == "ann"
    for name, password in (("ann", "correct hors"), ("bob", ""), ("nobody", "nobody")):
        assert store.check_password(name, password) is None
    renewed = store.new_token("Zoë K.")
    assert store.labeler_of(token) is None
    assert store.labeler_of(renewed).name == "Zoë K."
    content = b"".join(path.read_bytes() for path in store.path.parent.iterdir())
    assert renewed.encode() not in content
    assert b"correct horse" not in content
    for arguments, said in (
        (("ann",), "there is a labeler 'ann' already"),
        ((" ann",), "the name of a labeler must be"),
        (("a/b",), "the name of a labeler must be"),
        (("x" * 65,), "the name of a labeler must be"),
        (("dan", "root"), "role must be one of labeler, admin"),
    ):
        with pytest.raises(ValueError, match=said):
            store.add_labeler(*arguments)
    with pytest.raises(ValueError, match="a password needs 10 characters"):
        store.set_password("ann", "short")
    with pytest.raises(ValueError, match="there is no labeler 'dan'"):
        store.new_token("dan")


def test_many_at_once_never_get_the_same_task(tmp_path):
    """Two of the threads share a store, as the threads of a server do; the others have one each, as processes do."""
    path, count = tmp_path / "labels.sqlite", 60
    shared = LabelStore(path)
    shared.add_tasks([ranking(number) for number in range(count)])
    names = [f"labeler {number}" for number in range(8)]
    for name in names:
        shared.add_labeler(name)
    start = threading.Barrier(len(names))

    def work(name):
        store = shared if name in names[:2] else LabelStore(path)
        start.wait()
        done = []
        while (mine := store.next_task(name)) is not None:
            if not done:
                start.wait()  # each has one
            done.append(mine.task.id)
            store.save(mine.id, name, RANKS, 1.0, mine.task.id)
        return done

    with ThreadPoolExecutor(len(names)) as pool:
        done = [task for tasks in pool.map(work, names) for task in tasks]
    assert len(done) == len({*done}) == count
    assert shared.progress() == {"wanted": count, "done": count, "skipped": 0, "given_out": 0}
    assert {answer.labeler for answer in shared.answers()} == {*names}


def test_many_make_the_same_file_at_once(tmp_path):
    path = tmp_path / "labels.sqlite"
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        LabelStore(path).add_labeler(f"labeler {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(LabelStore(path).labelers()) == 8


def test_it_waits_for_those_who_mend_the_file(store, monkeypatch):
    """In some moments SQLite says at once that the file is busy, whatever its time limit is."""
    busy, begun = sqlite3.OperationalError("database is locked"), store._begun
    busy.sqlite_errorname = "SQLITE_BUSY_RECOVERY"
    refusals = iter([busy, busy])

    def begin(how):
        for error in refusals:
            raise error
        return begun(how)

    monkeypatch.setattr(store, "_begun", begin)
    assert len(store.labelers()) == 3


def test_what_is_saved_is_on_the_disk(store):
    with store.writing() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_a_full_disk_keeps_what_was_saved(store):
    store.add_tasks([Task("", "demonstration", "b", f"p{number}") for number in range(30)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    saved, said = [], ""
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        while not said:
            try:
                save(store, "ann", {"response": "r" * 20_000}, float(len(saved)))
                saved.append(float(len(saved)))
            except OSError as error:
                said = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "nothing was saved, what was saved before is kept. Make room and try again" in said
    assert 1 < len(saved) < 30
    assert [answer.seconds for answer in store.answers()] == saved
    save(store, "ann", {"response": "now there is room"})
    assert LabelStore(store.path).answers()[-1].answer == {"response": "now there is room"}


def test_a_writer_that_stays_away_is_said(tmp_path, clock):
    store = LabelStore(tmp_path / "labels.sqlite")
    store._patience = 0.01
    with (
        LabelStore(store.path).writing(),
        pytest.raises(TimeoutError, match=r"was busy for 0\.01 seconds; nothing was"),
    ):
        store.add_labeler("ann")
    assert store.labelers() == []


def damaged(path: Path, start: int) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + 4096] = random.Random(0).randbytes(4096)
    path.write_bytes(content)


def of_another_program(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


def newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: damaged(path, 0), "is damaged .*Put it back from a copy"),
        (lambda path: damaged(path, 8192), "is damaged .*Put it back from a copy"),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "is damaged"),
        (lambda path: path.write_text("not a database, " * 99), "is damaged"),
        (of_another_program, "is a database of another program"),
        (newer, f"was written by a newer rlhf_lightning .version {VERSION + 1} of its tables, {VERSION} is known"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_left_alone(store, harm, said):
    store.add_tasks([ranking(number) for number in range(50)])
    store.close()
    harm(store.path)
    before = store.path.read_bytes()
    with pytest.raises(PipelineError, match=said):
        LabelStore(store.path)
    assert store.path.read_bytes() == before
