"""Arguments of PPO that are out of their range are refused by name."""

import math
from functools import partial

import pytest
import torch
from jaxtyping import config

from rlhf_lightning import PPOModule
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.modules.ranges import check_arguments

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.fixture
def build(tiny_gpt2, tiny_tokenizer, make_tiny_lm):
    def build(**changes):
        reward = ScalarHeadModel.from_causal_lm(tiny_gpt2)
        options = {"optimizer": SGD, "value_optimizer": SGD, **changes}
        return PPOModule(tiny_gpt2, make_tiny_lm("gpt2"), len, reward, tiny_tokenizer, **options)

    return build


OUT = [
    *(
        (name, value, r"\[1, inf\) and whole")
        for name in ("max_new_tokens", "num_ppo_epochs")
        for value in (0, -1, 2.0)
    ),
    ("num_minibatches", 1.5, r"\[1, inf\) and whole"),
    ("micro_batch_size", 0, r"\[1, inf\) and whole, or None"),
    ("temperature", 0.0, r"\(0, inf\)"),
    ("temperature", None, r"\(0, inf\)"),
    ("clip_range", -0.2, r"\(0, inf\)"),
    ("kl_horizon", 0, r"\(0, inf\)"),
    ("score_scale", 0.0, r"\(0, inf\)"),
    *((name, -1.0, r"\(0, inf\), or None") for name in ("max_grad_norm", "stop_kl", "value_clip_range", "kl_target")),
    ("max_grad_norm", math.nan, r"\(0, inf\), or None"),
    ("kl_coef", -0.1, r"\[0, inf\)"),
    ("kl_coef", math.inf, r"\[0, inf\)"),
    ("ptx_coef", "1", r"\[0, inf\)"),
    ("missing_eos_penalty", -1, r"\[0, inf\), or None"),
    ("discount", 1.01, r"\[0, 1\]"),
    ("gae_lambda", -0.5, r"\[0, 1\]"),
    ("ema_decay", 1.0, r"\[0, 1\), or None"),
]


@pytest.mark.parametrize(("name", "value", "interval"), OUT)
def test_out_of_range(build, name, value, interval):
    with pytest.raises(ValueError, match=rf"^{name} must be in {interval}, got "):
        check_arguments({**build().hparams, name: value})


def test_the_module_checks_its_arguments(build):
    with pytest.raises(ValueError, match=r"^discount must be in \[0, 1\], got 1\.5\.$"):
        build(discount=1.5)


def test_the_ends_that_belong_to_a_range(build):
    ends = {"discount": 1.0, "gae_lambda": 0.0, "ema_decay": 0.0, "kl_coef": 0.0, "ptx_coef": 0, "micro_batch_size": 1}
    none = dict.fromkeys(("value_clip_range", "stop_kl", "max_grad_norm", "kl_target", "missing_eos_penalty"))
    assert build(**ends, **none, max_new_tokens=1).hparams.discount == 1


@pytest.mark.parametrize("name", ["optimizer", "value_optimizer"])
def test_an_optimizer_that_is_built_already(build, tiny_gpt2, name, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # users have no checker of types
    built = SGD(tiny_gpt2.parameters())
    with pytest.raises(TypeError, match=rf"^{name} is built already \(SGD\).*functools\.partial"):
        build(**{name: built})
