import io

from rich.console import Console

from rlhf_lightning.evaluation.metadata_table import table_3_table
from rlhf_lightning.evaluation.table_3 import TABLE_3
from rlhf_lightning.evaluation.tables import closing_table, markdown_table, measure_table, sample_table
from rlhf_lightning.recipe.legend import legend_of
from rlhf_lightning.recipe.pipeline import RECIPE

LEGEND = legend_of(RECIPE)


def rows_of(table):
    """The table as text: its title, then the cells of each row; the lines of a cell are joined by a space."""
    output = io.StringIO()
    Console(file=output, width=200).print(table)
    lines = output.getvalue().splitlines()
    rows = []
    for line in lines:
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.split("│")[1:-1]]
            if cells[0]:
                rows.append(cells)
            else:
                rows[-1] = [f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)]
    return lines[0].strip(), rows


def interval(value, low, high):
    return {"value": value, "low": low, "high": high}


def test_closing_table_holds_the_numbers():
    def policy(score, win_rate, reward, kl, length, loss):
        named = {"score": score, "win_rate": win_rate, "reward": reward, "kl": kl, "length": length}
        return {**named, "pretrain_loss": loss, "intervals": {}}

    results = {
        "prompts": 1000,
        "baseline": "sft",
        "policies": {
            "sft": policy(interval(0.25, 0.125, 0.375), interval(0.5, 0.5, 0.5), None, 0.0, 9.75, None),
            "ppo": policy(interval(0.5, 0.4, 0.6), interval(0.725, 0.7, 0.75), interval(1.5, 1, 2), 3.125, 12.5, 2.25),
        },
    }
    title, rows = rows_of(closing_table(results, LEGEND))
    assert title == "1000 held-out prompts, win rate against SFT"
    assert rows == [
        ["SFT", "0.250 0.125 .. 0.375", "-", "-", "0.00", "9.8", "-"],
        ["PPO", "0.500 0.400 .. 0.600", "72.5% 70.0% .. 75.0%", "1.50", "3.12", "12.5", "2.250"],
    ]


def test_closing_table_has_a_column_for_every_further_judge():
    even, better = interval(0.5, 0.5, 0.5), interval(0.625, 0.6, 0.65)
    own = {"score": even, "win_rate": even, "reward": None, "kl": None, "length": 4.0, "pretrain_loss": None}
    policies = {"sft": {**own, "judges": {"people": even}}, "prompted": {**own, "judges": {"people": better}}}
    _, rows = rows_of(closing_table({"prompts": 4, "baseline": "sft", "policies": policies}, LEGEND))
    assert rows[0][3] == "-"
    assert rows[1] == [
        "base prompted",
        "0.500 0.500 .. 0.500",
        "50.0% 50.0% .. 50.0%",
        "62.5% 60.0% .. 65.0%",
        *"--",
        "4.0",
        "-",
    ]


def test_a_judge_that_said_nothing_gets_a_dash():
    own = {"score": interval(0.5, 0.5, 0.5), "win_rate": interval(0.5, 0.5, 0.5), "reward": None, "kl": None}
    own |= {"length": 4.0, "pretrain_loss": None, "judges": {"model": None}}
    _, rows = rows_of(closing_table({"prompts": 4, "baseline": "sft", "policies": {"sft": own, "ppo": own}}, LEGEND))
    assert rows[1][3] == "-"


def test_table_3_says_what_is_measured_and_what_is_not():
    half = interval(0.5, 0.25, 0.75)
    fields = dict.fromkeys(TABLE_3)
    measured = {"likert": interval(4.5, 4, 5), "hallucination": half}
    policies = {"sft": {"table_3": fields | measured}, "ppo": {"table_3": fields | {"likert": interval(5, 4, 6)}}}
    table = table_3_table({"policies": policies}, LEGEND)
    assert table is not None
    _, rows = rows_of(table)
    assert rows == [
        ["Overall quality", "4.50 4.00 .. 5.00", "5.00 4.00 .. 6.00"],
        ["Hallucination", "50.0% 25.0% .. 75.0%", "-"],
    ]
    assert str(table.caption).startswith("not measured: Fails to follow the correct instruction / task; Inappropriate")
    shown = measure_table({"policies": policies}, "table_3")
    assert shown is not None
    assert [name for name, _ in shown["rows"]] == [*TABLE_3.values()]
    cells = {name: [cell["value"] for cell in own] for name, own in shown["rows"]}
    assert cells["Expresses opinion"] == ["not measured", "not measured"]
    assert cells["Hallucination"] == ["0.500", "-"]
    nothing = {"policies": {"sft": {"table_3": fields}, "ppo": {}}}
    assert table_3_table(nothing, LEGEND) is None
    assert measure_table(nothing, "table_3") is None


def test_samples_stand_side_by_side():
    samples = {
        "prompts": ["p1", "p2", "p3"],
        "sft": {"responses": ["a", "b", "c"]},
        "ppo": {"responses": ["d", "e", "f"]},
    }
    title, rows = rows_of(sample_table(samples, LEGEND, count=2))
    assert title == "The first 2 held-out prompts, one sample each"
    assert rows == [["p1", "a", "d"], ["p2", "b", "e"]]


def test_a_table_of_markdown():
    assert markdown_table(["set", "sft", "ppo"], [["drop", "1", "2"]]) == (
        "| set | sft | ppo |\n| --- | --: | --: |\n| drop | 1 | 2 |"
    )


def test_samples_cannot_move_the_terminal():
    samples = {"prompts": ["a\x1b[2Jb"], "sft": {"responses": ["\x1b]0;title\x07 and \x9b31m \u202edlrow"]}}
    output = io.StringIO()
    Console(file=output, width=120, force_terminal=True, color_system=None).print(sample_table(samples, LEGEND))
    written = output.getvalue()
    assert r"a\x1b[2Jb" in written
    assert r"\x1b]0;title\x07 and \x9b31m \u202edlrow" in written
    assert not set("\x1b\x07\x9b\u202e") & set(written)
