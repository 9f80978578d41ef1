"""All that is wrong with a configuration, before anything is built: unknown names, types, values out of range."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

from rlhf_lightning.arguments import Node, can_be_called, fault, is_default, is_function, nearest, parameters_of
from rlhf_lightning.evaluation.tables import REWARD
from rlhf_lightning.models.optimizers import GIVEN_LATER, factory_fault
from rlhf_lightning.recipe.context import COLLECT, MISSING
from rlhf_lightning.recipe.inputs import sampling_lacking
from rlhf_lightning.recipe.rewards import FORMS, KINDS
from rlhf_lightning.recipe.schemas import (
    ENGINES,
    NODES,
    REWARD_FORMS,
    SHORTHANDS,
    Given,
    Keywords,
    Nodes,
    Reward,
    Settings,
)
from rlhf_lightning.recipe.setting_types import NO_KEYS, Keys, each_of, has_scalar, keys_of, present
from rlhf_lightning.recipe.stage import Stage
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.secrets import redacted
from rlhf_lightning.runs.targets import REMOTE_CODE, TRUST, TRUSTS_CODE, found_target, refusal

_NODE = ("_target_", "_args_", "_partial_")


def setting_faults(config: Mapping[str, Any], recipe: Sequence[Stage], more_targets: Sequence[str]) -> list[str]:
    """A sentence for each setting that is unknown, of another type, or out of its range; nothing is built.

    Settings of steps that do not run are looked at too. A value that is still missing (`???`) is not.

    Args:
        config: The resolved configuration, plain types.
        recipe: The steps that there are.
        more_targets: Packages that `_target_` may name besides ours.
    """
    named = config.get("stages")
    tree = _Tree(more_targets if fault(more_targets, list[str]) is None else [])
    schemas = {stage.name: Any if stage.schema is None else stage.schema for stage in recipe}
    keys = keys_of(Settings) or NO_KEYS
    tree.idle = frozenset(schemas) - {named if isinstance(named, str) else str(name) for name in _listed(named)}
    tree.mapping("", config, keys._replace(types={**keys.types, **schemas}))
    tree.shorthands(config)
    tree.faults += [("collect.sampling", f": {words}") for words in sampling_lacking(config.get(COLLECT))]
    if REMOTE_CODE not in tree.more_targets:
        tree.faults += [(path, TRUSTS_CODE) for path, value in _leaves(config) if value and TRUST in path.split(".")]
    return tree.sentences({stage.name: stage.like for stage in recipe if stage.like})


class _Tree:
    """Walks the configuration and keeps what it finds.

    Args:
        more_targets: Packages that `_target_` may name besides ours.
    """

    def __init__(self, more_targets: Sequence[str]) -> None:
        self.more_targets, self.idle = more_targets, frozenset[str]()
        self.faults: list[tuple[str, str]] = []
        self.unknown: list[tuple[str, str, Any, list[str], str]] = []
        self.known: list[str] = []

    def visit(self, path: str, value: Any, annotation: Any, objects: Any = Node) -> None:
        """Judge a setting by its type; `objects` is asked for in the place of what pydantic cannot judge."""
        if value == MISSING:
            return
        annotation = present(annotation) if value is not None else annotation
        marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
        given = next((mark for mark in marks if isinstance(mark, Given)), None)
        keys, each = keys_of(annotation), each_of(annotation)
        judged = Mapping[str, Any] if keys else get_origin(annotation) if each else Node if given else annotation
        if REWARD_FORMS in marks:
            self.reward(path, value)
        elif NODES in marks:
            self.nodes(path, value)
        elif (said := fault(value, judged, plain=True, objects=objects)) is not None:
            # A secret in the wrong place is no less of one.
            named = {path.rpartition(".")[2]: value}
            self.add(path, said if redacted(named) == named else said.partition(", got ")[0])
        elif keys is not None:
            self.mapping(path, value, keys)
        elif isinstance(value, Mapping) and "_target_" in value:
            self.function(path, value) if is_function(annotation) else self.object(path, value, given)
        else:
            for key, item in _items(value):
                self.visit(f"{path}.{key}", item, each or Any)

    def add(self, path: str, words: str) -> None:
        """Keep what is wrong with a setting."""
        self.faults.append((path, f" {words}"))

    def mapping(self, path: str, value: Mapping[str, Any], keys: Keys) -> None:
        """Judge what a mapping holds by what it may hold."""
        self.known += [_joined(path, key) for key in keys.types]
        for key in sorted(keys.required - value.keys()):
            self.add(_joined(path, key), "is missing")
        for key, item in value.items():
            place = _joined(path, key)
            if key not in keys.types:
                self.unknown += [] if keys.takes_any else [(path, key, item, list(keys.types), "")]
            elif place == "generation" and isinstance(item, Mapping):
                self.generation(item, keys.types[key])
            elif not is_default(item, keys.defaults, key):
                self.visit(place, item, keys.types[key])

    def object(self, path: str, node: Mapping[str, Any], given: Given | None = None) -> Any:
        """Judge the arguments of a node by the signature of what it names, and return that, if it is allowed."""
        target = str(node["_target_"])
        try:
            reason = refusal(target, self.more_targets)
        except PipelineError as error:
            if path.partition(".")[0] in self.idle and isinstance(error.__cause__, ModuleNotFoundError):
                return None  # a library that the steps which run do not need
            reason = str(error)
        if reason is not None:
            self.add(path, f"cannot be built: {reason}")
            return None
        found, before = found_target(target), len(self.faults)
        try:
            parameters = parameters_of(found)
        except (ValueError, TypeError):
            return found
        given = given or Given(GIVEN_LATER if node.get("_partial_") is True else ())
        types = {name: each for name, each in parameters.types.items() if name not in given.names}
        types |= dict.fromkeys(given.nodes, Nodes) | dict.fromkeys(given.judged_later, Any)
        self.known += [_joined(path, key) for key in types]
        ours = found.__module__.partition(".")[0] == __name__.partition(".")[0]
        options = {key: item for key, item in node.items() if key not in _NODE}
        for key, item in options.items():
            if key not in types:
                self.unknown += [] if parameters.takes_any else [(path, key, item, list(types), "" if ours else target)]
            elif not is_default(item, parameters.defaults, key):
                self.visit(_joined(path, key), item, types[key], Node if ours or has_scalar(types[key]) else Any)
        if node.get("_partial_") is True and len(self.faults) == before and MISSING not in options.values():
            said = factory_fault(found, {key: item for key, item in options.items() if key in types})
            if said is not None:
                self.add(path, f"is refused by {target}: {said}")
        return found

    def function(self, path: str, node: Mapping[str, Any]) -> None:
        """Judge a node that must describe what can be called."""
        found = self.object(path, node)
        if found is not None and node.get("_partial_") is not True and not can_be_called(found, node):
            self.add(
                path, f"must be a function; a {node['_target_']} is none, _partial_: true leaves its own call open"
            )

    def nodes(self, path: str, value: Any) -> None:
        """Judge nodes in mappings by name or in lists, however deep."""
        if isinstance(value, Mapping) and "_target_" in value:
            self.object(path, value)
        elif isinstance(value, Mapping | list):
            for key, item in _items(value):
                self.nodes(f"{path}.{key}", item)
        elif value is not None:
            self.add(path, fault(value, Node, plain=True, objects=Node) or "")

    def reward(self, path: str, value: Any) -> None:
        """Judge a reward of any of the forms."""
        kind = next((kind for key, kind in KINDS.items() if isinstance(value, Mapping) and key in value), None)
        if isinstance(value, list) and value:
            for number, item in enumerate(value):
                self.reward(f"{path}.{number}", item)
            if all(isinstance(item, Mapping) and item.get("weight") == 0 for item in value):
                self.add(path, "has weights of 0 alone, so that nothing is rewarded; give one another weight")
        elif isinstance(value, Mapping) and "_target_" in value:
            self.function(path, value)
        elif isinstance(value, Mapping) and REWARD in value:
            self.mapping(
                path, value, NO_KEYS._replace(types={REWARD: Reward, "weight": float}, required=frozenset({REWARD}))
            )
        elif isinstance(value, Mapping) and kind is not None:
            self.visit(path, value, Annotated[dict[str, Any], Keywords(kind, every=True)])
        elif value is not None and not (isinstance(value, str) and value):
            self.add(path, f"must be {FORMS}, got {value!r:.80}")

    def generation(self, value: Mapping[str, Any], annotation: Any) -> None:
        """Judge the options of the engine that is named."""
        self.visit("generation", {**value, "options": {}}, annotation)
        engine, options = value.get("engine"), value.get("options", {})
        known = ENGINES.get(str(engine))
        if known is not None:
            self.visit("generation.options", options, known)
        elif options:
            self.add("generation.options", f"must be {{}} for the engine {engine}, got {options}")

    def shorthands(self, config: Mapping[str, Any]) -> None:
        """Settings that only nodes refer to, and none does."""
        for group, names in SHORTHANDS.items():
            node = config.get(group)
            if isinstance(node, Mapping):
                read = {str(leaf) for key, item in node.items() if key not in names for _, leaf in _leaves(item)}
                for name in names.keys() & node.keys():
                    value = node[name]
                    judged = any(path == f"{group}.{name}" for path, _ in self.faults)
                    said = isinstance(value, str) and value not in (MISSING, names[name]) and not judged
                    if said and not any(f"/{value}/" in f"/{leaf}/" for leaf in read):
                        self.add(f"{group}.{name}", f"is {value}, but nothing in this option of {group} reads it")

    def sentences(self, like: Mapping[str, str]) -> list[str]:
        """What was found, each once: not again for a step that has the setting from another one."""
        found = dict.fromkeys([*self.faults, *((_joined(*each[:2]), self._unknown(*each)) for each in self.unknown)])
        said = {(path, words.partition(";")[0]) for path, words in found}
        sentences = []
        for path, words in found:
            step, _, rest = path.partition(".")
            short = f"{step}.{path.rpartition('.')[2]}"
            twice = path != short and short.rpartition(".")[2] in SHORTHANDS.get(step, {}) and (short, words) in found
            if not twice and (f"{like.get(step)}.{rest}", words.partition(";")[0]) not in said:
                sentences.append(f"{path}{words}" if words.endswith((".", "?")) else f"{path}{words}.")
        return sentences

    def _unknown(self, path: str, key: str, value: Any, siblings: list[str], target: str) -> str:
        """An unknown key, with the known one that is nearest: of that name anywhere, beside it, or like it anywhere.

        Arguments of a class that is not ours, `target`, say nothing of the other ones.
        """
        group = path.partition(".")[0]
        known = sorted(reversed(self.known), key=lambda name: ("." not in name, name.partition(".")[0] == group))
        names = {name.rpartition(".")[2]: name for name in known}
        beside = {name: _joined(path, name) for name in siblings}
        ways = ((beside, 0.75), ({} if target else names, 0.75), (beside, 0.6))
        near = (among.get(nearest(key, among, cutoff) or "") for among, cutoff in ways)
        found = (None if target else names.get(key)) or next((name for name in near if name), None)
        takes = f"{target or path or 'the configuration'} takes {', '.join(siblings) or 'none'}"
        takes += f"; ~{path}.{key} takes it out" if target else ""
        hint = f"did you mean {found}?" if found else takes
        return f"={redacted({key: value})[key]!r:.40} is no setting; {hint}"


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list):
        for key, item in _items(value):
            yield from _leaves(item, _joined(path, key))
    else:
        yield path, value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _joined(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
