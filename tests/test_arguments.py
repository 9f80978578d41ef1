"""Arguments are checked by their own signature: types, ranges, choices; objects are left alone."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytest
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.arguments import Count, Decay, Fraction, Node, PositiveFloat, Share, checked, fault, nearest

NODE = {"_target_": "torch.nn.Linear"}
WRONG: list[tuple[Any, Any, str]] = [
    (Fraction, 1.5, "a number in [0, 1]"),
    (Fraction, math.nan, "a number in [0, 1]"),
    (Fraction, True, "a number in [0, 1]"),
    (Share, 0, "a number in (0, 1]"),
    (Decay | None, 1, "a number in [0, 1) or None"),
    (PositiveFloat, math.inf, "a finite number above 0"),
    (float, -math.inf, "a finite number"),
    (float | int, "2", "a number"),
    (Count, 0, "a whole number of at least 1"),
    (Count, 2.0, "a whole number of at least 1"),
    (Count, True, "a whole number of at least 1"),
    (bool, 1, "true or false"),
    (str | None, 1, "text or None"),
    (Literal["a", "b"] | None, "c", "one of a, b or None"),
    (str | Sequence[str], [1], "text or a list (text each)"),
    (Sequence[str], "ab", "a list (text each)"),
    (tuple[float, float], [0.9], "a list (a number each) of 2"),
    (tuple[float, float], [0.9, "b"], "a list (a number each) of 2"),
    (Mapping[str, Fraction], {"a": 2}, "a mapping (a number in [0, 1] each)"),
    (Mapping[Literal["a", "b"], Any], {"c": 2}, "a mapping by one of a, b"),
]


@pytest.mark.parametrize(("annotation", "value", "words"), WRONG)
def test_what_is_wrong_is_said(annotation: Any, value: Any, words: str) -> None:
    assert fault(value, annotation) == f"must be {words}, got {value!r}"


@pytest.mark.parametrize(
    ("annotation", "value"),
    [(Fraction, 1), (Decay, 0.0), (float, 2), (Count | None, None), (tuple[float, float], [0.9, 0.95]), (Any, "x")],
)
def test_what_is_right_is_not(annotation: Any, value: Any) -> None:
    assert fault(value, annotation) is None


@pytest.mark.parametrize("annotation", [nn.Module, Callable[[int], int], nn.Module | None, Sequence[nn.Module]])
def test_objects_are_judged_in_settings_alone(annotation: Any) -> None:
    assert fault("cosine", annotation) is None
    said = fault("cosine", annotation, plain=True, objects=Node)
    assert said is not None
    assert said.endswith('got "cosine"')
    assert "a node with _target_" in said
    assert fault([NODE] if annotation == Sequence[nn.Module] else NODE, annotation, objects=Node) is None
    assert fault({"target": "x"}, annotation, objects=Node) is not None


def test_a_setting_is_written_as_people_write_it() -> None:
    assert fault(1, str | None, plain=True) == "must be text or null, got 1; quote it: '1'"
    assert fault(None, Count, plain=True) == "must be a whole number of at least 1, got null"


@checked
def scaled(size: Count, share: Fraction = None, *, items: Iterable[Any] = (), **rest: Any) -> list[Any]:  # type: ignore[assignment]
    return [size, share, *items, rest]


def test_a_checked_function_refuses_by_name() -> None:
    with pytest.raises(ValueError, match=r"^size must be a whole number of at least 1, got 0\.$"):
        scaled(0)
    with pytest.raises(ValueError, match=r"^share must be a number in \[0, 1\], got 7\.$"):
        scaled(1, 7)
    with pytest.raises(TypeError, match="size"):
        scaled()  # type: ignore[call-arg]


@checked
def scored(model: nn.Module | Callable[..., Any], tokenizer: PreTrainedTokenizerBase | None = None) -> Any:
    return model


@pytest.mark.parametrize("value", ["rules:score", 3, 0.5, True])
def test_a_scalar_is_no_model_no_function_and_no_tokenizer(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^model must be a Module or a function, got {value!r}\.$"):
        scored(value)
    with pytest.raises(ValueError, match=rf"^tokenizer must be a PreTrainedTokenizerBase or None, got {value!r}\.$"):
        scored(nn.Identity(), value)
    assert scored(len, None) is len


def test_a_checked_function_is_as_it_was() -> None:
    assert scaled.__name__ == "scaled"
    # A default is right whatever its type says, and what can be gone through once is not.
    assert scaled(2, None, items=iter([3, 4]), more=5) == [2, None, 3, 4, {"more": 5}]
    assert partial(scaled, share=1)(1) == [1, 1, {}]


@checked
@dataclass(frozen=True)
class Settings:
    decay: Decay = 0.5


def test_a_checked_class_checks_its_constructor() -> None:
    assert Settings(0.9) == Settings(decay=0.9)
    with pytest.raises(ValueError, match=r"^decay must be a number in \[0, 1\), got 1\.0\.$"):
        Settings(1.0)


def test_nearest() -> None:
    assert nearest("epoch", ["epochs", "log_every"]) == "epochs"
    assert nearest("kl", ["epochs", "log_every"]) is None
