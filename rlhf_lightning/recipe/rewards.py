"""What settings such as `ppo.reward` and `evaluate.judge` name as a reward, and what it depends on.

A setting is the name of a step with a reward model; a folder or hub id of any sequence classifier; a function, as
`module:function`; an address, `http(s)://...`; a node with `path`, `url` or `_target_`, for those with options; or a
list, a weighted sum, whose items are any of these or `{reward: ..., weight: ...}`.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rlhf_lightning.data.records import Prompt, prompt_fields
from rlhf_lightning.evaluation.comparison_judge import compares
from rlhf_lightning.evaluation.tables import REWARD
from rlhf_lightning.generation.function_reward import check_fields, has_fields
from rlhf_lightning.generation.http_reward import HTTPReward
from rlhf_lightning.generation.rewards import Reward, WeightedSum
from rlhf_lightning.generation.text_reward import TextReward, check_classifier
from rlhf_lightning.models.loading import model_config
from rlhf_lightning.models.scalar_head import HEAD_FILE, ScalarHeadModel
from rlhf_lightning.recipe.context import SCORES, Context
from rlhf_lightning.recipe.model_names import model_lacking
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.hub import model_folder
from rlhf_lightning.runs.identity import fingerprint
from rlhf_lightning.runs.secrets import redacted
from rlhf_lightning.runs.targets import found_target, named_function

INIT = "init"
"""The policy's start, where a setting names a model."""
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_TARGET, _PART, _WEIGHT = "_target_", REWARD, "weight"
KINDS: dict[str, Callable[..., Any]] = {"path": TextReward, "url": HTTPReward}
"""By the key that tells their nodes."""


def reward_of(context: Context, setting: Any, *, tokens: bool = True) -> Reward:
    """The reward that a setting names.

    Args:
        context: Models and settings of the run.
        setting: The setting.
        tokens: Whether the model of a step reads the policy's tokens; otherwise it reads texts, as others do.

    Raises:
        PipelineError: When there is none, or its function may not be called.
    """
    parts = _parts(setting)
    rewards = [_loaded(context, part, tokens) for part, _ in parts]
    return WeightedSum(rewards, [weight for _, weight in parts]) if _is_sum(setting) else rewards[0]


def reward_parts(setting: Any, role: str = REWARD) -> dict[str, Any]:
    """The parts of a reward, each under the role that it has among the parents of a step: `reward`, `reward_2`, ..."""
    parts = [part for part, _ in _parts(setting)]
    return {role if number == 1 else f"{role}_{number}": part for number, part in enumerate(parts, 1)}


def reward_steps(context: Context, setting: Any, role: str = REWARD) -> dict[str, str]:
    """Those of the parts that are models of steps."""
    named = {name: _path(part) for name, part in reward_parts(setting, role).items()}
    return {name: str(path) for name, path in named.items() if _is_step(context, path)}


def reward_fingerprints(context: Context, setting: Any, role: str = REWARD) -> dict[str, str]:
    """What every part is by content: of a function its source file, of a model what its folder holds."""
    return {name: _fingerprint(context, part) for name, part in reward_parts(setting, role).items()}


def reward_label(setting: Any) -> str:
    """A setting as people read it."""
    parts = [(part if isinstance(part, str) else _kind(part)[1], weight) for part, weight in _parts(setting)]
    return " + ".join(f"{weight:g} x {part}" for part, weight in parts) if _is_sum(setting) else parts[0][0]


def reward_lacking(context: Context, role: str, setting: Any, prompts: Callable[[], Iterable[Prompt]]) -> Iterator[str]:
    """What a setting names that is not there, a sentence each; no model is loaded and nobody is asked.

    Args:
        context: Settings of the run.
        role: The setting's name.
        setting: The setting.
        prompts: Function that goes through the records whose fields a function may ask for.
    """
    functions = []
    try:
        for part in reward_parts(setting).values():
            if isinstance(part, str) and _FUNCTION.fullmatch(part):
                functions.append(_function(context, part))
            else:
                yield from _part_lacking(context, role, part)
    except ValueError as error:
        yield str(error)
    for function in functions:
        fields: dict[str, None] = {}
        try:
            for prompt in prompts():
                fields |= dict.fromkeys(prompt_fields(prompt))
                if has_fields(function, fields):
                    break
            check_fields(function, fields)
        except ValueError as error:
            yield str(error)


def _part_lacking(context: Context, role: str, part: Any) -> Iterator[str]:
    """Of a model or an address; a `ValueError` says what is wrong with how it is named."""
    path = _path(part)
    file = Path(f"{path}".removesuffix(".py") + ".py")
    if file.is_file() and not (_is_step(context, path) or Path(f"{path}").is_dir()):
        found = re.findall(r"^def ([a-zA-Z]\w*)", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        module = ".".join(file.with_suffix("").parts)
        yield (
            f"{role}={path}: {file} is a file with functions, and a reward is one of them, {role}={module}:"
            f"{found[0] if len(found) == 1 else '<function>'}. It has {', '.join(found) or 'none'}."
        )
        return
    node: dict[str, Any] = {"url" if _is_address(part) else "path": part} if isinstance(part, str) else part
    if path is not None and not _is_address(path):
        lacking = list(model_lacking(context, role, path, (SCORES,)))
        yield from lacking
        if not lacking and not _is_step(context, path):
            known = ("label", "template", "trust_remote_code")
            placed = str(context.model_path(path))
            if Path(model_folder(placed)).is_dir():
                check_classifier(placed, **{name: node[name] for name in known if name in node})
    elif _TARGET not in node:
        HTTPReward(**node)


def compares_setting(context: Context, setting: Any) -> bool:
    """Whether a setting names a judge that compares two responses; what cannot be found does not."""
    try:
        if isinstance(setting, str):
            return bool(_FUNCTION.fullmatch(setting)) and compares(_function(context, setting))
        return isinstance(setting, Mapping) and _TARGET in setting and compares(found_target(str(setting[_TARGET])))
    except PipelineError:
        return False


def critic_start(context: Context, name: str | None, reward: Reward, policy: Any) -> ScalarHeadModel:
    """What the critic starts as: a reward model, or a body with a head that says 0 of everything.

    Args:
        context: Models of the run.
        name: A step, a folder or a hub id of a reward model or of a causal language model; `init` is the policy; None
            is the reward where it is a reward model over the policy's tokens, and the policy elsewhere.
        reward: The reward.
        policy: The policy before it learns.
    """
    if name is None and isinstance(reward, ScalarHeadModel):
        return reward
    name = None if name == INIT else name
    path = None if name is None else context.model_path(name)
    if name is not None and path is not None:
        architectures: Any = getattr(model_config(str(path)), "architectures", None) or [""]
        if (Path(path) / HEAD_FILE).exists() or architectures[0].endswith("SequenceClassification"):
            return context.scalar_model(name)
    critic = ScalarHeadModel.from_causal_lm(policy if name is None else context.causal_lm(name))
    nn.init.zeros_(critic.head.weight)
    return critic


def report_cut(context: Context, step: str, reward: Reward) -> None:
    """Say how many rows a classifier has read without their beginnings."""
    for model in reward.modules() if isinstance(reward, nn.Module) else ():
        if isinstance(model, TextReward) and model.cut:
            context.say(
                step, f"{model.cut} rows were over the {model.context} tokens of {model.name}, cut from the left"
            )


def _is_sum(setting: Any) -> bool:
    return isinstance(setting, list) or (isinstance(setting, Mapping) and _PART in setting)


def _parts(setting: Any) -> list[tuple[Any, float]]:
    """What is added up, each with its weight."""
    if isinstance(setting, list):
        return [part for item in setting for part in _parts(item)]
    if isinstance(setting, Mapping) and _PART in setting:
        return [(part, setting.get(_WEIGHT, 1.0) * inner) for part, inner in _parts(setting[_PART])]
    if setting is None:  # which is a setting: nobody judges
        raise PipelineError(f"a reward is {FORMS}; got null.")
    return [(setting, 1.0)]


FORMS = (
    "a step, a folder or hub id of a sequence classifier, module:function, an address http(s)://..., a node with path, "
    "url or _target_, or a list of those or of {reward: ..., weight: ...}"
)


def _kind(node: Mapping[str, Any]) -> tuple[Callable[..., Any] | None, str]:
    """The class that a node describes, and the name of what it describes."""
    if _TARGET in node:
        return None, str(node[_TARGET])
    key = next(key for key in KINDS if key in node)
    return KINDS[key], str(node[key])


def _loaded(context: Context, part: Any, tokens: bool) -> Reward:
    if not isinstance(part, str):
        kind, _ = _kind(part)
        placed = {"path": str(context.model_path(path))} if (path := _path(part)) is not None else {}
        made: Reward = context.build(part) if kind is None else kind(**{**part, **placed})
    elif _is_step(context, part) and tokens:
        made = context.scalar_model(part)
    elif _is_address(part):
        made = HTTPReward(part)
    elif _FUNCTION.fullmatch(part):
        made = _function(context, part)
    else:
        made = TextReward(str(context.model_path(part)))
    return made.eval().to(context.device) if isinstance(made, nn.Module) else made


def _fingerprint(context: Context, part: Any) -> str:
    if not isinstance(part, str):
        kind, name = _kind(part)
        if kind is not None:
            return _fingerprint(context, name)
        held = redacted(context.held(part))
        return fingerprint([held, _source_of(context.build(part, _partial_=True).func.__module__)])
    if _is_address(part):
        return part
    if not _is_step(context, part) and _FUNCTION.fullmatch(part):
        _function(context, part)  # imports its module
        module, _, name = part.partition(":")
        return fingerprint([name, _source_of(module)])
    return context.model_fingerprint(part)


def _source_of(module: str) -> str:
    """Hash of the file of a module that is imported."""
    file = getattr(sys.modules[module], "__file__", None)
    return hashlib.sha256(Path(file).read_bytes() if file else b"").hexdigest()


def _function(context: Context, name: str) -> Callable[..., Any]:
    return named_function(name, context.config["allowed_targets"])


def _path(part: Any) -> Any:
    """The model that a part names, if it is one."""
    return part if isinstance(part, str) else part.get("path")


def _is_step(context: Context, part: Any) -> bool:
    return isinstance(part, str) and part.partition("/")[0] in context.steps


def _is_address(part: str) -> bool:
    return part.startswith(("http://", "https://"))
