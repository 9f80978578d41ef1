"""TRL's reward and SFT trainers; they run in a virtual environment of their own."""

import itertools
import tempfile

from datasets import Dataset
from gate import make_lm, make_tokenizer, tokens
from transformers import AutoModelForSequenceClassification, TrainerCallback
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer


class Steps(TrainerCallback):
    """Opens the gate for every optimizer step."""

    def __init__(self, gate, units):
        self.gate, self.units = gate, units

    def on_step_begin(self, *_, **__):
        """Wait for the parent."""
        self.gate.wait()

    def on_step_end(self, *_, **__):
        """Report."""
        self.gate.report(self.units)


def options(shape):
    """What all trainers get."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": shape.get("device", "cpu") == "cpu",
        "bf16": shape.get("precision") == "bf16",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 1e-5,
    }


def classifier(shape):
    """A reward model of TRL's kind: the same body with a head for one label."""
    lm = make_lm(shape)
    lm.config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(lm.config, attn_implementation="sdpa")
    model.base_model.load_state_dict(lm.base_model.state_dict())
    return model


def reward(gate, shape):
    """RewardTrainer on the pairs that a ranking expands to."""
    prompt = tokens(shape, shape["prompt"]).tolist()
    responses = tokens(shape, shape["K"], shape["response"]).tolist()
    pairs = [{"chosen_ids": prompt + a, "rejected_ids": prompt + b} for a, b in itertools.combinations(responses, 2)]
    config = RewardConfig(
        **options(shape),
        per_device_train_batch_size=len(pairs),
        gradient_checkpointing=False,
        max_steps=10**6,
        max_length=None,
    )
    data = Dataset.from_list(pairs * 8)
    trainer = RewardTrainer(classifier(shape), config, train_dataset=data, processing_class=make_tokenizer(shape))
    trainer.add_callback(Steps(gate, 1))
    trainer.train()


def sft(gate, shape):
    """SFTTrainer, with its defaults where the shape says so."""
    rows = tokens(shape, shape["rows"] * 8, shape["length"]).tolist()
    kept = {} if shape.get("defaults") else {"gradient_checkpointing": False}
    config = SFTConfig(
        **options(shape) | ({"bf16": None} if shape.get("defaults") else {}),
        **kept,
        per_device_train_batch_size=shape["rows"],
        max_steps=10**6,
        max_length=None,
    )
    data = Dataset.from_dict({"input_ids": rows})
    trainer = SFTTrainer(make_lm(shape), config, train_dataset=data, processing_class=make_tokenizer(shape))
    trainer.add_callback(Steps(gate, shape["rows"] * shape["length"]))
    trainer.train()
