"""How a ranking came about: what people said besides, what they were shown, and whose responses they ranked."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast


class Labeling(TypedDict, total=False):
    """For reports; nothing is learned from it. Lists have an entry for each completion."""

    policies: list[str | None]
    """Who wrote each completion."""
    likert: list[float | None]
    """How good each one is on its own, from 1 to 7."""
    fields: list[dict[str, bool]]
    """What is so about each one, by the names of `rlhf_lightning.evaluation.table_3.TABLE_3`."""
    order: list[int]
    """The places of the completions in the order in which they were shown."""
    round: int
    """In which round of the recipe, from 1."""


_ENTRIES = {"policies": (str, type(None)), "likert": (int, float, type(None)), "fields": (dict,)}
"""What is said of each completion, and as what."""


def is_labeling(value: object, count: int) -> bool:
    """Whether a value can be the labeling of a ranking of so many completions."""
    if not isinstance(value, dict) or not value.keys() <= Labeling.__annotations__.keys():
        return False
    order, number = value.get("order", [*range(count)]), value.get("round", 1)
    places = isinstance(order, list) and {*map(type, order)} <= {int} and sorted(order) == [*range(count)]
    entries = [
        isinstance(own := value[name], list) and len(own) == count and all(isinstance(each, kinds) for each in own)
        for name, kinds in _ENTRIES.items()
        if name in value
    ]
    return places and type(number) is int and number > 0 and all(entries)


def labeling_at(labeling: Labeling | None, places: Sequence[int]) -> Labeling | None:
    """What a labeling says of the completions at these places, in that order.

    Examples:
        >>> labeling_at({"policies": ["sft", "ppo", "sft"], "order": [2, 0, 1]}, [1, 2])
        {'policies': ['ppo', 'sft'], 'order': [1, 0]}
    """
    if labeling is None:
        return None
    found: dict[str, Any] = dict(labeling)
    for name in found.keys() & _ENTRIES.keys():
        found[name] = [found[name][place] for place in places]
    if "order" in found:
        found["order"] = [places.index(place) for place in found["order"] if place in places]
    return cast(Labeling, found)


def record_row(record: Any) -> dict[str, Any]:
    """A record as its line of a file has it: with its `labeling` where it has one, and all else always."""
    fields: Mapping[str, Any] = vars(record)
    return {name: value for name, value in fields.items() if name != "labeling" or value is not None}
