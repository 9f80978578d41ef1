"""Private interfaces of other libraries: all in one file, each still doing what it is there for."""

import ast
import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from rlhf_lightning import compat

PACKAGE = Path(compat.__file__).parent
TREES = {file.relative_to(PACKAGE).as_posix(): ast.parse(file.read_text("utf-8")) for file in PACKAGE.rglob("*.py")}
NAMED_TUPLES = {"_replace", "_asdict", "_fields", "_make"}


def private(name):
    return name.startswith("_") and not name.startswith("__")


def ours():
    """Names that the package itself gives to functions, classes, variables and attributes of `self`."""
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    definitions = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    variables = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    stored = (node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return definitions | variables | {node.attr for node in stored if ast.unparse(node.value) == "self"}


def private_names_of_others(tree, known):
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in known:
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("rlhf_lightning"):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            found |= {name for name in names if private(name)}
        elif isinstance(node, ast.Import):
            found |= {name for alias in node.names for name in alias.name.split(".") if private(name)}
    return found


def test_private_names_of_other_libraries_stand_in_one_file():
    known = ours() | NAMED_TUPLES
    found = {file: names for file, tree in TREES.items() if (names := private_names_of_others(tree, known))}
    assert found.pop("compat.py") >= {"_subclasses", "_attn_implementation", "_linear_pointwise"}
    assert {file.split("/")[0] for file in found} == {"cli"}  # hydra, which no other folder may import
    assert set().union(*found.values()) == {"_internal"}


def test_fake_tensors_have_shapes_and_no_values():
    with compat.FakeTensorMode():
        product = torch.empty(3, 10**9) @ torch.empty(10**9, 2)
    assert product.shape == (3, 2)


def test_a_dispatch_mode_sees_every_operation():
    seen = []

    class Watch(compat.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watch():
        torch.ones(2) + 1
    assert seen == ["ones", "add"]


def test_leaves_of_nested_values():
    assert compat.tree_leaves({"a": [1, (2, 3)], "b": 4}) == [1, 2, 3, 4]


def test_onednn_multiplies_as_torch_does():
    if not compat.has_onednn_linear():
        pytest.skip("this build of torch has no oneDNN")
    values, weight, bias = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3)
    for chosen in (bias, None):
        exact = nn.functional.linear(values.double(), weight.double(), None if chosen is None else chosen.double())
        torch.testing.assert_close(compat.onednn_linear(values, weight, chosen).double(), exact, rtol=0, atol=1e-5)


def test_without_onednn_products_stay_with_torch(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not compat.has_onednn_linear()


@torch.no_grad()
def test_another_attention_within_a_block(tiny_lm, monkeypatch):
    ids = torch.tensor([[3, 4, 5]])
    used = []
    kernel = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a, **k: used.append("sdpa") or kernel(*a, **k)
    )
    assert compat.attention_implementation(tiny_lm) == "sdpa"
    before = tiny_lm(ids).logits
    assert used == ["sdpa"] * 2  # one per layer
    with compat.using_attention(tiny_lm.config, "eager"):
        assert compat.attention_implementation(tiny_lm) == "eager"
        torch.testing.assert_close(tiny_lm(ids).logits, before, atol=1e-5, rtol=1e-5)
    assert used == ["sdpa"] * 2
    with pytest.raises(KeyError), compat.using_attention(tiny_lm.config, "eager"):
        raise KeyError
    assert compat.attention_implementation(tiny_lm) == "sdpa"


def test_other_modules_have_no_attention():
    assert compat.attention_implementation(nn.Linear(2, 2)) is None


@torch.no_grad()
def test_a_pass_reads_the_cache_and_adds_to_it(tiny_lm):
    cache, ids = DynamicCache(config=tiny_lm.config), torch.tensor([[3, 4, 5, 6]])
    options = compat.cache_options(tiny_lm, cache)
    tiny_lm(ids[:, :3], **options)
    assert cache.get_seq_length() == 3
    last = tiny_lm(ids[:, 3:], **options).logits
    torch.testing.assert_close(last, tiny_lm(ids).logits[:, 3:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_has_the_name_that_the_version_of_transformers_gives_it(name):
    class Body(nn.Module):
        def forward(self, input_ids, past_key_values=None, use_cache=True):
            return past_key_values

    class Newer(nn.Module):
        def forward(self, input_ids, cache=None, use_cache=True):
            return cache

    body, cache = (Newer() if name == "cache" else Body()), DynamicCache()
    assert compat.cache_options(body, cache) == {name: cache, "use_cache": True}
    assert body(None, **compat.cache_options(copy.deepcopy(body), cache)) is cache
