"""Types with ranges, and the check of arguments against the types that a signature gives them.

The typed signature is the only schema: constructors and functions check their own arguments by it (`checked`), and the
recipe the settings that become those arguments. Pydantic judges scalars, texts, choices, None, and lists and mappings
of them; objects (models, factories, protocols) are left to the code that uses them.
"""

import inspect
import json
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, reduce, wraps
from numbers import Number
from operator import or_
from os import PathLike, fspath
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Len, Lt
from pydantic import AfterValidator, AllowInfNan, ConfigDict, TypeAdapter, ValidationError

PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]
"""Also a share or a dropout that must not be all."""
Share = Annotated[float, Gt(0), Le(1)]
Count = Annotated[int, Ge(1)]
AtLeastTwo = Annotated[int, Ge(2)]
NonNegativeInt = Annotated[int, Ge(0)]


def _described(node: Mapping[str, Any]) -> Mapping[str, Any]:
    if "_target_" not in node:
        raise ValueError("it names no class")
    return node


Node = Annotated[Mapping[str, Any], AfterValidator(_described)]
"""The object that a setting describes."""

_STRICT = ConfigDict(strict=True)
_SCALARS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_LIST: Any = Sequence
_MAPPING: Any = Mapping
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Parameters(NamedTuple):
    """What a callable takes by name.

    Args:
        types: The annotation of each parameter; `Any` where it has none.
        defaults: Values of those that may be left out.
        keywords: Names of those that are given by name alone.
        takes_any: Whether further names go into a mapping such as `**options`.
    """

    types: dict[str, Any]
    defaults: dict[str, Any]
    keywords: tuple[str, ...]
    takes_any: bool


@cache
def parameters_of(function: Callable[..., Any]) -> Parameters:
    """What a function, or the constructor of a class, takes by name.

    Raises:
        ValueError: When Python cannot tell, as of some functions in C.
    """
    given, named_by = inspect.signature(function).parameters.values(), cast(Any, function)
    try:
        hints = get_type_hints(named_by.__init__ if isinstance(function, type) else function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # names that exist for type checkers alone
        hints = {}
    named = [each for each in given if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    return Parameters(
        {each.name: hints.get(each.name, Any) for each in named},
        {each.name: each.default for each in named if each.default is not each.empty},
        tuple(each.name for each in named if each.kind is each.KEYWORD_ONLY),
        any(each.kind is each.VAR_KEYWORD for each in given),
    )


def checked(function: _Function) -> _Function:
    """Let a function, or the constructor of a class, refuse arguments that are not of their type or out of range.

    The `ValueError` names the argument, what it must be, and its value.

    Examples:
        >>> @checked
        ... def shrunk(size: Count, share: Fraction = 1.0) -> float:
        ...     return size * share
        >>> shrunk(4, share=1.5)
        Traceback (most recent call last):
        ValueError: share must be a number in [0, 1], got 1.5.
    """
    if isinstance(function, type):
        kind: Any = function
        kind.__init__ = checked(kind.__init__)
        return cast(_Function, kind)
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        try:
            bound = signature.bind(*args, **keywords)
        except TypeError:
            return function(*args, **keywords)  # which says better what is missing
        parameters = parameters_of(function)
        for name, annotation in parameters.types.items():
            if name in bound.arguments and annotation is not Any:
                value = bound.arguments[name] = _plain(bound.arguments[name], annotation)
                said = fault(value, annotation) or _no_object(value, annotation)
                if said is not None and not is_default(value, parameters.defaults, name):
                    raise ValueError(f"{name} {said}.")
        return function(*bound.args, **bound.kwargs)

    return cast(_Function, call)


def _no_object(value: Any, annotation: Any) -> str | None:
    """That a scalar stands where a model or a tokenizer is asked for, as `fault` says it; factories say more."""
    parts = get_args(annotation) if _is_union(annotation) else (annotation,)
    words = [_object(part) for part in parts]
    if not isinstance(value, str | int | float) or None in words or {*words} <= {"None", "a function"}:
        return None
    return f"must be {' or '.join(map(str, words))}, got {value!r}"


def _object(annotation: Any) -> str | None:
    """Such a type in words, or that of None beside it."""
    if annotation is type(None) or get_origin(annotation) is Callable:
        return "None" if annotation is type(None) else "a function"
    of_models = str(getattr(annotation, "__module__", "")).startswith(("torch.nn", "transformers"))
    return f"a {annotation.__name__}" if of_models else None


def _plain(value: Any, annotation: Any) -> Any:
    """A number of another library, such as numpy's, as Python's own, and a path as text where text is asked for."""
    if isinstance(value, Number) and not isinstance(value, int | float | complex):
        return value.item() if hasattr(value, "item") else float(cast(Any, value))
    if isinstance(value, PathLike) and str in (annotation, *get_args(annotation)):
        return fspath(value)
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 else value


def is_default(value: Any, defaults: Mapping[str, Any], name: str) -> bool:
    """Whether an argument is what it would be without being given, which is right whatever its type says."""
    default = defaults.get(name, inspect.Parameter.empty)
    return value is default or (
        type(value) is type(default) and isinstance(value, str | int | float) and value == default
    )


def fault(value: Any, annotation: Any, *, plain: bool = False, objects: Any = Any) -> str | None:
    """What is wrong with a value, as `must be ..., got ...`; None where nothing is.

    Args:
        value: The value.
        annotation: The type, with its range where it has one.
        plain: Whether the value is a setting, which people write in YAML.
        objects: The type that is asked for in the place of what pydantic cannot judge.
    """
    judged = _judged(annotation, objects)
    try:
        _validator(judged)(value)
    except ValidationError:
        words = allowed(judged, "null" if plain else "None")
        if isinstance(value, float) and math.isinf(value):
            words = words.replace("a number", "a finite number")
        if not plain:
            return f"must be {words}, got {value!r}"
        in_quotes = isinstance(value, int | float) and "text" in words and "number" not in words
        return f"must be {words}, got {json.dumps(value, default=repr)}" + f"; quote it: '{value}'" * in_quotes
    return None


def allowed(annotation: Any, none: str) -> str:
    """A type in words.

    Args:
        annotation: The type, with its range where it has one.
        none: What None is called.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation == Node:
        return "a node with _target_"
    if annotation in (None, type(None)):
        return none
    if origin is Annotated:
        return allowed(parts[0], none) + _range(parts)
    if origin is Literal:
        return ("one of " if len(parts) > 1 else "") + ", ".join(none if each is None else str(each) for each in parts)
    if _is_union(annotation):
        words = list(dict.fromkeys(allowed(part, none) for part in parts))
        return " or ".join(each for each in words if not (each == "a whole number" and "a number" in words))
    if origin is Sequence:
        return "a list" if parts[0] is Any else f"a list ({allowed(parts[0], none)} each)"
    if origin is Mapping:
        by = f" by {allowed(parts[0], none)}" if get_origin(parts[0]) is Literal else ""
        return f"a mapping{by}" + ("" if parts[1] is Any else f" ({allowed(parts[1], none)} each)")
    return _SCALARS.get(annotation, "an object")


def is_function(annotation: Any) -> bool:
    """Whether a type is that of functions, or of None beside them."""
    return any(get_origin(part) is Callable for part in (annotation, *get_args(annotation)))


def can_be_called(found: Any, arguments: Iterable[str]) -> bool:
    """Whether the objects of a class can; what a function returns is not known, and passes if it has its arguments."""
    if isinstance(found, type):
        return any("__call__" in vars(base) for base in found.__mro__)
    parameters = parameters_of(found)
    return not parameters.types.keys() - parameters.defaults - set(arguments)


def nearest(key: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like a key; None where none is as like as the cutoff.

    Examples:
        >>> nearest("epoch", ["epochs", "log_every"])
        'epochs'
    """
    found = get_close_matches(key, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """A question with the name that is most like a key, and a space before it; "" where none is.

    Examples:
        >>> did_you_mean("SFT", ["sft", "ppo"])
        ' Did you mean sft?'
    """
    near = nearest(key, known := [*known]) or nearest(key.lower(), known)
    return f" Did you mean {near}?" if near else ""


@cache
def _validator(annotation: Any) -> Callable[[Any], Any]:
    return TypeAdapter(annotation, config=_STRICT).validate_python


def _judged(annotation: Any, objects: Any) -> Any:
    """The type with what pydantic cannot judge replaced; numbers are finite, and lists may stand for tuples."""
    origin, parts = get_origin(annotation) or annotation, get_args(annotation)
    if annotation in (int, str, bool, None, type(None), Any) or origin is Literal:
        return annotation
    if annotation is float:
        return Annotated[float, AllowInfNan(False)]
    if origin is Annotated:
        inner = _judged(parts[0], objects)
        return objects if inner == objects else Annotated[inner, *parts[1:]]
    if _is_union(annotation):
        judged = [_judged(part, objects) for part in parts]
        return Any if Any in judged else reduce(or_, judged)
    if origin is tuple and parts and parts[-1] is not Ellipsis:
        items = reduce(or_, (_judged(part, objects) for part in parts))
        return Annotated[_LIST[items], Len(len(parts), len(parts))]
    if origin in (list, tuple, set, Sequence, Iterable):
        items = _judged(parts[0], objects) if parts else Any
        # An object may be of any kind that one can go through: it is not read to be judged.
        return Any if objects is Any and (items is Any or origin is Iterable) else _LIST[items]
    if origin in (dict, Mapping):
        key, item = (_judged(part, objects) for part in parts or (Any, Any))
        return Any if objects is Any and item is Any and key in (Any, str) else _MAPPING[key, item]
    return objects


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _range(parts: Sequence[Any]) -> str:
    low = next((each for each in parts if isinstance(each, Ge | Gt)), None)
    high = next((each for each in parts if isinstance(each, Le | Lt)), None)
    length = next((f" of {each.min_length}" for each in parts if isinstance(each, Len)), "")
    if low is not None and high is not None:
        start = f"[{low.ge}" if isinstance(low, Ge) else f"({low.gt}"
        return f" in {start}, {high.le}]" if isinstance(high, Le) else f" in {start}, {high.lt})"
    if isinstance(low, Ge | Gt):
        return f" of at least {low.ge}" if isinstance(low, Ge) else f" above {low.gt}"
    return length
