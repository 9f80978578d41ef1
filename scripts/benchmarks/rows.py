"""What is measured against what, and what was aimed at before measuring."""

from dataclasses import dataclass, replace
from typing import Any

Work = tuple[str, str, dict[str, Any]]
"""Module, function and shape of a contender."""


@dataclass
class Row:
    """One comparison.

    Attributes:
        name: The work.
        against: Who the other one is.
        unit: Of the speed.
        ours: This package.
        other: The alternative; None where the work stands alone.
        aim: Ratio that was aimed at: at least, or at most for memory.
        memory: Whether peak memory is compared, not speed.
    """

    name: str
    against: str
    unit: str
    ours: Work
    other: Work | None
    aim: float | None = None
    memory: bool = False

    @property
    def key(self) -> str:
        """Name of the row in the records."""
        return f"{self.name}, against {self.against}"


def rows(device: str) -> list[Row]:
    """The comparisons for a device."""
    if device == "cuda":
        return _cuda()
    return [*_reward(), *_sft(), *_rollout(), *_sampling(), *_ppo(), *(row for _, _, *both in growth() for row in both)]


def growth() -> list[tuple[str, int | str, Row, Row]]:
    """How time and memory of a reward step grow: what grows, its value, and the rows of speed and peak memory."""
    usual = {"size": "S", "precision": "fp32", "K": 4, "prompt": 128, "response": 64, "prompts": 4}
    values = {
        "size": ("T", "S", "M", "L"),
        "K": range(2, 10),
        "prompt": (32, 64, 128, 256, 512),
        "response": (16, 32, 64, 128, 256),
        "prompts": (1, 2, 4, 8, 16),
    }
    found = []
    for name, points in values.items():
        for value in points:
            shape = usual | {name: value}
            own, separate = ("ours", "reward", shape), ("ours", "reward", shape | {"shared_prefix": False})
            model = "" if name == "size" else " S"
            title, rival = f"growth of a reward step{model} fp32, {name}={value}", "one forward per response"
            speed = Row(title, rival, "prompts/s", own, separate)
            found.append((name, value, speed, Row(title, rival + ", peak memory", "MiB", own, separate, memory=True)))
    return found


def _reward() -> list[Row]:
    found = []
    aims = {(9, "S", "fp32"): 25, (9, "M", "fp32"): 23, (9, "S", "bf16"): 13, (9, "M", "bf16"): 13}
    aims |= {(4, "S", "fp32"): 6.5, (4, "S", "bf16"): 5}
    for (count, size, precision), aim in aims.items():
        shape = {"size": size, "precision": precision, "K": count, "prompt": 128, "response": 64}
        own = ("ours", "reward", shape | {"prompts": 4 if size == "S" else 2})
        name = f"reward K={count} {size} {precision}"
        trl = "TRL 1.16 RewardTrainer on pairs"
        found.append(Row(name, trl, "prompts/s", own, ("peers", "reward", shape), aim))
        if (count, precision) == (9, "fp32"):
            found.append(Row(name, trl + ", peak memory", "MiB", own, ("peers", "reward", shape), 0.6, memory=True))
        if count == 9:
            separate = ("ours", "reward", own[2] | {"shared_prefix": False})
            aim = 2.0 if (size, precision) == ("M", "fp32") else 1.7
            found.append(Row(name, "one forward per response", "prompts/s", own, separate, aim))
    whole = {"size": "M", "precision": "fp32", "K": 9, "prompt": 128, "response": 64, "prompts": 8}
    ways = {"one prompt at a time": {"micro": 1}, "activations computed again": {"again": True}}
    for way, options in ways.items():
        name, own, other = f"reward K=9 M fp32, {way}", ("ours", "reward", whole | options), ("ours", "reward", whole)
        found.append(Row(name, "the batch at once", "prompts/s", own, other))
        found.append(Row(name, "the batch at once, peak memory", "MiB", own, other, memory=True))
    return found


def _sft() -> list[Row]:
    found = []
    for precision, aim in (("fp32", 1.6), ("bf16", 2.3)):
        shape = {"size": "S", "precision": precision, "rows": 8, "length": 256}
        own = ("ours", "sft", shape)
        name = f"SFT S {precision}"
        found.append(Row(name, "TRL 1.16 SFTTrainer", "tokens/s", own, ("peers", "sft", shape), aim))
        plain = ("ours", "sft", shape | {"fused": False})
        found.append(Row(name, "bare loop, same optimizer", "tokens/s", plain, ("plain", "sft", shape), 0.97))
        short = ("ours", "sft", shape | {"counted": 0.5})
        responses = f"{name}, half of the tokens count"
        found.append(Row(responses, "bare loop", "tokens/s", short, ("plain", "sft", shape), 1.3))
        uneven = ("ours", "sft", shape | {"rows": 32, "uneven": True})
        packed = ("ours", "sft", uneven[2] | {"packed": True})
        found.append(Row(f"{name}, packed, 16 to 256 tokens", "groups of similar length", "tokens/s", packed, uneven))
    bf16 = {"size": "S", "precision": "bf16", "rows": 8, "length": 256}
    defaults = ("peers", "sft", bf16 | {"defaults": True})
    found.append(Row("SFT S bf16", "TRL 1.16 SFTTrainer, its defaults", "tokens/s", ("ours", "sft", bf16), defaults, 4))
    return found


def _rollout() -> list[Row]:
    found = []
    for weights in ("fp32", "bf16"):
        for uniform, aim in ((False, 2), (True, 3)):
            shape = {"size": "135M", "vocabulary": 49_152, "weights": weights, "rows": 64, "prompt": 64, "response": 64}
            work = (
                ("ours", "rollout", shape | {"uniform": uniform}),
                ("plain", "rollout", shape | {"uniform": uniform}),
            )
            name = f"rollout 135M {weights}, {'uniform' if uniform else 'equal'} lengths"
            found.append(Row(name, "model.generate", "tokens/s", *work, aim))
    aims = {("S", "fp32"): (2.0, 3), ("S", "bf16"): (2.5, 4), ("M", "fp32"): (1.7, 2.2), ("M", "bf16"): (1.5, 1.9)}
    for (size, weights), (equal, uniform) in aims.items():
        shape = {"size": size, "weights": weights, "rows": 64, "prompt": 64, "response": 64}
        for lengths, aim in (("equal", equal), ("uniform", uniform)):
            own = shape | {"uniform": lengths == "uniform"}
            name = f"rollout {size} {weights}, {lengths} lengths"
            found.append(
                Row(name, "model.generate", "tokens/s", ("ours", "rollout", own), ("plain", "rollout", own), aim)
            )
    shape = {"size": "M", "weights": "fp32", "rows": 64, "prompt": 64, "response": 64}
    bound = ("plain", "matmuls", shape)
    found.append(
        Row("rollout M fp32, equal lengths", "its matmuls alone", "tokens/s", ("ours", "rollout", shape), bound, 0.55)
    )
    return found


def _sampling() -> list[Row]:
    shape = {"rows": 64, "vocabulary": 50_257}
    work = ("ours", "sampling", shape), ("plain", "sampling", shape)
    return [Row("sampling 64 x 50,257", "softmax + multinomial", "tokens/s", *work, 15)]


def _ppo() -> list[Row]:
    found = []
    trl = "TRL 1.12 PPOTrainer"
    for name, aim, special in (
        ("PPO S fp32, equal lengths", 1.3, {}),
        ("PPO S bf16, equal lengths", 1.9, {"precision": "bf16"}),
        ("PPO S fp32, vocabulary 50,257", 1.9, {"vocabulary": 50_257}),
        ("PPO S fp32, uniform lengths", 2, {"uniform": True}),
        ("PPO S bf16, uniform lengths", 3, {"uniform": True, "precision": "bf16"}),
    ):
        shape = {"size": "S", "rows": 32, "prompt": 64, "response": 64, "minibatches": 4, "epochs": 4} | special
        work = ("ours", "ppo", shape), ("peers_ppo", "ppo", shape)
        found.append(Row(name, trl, "episodes/s", *work, aim))
        if "uniform" not in special and "precision" not in special:
            least = 0.65 if special else 0.8
            found.append(Row(name, trl + ", peak memory", "MiB", *work, least, memory=True))
    for precision in ("fp32", "bf16"):
        shape = {"size": "135M", "vocabulary": 49_152, "rows": 64, "prompt": 128, "response": 64, "lora": 16}
        shape |= {"minibatches": 4, "epochs": 1, "micro": 8, "precision": precision}
        work = ("ours", "ppo", shape), ("peers_ppo", "ppo", shape)
        name = f"PPO 135M {precision} with LoRA, rank 16"
        found.append(Row(name, trl, "episodes/s", *work, 1.67))
        found.append(Row(name, trl + ", peak memory", "MiB", *work, 0.5, memory=True))
    full = {"size": "M", "rows": 8, "prompt": 32, "response": 32, "minibatches": 4, "epochs": 1}
    adapted = ("ours", "ppo", full | {"lora": 16}), ("ours", "ppo", full)
    found.append(Row("PPO M fp32 with LoRA, rank 16", "every weight, peak memory", "MiB", *adapted, 0.5, memory=True))
    return found


COPY = Row("copy within the GPU", "nothing", "GB/s", ("plain", "copy", {"numbers": 2**30}), None)
"""What the share of the bandwidth bound is a share of."""


def _cuda() -> list[Row]:
    """The most telling ones first. Both contenders of a row are on the GPU at once, and fit into 139 GiB together."""
    product = Row("product in bf16, 8,192 squared", "nothing", "TFLOP/s", ("plain", "product", {"side": 8192}), None)
    found = [COPY, *_cuda_of("XL")]
    large = {"size": "XL", "vocabulary": 50_257, "precision": "bf16"}
    ranked = large | {"K": 9, "prompt": 512, "response": 128, "prompts": 4}
    small = {"size": "135M", "weights": "bf16", "rows": 256, "prompt": 512, "response": 128, "vocabulary": 49_152}
    text = ("ours", "sft", large | {"rows": 8, "length": 1024})
    compiled = ("ours", "sft", text[2] | {"compiled": True})
    work = ("ours", "rollout", small | {"graphs": True}), ("plain", "rollout", small)
    llama = ranked | {"size": "XL-llama"}
    tree = ("ours", "reward", llama | {"attention": "flex_attention"})  # transformers has none for GPT-2
    separate = ("ours", "reward", llama | {"shared_prefix": False})
    pairs = ranked | {"prompt": 256, "response": 64}
    episodes = large | {
        "rows": 64,
        "prompt": 512,
        "response": 128,
        "minibatches": 4,
        "epochs": 1,
        "micro": 8,
        "lora": 16,
    }
    return [
        *found,
        Row("rollout 135M bf16, CUDA graphs", "model.generate", "tokens/s", *work, 3),
        Row("reward K=9 XL-llama bf16, flex_attention", "one forward per response", "prompts/s", tree, separate, 2),
        Row("SFT XL bf16, layers compiled", "not compiled", "tokens/s", compiled, text),
        _against_trl("reward K=9 XL bf16, short", "TRL 1.16 RewardTrainer on pairs", "prompts/s", "reward", pairs, 10),
        _against_trl("SFT XL bf16", "TRL 1.16 SFTTrainer", "tokens/s", "sft", text[2], 1),
        _against_trl("PPO XL bf16 with LoRA, rank 16", "TRL 1.12 PPOTrainer", "episodes/s", "ppo", episodes, 1.67),
        *_cuda_of("XL-llama"),
        product,
    ]


def _cuda_of(size: str) -> list[Row]:
    large = {"size": size, "vocabulary": 50_257, "precision": "bf16"}
    text = large | {"rows": 8, "length": 1024}
    ranked = large | {"K": 9, "prompt": 512, "response": 128, "prompts": 4}
    separate = ("ours", "reward", ranked | {"shared_prefix": False})
    sampled = {"size": size, "vocabulary": 50_257, "weights": "bf16", "rows": 256, "prompt": 512, "response": 128}
    graphs, loop = ("ours", "rollout", sampled | {"graphs": True}), ("ours", "rollout", sampled)
    episodes = {"rows": 64, "prompt": 512, "response": 128, "minibatches": 4, "epochs": 1, "micro": 8, "text": 64}
    name, each = f"reward K=9 {size} bf16", "one forward per response"
    return [
        Row(f"SFT {size} bf16", "bare loop", "tokens/s", ("ours", "sft", text), ("plain", "sft", text), 1),
        Row(f"rollout {size} bf16, CUDA graphs", "our loop without", "tokens/s", graphs, loop),
        Row(f"PPO-ptx {size} bf16, every weight", "nothing", "episodes/s", ("ours", "ppo", large | episodes), None),
        Row(name, each, "prompts/s", ("ours", "reward", ranked), separate, 2),
        Row(f"rollout {size} bf16", "model.generate", "tokens/s", loop, ("plain", "rollout", sampled), 2),
    ]


def _against_trl(name: str, against: str, unit: str, function: str, shape: dict[str, Any], aim: float) -> Row:
    peers = "peers_ppo" if function == "ppo" else "peers"
    return Row(name, against, unit, ("ours", function, shape), (peers, function, shape), aim)


def tiny(row: Row) -> Row:
    """The same work with a model and batches that take seconds on a CPU: to try a row before the GPU is there."""
    small = {"vocabulary": 512, "prompt": 16, "response": 8, "length": 32, "numbers": 1024, "side": 64, "device": "cpu"}
    most = {"prompts": 2, "rows": 8, "text": 8, "micro": 2, "lora": 2, "K": 4}

    def shrunk(work: Work) -> Work:
        module, function, shape = work
        size = {"size": "T" if shape.get("size") == "XL" else "T-llama"}
        less = {name: value for name, value in (size | small).items() if name in shape or name == "device"}
        less |= {name: min(value, shape[name]) for name, value in most.items() if shape.get(name)}
        return module, function, shape | less

    return replace(row, ours=shrunk(row.ours), other=None if row.other is None else shrunk(row.other))
