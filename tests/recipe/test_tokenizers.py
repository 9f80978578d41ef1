"""Every model folder brings its own tokenizer, and models that work together share one."""

import json
import shutil

import pytest
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer

from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.data.records import RecordError
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.tokenization.endings import disagreement, end_token_ids
from rlhf_lightning.tokenization.loading import load_tokenizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)


@pytest.fixture
def rlhf(tmp_path):
    """Runs steps in seconds, on records that the words of the chat model can say."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"prompt": f"what is the capital of {word} ?", "response": "paris"} for word in ("france", "paris")]
    lines = {
        "demonstrations.train": rows,
        "prompts.train": [{"prompt": row["prompt"]} for row in rows],
        "comparisons.train": [{"prompt": row["prompt"], "chosen": "paris", "rejected": "what ?"} for row in rows],
    }
    for name, records in lines.items():
        (data / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    fixed = [
        f"paths.runs={tmp_path / 'runs'}",
        "data=jsonl",
        f"data.root={data}",
        "data.source.files.prompts.test=null",
        "data.source.files.comparisons.train=comparisons.train.jsonl",
        "data.lengths.max_prompt_tokens=24",
        "data.lengths.max_response_tokens=8",
        "data.lengths.block_size=32",
        "debug=fast",
        "sft.fit.epochs=1",
        "ppo.data={batch_size: 4, num_batches: 1}",
        "sft.data.batch_size=2",
        "reward.data.batch_size=2",
    ]

    def call(*overrides):
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            run(compose("config", [*fixed, *overrides]))
        return tmp_path / "runs" / "default"

    return call


def test_a_later_step_takes_the_tokenizer_of_the_model_it_starts_from(rlhf, make_chat_folder):
    chat = make_chat_folder(ends=(1, 4, 5))
    folder = rlhf("stages=[sft]", "model=folder", f"model.path={chat}")
    rlhf("stages=[reward,ppo]", "model=sandbox")  # as if `model=` had been forgotten: the sandbox has other words
    own = load_tokenizer(str(chat))
    for step in ("sft", "reward", "ppo"):
        exported = load_tokenizer(str(folder / step / "model"))
        assert exported.get_vocab() == own.get_vocab(), step
        assert set(end_token_ids(exported)) == {1, 4, 5}, step
    samples = (folder / "ppo" / "samples.jsonl").read_text()
    assert "capital of" in samples
    assert "<unk>" not in samples


def test_parents_that_disagree_are_refused_before_the_first_step(rlhf, make_chat_folder):
    chat = make_chat_folder()
    other = make_chat_folder(name="other", words=["user", "model", "paris", "france"])
    with pytest.raises(
        PipelineError, match=r"ppo reads the same tokens by init .* and reward .*vocabularies \(18 and 10"
    ):
        rlhf("stages=[sft,reward,ppo]", "model=folder", f"model.path={chat}", f"reward.init={other}")
    with pytest.raises(PipelineError, match=r"ppo reads .*vocabularies \(10 and 18 tokens\).*ppo.reward"):
        folder = rlhf("stages=[sft,reward,ppo]", "model=folder", f"model.path={chat}", f"ppo.init={other}")
    folder = rlhf(
        "stages=[reward]", "model=folder", f"model.path={chat}", f"reward.init={other}"
    )  # by itself it is right
    assert load_tokenizer(str(folder / "reward" / "model")).get_vocab() == load_tokenizer(str(other)).get_vocab()
    assert not (folder / "sft").exists()


def test_other_ends_and_other_templates_disagree_too(make_chat_folder):
    tokenizer = load_tokenizer(str(make_chat_folder()))
    assert disagreement(tokenizer, load_tokenizer(str(make_chat_folder(name="same")))) is None
    ends = load_tokenizer(str(make_chat_folder(ends=(1, 4, 5), name="ends")))
    assert "tokens that end a response" in (disagreement(tokenizer, ends) or "")
    template = load_tokenizer(str(make_chat_folder(name="template")))
    template.chat_template = str(template.chat_template).replace("<turn>", "<turn> ")
    assert disagreement(tokenizer, template) == "their chat templates"
    dated = "{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }} <eos>{% endfor %}"
    folder = str(make_chat_folder(template=dated, name="dated"))
    days = [load_tokenizer(folder, date=day) for day in ("2020-01-01", "2021-01-01")]
    assert "the day that their templates write (2020-01-01 and 2021-01-01)" in (disagreement(*days) or "")


def test_a_step_that_starts_from_itself_ends(rlhf, make_chat_folder):
    with pytest.raises(PipelineError, match=r"the model of stage ppo is needed"):
        rlhf(
            "stages=[reward,ppo]",
            "model=folder",
            f"model.path={make_chat_folder()}",
            "reward.init=base",
            "ppo.init=ppo",
        )


def test_a_model_without_tokenizer_files_takes_none_of_ours(rlhf, make_chat_folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(make_chat_folder(), bare)
    for file in bare.glob("tokenizer*"):
        file.unlink()
    with pytest.raises((PipelineError, ValueError), match=r"tokenizer"):
        rlhf("stages=[reward]", "model=sandbox", f"reward.init={bare}")


def test_every_step_leaves_the_format_that_it_trained(rlhf, make_chat_folder, capsys):
    """As pipeline() asks: `what is the capital of france ? user` is how the prompts of the data are read."""
    chat = make_chat_folder(template=None)
    model, template = ("model=folder", f"model.path={chat}"), "data.lengths.prompt_template='{prompt} user'"
    folder = rlhf("stages=[sft,reward,ppo]", *model, template)
    question = "what is the capital of france ?"
    expected = load_tokenizer(str(chat))(f"{question} user")["input_ids"]
    for step in ("sft", "reward", "ppo"):
        plain = AutoTokenizer.from_pretrained(folder / step / "model")
        messages = [{"role": "user", "content": question}]
        assert plain.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == expected, step
        answered = [*messages, {"role": "assistant", "content": "paris"}]
        assert plain.apply_chat_template(answered, tokenize=False) == f"{question} user paris<eos>"
    assert "was trained on" not in capsys.readouterr().out
    # A later step reads its prompts as the model did, or says that it does not.
    rlhf("stages=[ppo]", *model, "overwrite=true")
    assert "was trained on" not in capsys.readouterr().out
    rlhf("stages=[ppo]", *model, "data.lengths.prompt_template='user {prompt}'", "overwrite=true")
    said = " ".join(capsys.readouterr().out.split())
    sentence = (
        "its init (sft) was trained on prompts of data.format=template '{prompt} user', this step gives it "
        "data.format=template 'user {prompt}'."
    )
    assert said.count(sentence) == 1


def test_rows_that_the_template_refuses_are_named_or_put_aside(rlhf, make_chat_folder, tmp_path):
    refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    chat = make_chat_folder(template=refusing + "{{ m.content }} <eos> {% endfor %}")
    file = tmp_path / "data" / "demonstrations.train.jsonl"
    system = {"messages": [{"role": role, "content": "paris"} for role in ("system", "user", "assistant")]}
    file.write_text(file.read_text() + json.dumps(system) + "\n")
    options = ("stages=[sft]", "model=folder", f"model.path={chat}")
    with pytest.raises(
        RecordError, match=r"demonstrations\.train\.jsonl, line 3: .* refuses the role 'system' .*no sys"
    ):
        rlhf(*options)
    folder = rlhf(*options, "data.on_error=quarantine")
    (row,) = (folder / "quarantine" / "demonstrations.train.jsonl").read_text().splitlines()
    assert json.loads(row)["row"] == system
