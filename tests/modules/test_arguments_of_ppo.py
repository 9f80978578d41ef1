"""Arguments of PPO that are out of their range are refused by name."""

import math
from functools import partial

import pytest
import torch
from jaxtyping import config

from rlhf_lightning import PPOModule
from rlhf_lightning.models.scalar_head import ScalarHeadModel

SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.fixture
def build(tiny_gpt2, tiny_tokenizer, make_tiny_lm):
    def build(**changes):
        reward = ScalarHeadModel.from_causal_lm(tiny_gpt2)
        options = {"optimizer": SGD, "value_optimizer": SGD, **changes}
        return PPOModule(tiny_gpt2, make_tiny_lm("gpt2"), len, reward, tiny_tokenizer, **options)

    return build


WHOLE, ABOVE = "a whole number of at least 1", "a number above 0"
OUT = [
    *((name, value, WHOLE) for name in ("max_new_tokens", "num_ppo_epochs") for value in (0, -1, 2.0)),
    ("num_minibatches", 1.5, WHOLE),
    ("num_minibatches", True, WHOLE),
    ("micro_batch_size", 0, f"{WHOLE} or None"),
    *((name, value, ABOVE) for name in ("temperature", "clip_range", "kl_horizon", "score_scale") for value in (0, -1)),
    ("temperature", None, ABOVE),
    *((name, -1.0, f"{ABOVE} or None") for name in ("max_grad_norm", "stop_kl", "value_clip_range", "kl_target")),
    ("max_grad_norm", math.nan, f"{ABOVE} or None"),
    ("kl_coef", -0.1, "a number of at least 0"),
    ("kl_coef", math.inf, "a finite number of at least 0"),
    ("ptx_coef", "1", "a number of at least 0"),
    ("missing_eos_penalty", -1, "a number of at least 0 or None"),
    ("discount", 1.01, r"a number in \[0, 1\]"),
    ("gae_lambda", -0.5, r"a number in \[0, 1\]"),
    ("ema_decay", 1.0, r"a number in \[0, 1\) or None"),
    ("whiten_scores", "yes", "true or false"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), OUT)
def test_out_of_range(build, name, value, allowed):
    with pytest.raises(ValueError, match=rf"^{name} must be {allowed}, got {value!r}\.$"):
        build(**{name: value})


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
