"""What the types of settings say: the keys that a mapping may hold, and what each item is."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

from rlhf_lightning.arguments import parameters_of
from rlhf_lightning.recipe.schemas import Keywords, Reward


class Keys(NamedTuple):
    """What a mapping may hold."""

    types: Mapping[str, Any]
    defaults: Mapping[str, Any]
    required: frozenset[str]
    takes_any: bool


NO_KEYS = Keys({}, {}, frozenset(), False)


def keys_of(annotation: Any) -> Keys | None:
    """What a type says of the keys of a mapping; None where it says nothing."""
    origin, parts = get_origin(annotation), get_args(annotation)
    base, marks = (parts[0], parts[1:]) if origin is Annotated else (annotation, ())
    keys = NO_KEYS
    if is_typeddict(base):
        hints = get_type_hints(base, include_extras=True).items()
        types = {name: get_args(each)[0] if get_origin(each) is NotRequired else each for name, each in hints}
        keys = keys._replace(types=types, required=base.__required_keys__)
    elif get_origin(base) is Mapping and get_origin(get_args(base)[0]) is Literal:
        choices, item = get_args(base)
        return keys._replace(types=dict.fromkeys(get_args(choices), item))
    keywords = next((mark for mark in marks if isinstance(mark, Keywords)), None)
    if keywords is not None:
        parameters = parameters_of(keywords.function)
        names = [] if keywords.every else parameters.keywords
        taken = [name for name in names or parameters.types if name not in keywords.without]
        needed = {name for name in taken if name not in parameters.defaults} | set(keywords.required)
        types = {**{name: parameters.types[name] for name in taken}, **keys.types}
        return Keys(types, parameters.defaults, keys.required | needed, parameters.takes_any)
    return keys if keys.types or is_typeddict(base) else None


def each_of(annotation: Any) -> Any:
    """What each item of a list or a mapping is, where that says more than a plain type."""
    each = get_args(annotation)[-1] if get_origin(annotation) in (list, Mapping) else None
    return each if each == Reward or keys_of(each) is not None else None


def has_scalar(annotation: Any) -> bool:
    """Whether a type takes a number, a text or a truth value."""
    return not {int, float, str, bool}.isdisjoint(get_args(annotation))


def present(annotation: Any) -> Any:
    """The type of a value that is not null, where it says more than a plain type."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    optional = len(parts) == 1 and type(None) in get_args(annotation)
    return parts[0] if optional and (keys_of(parts[0]) or each_of(parts[0])) else annotation
