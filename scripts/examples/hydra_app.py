"""A Hydra app that inherits our groups. Run beside prompts: `python hydra_app.py data.root=. ppo.rates.0=1e-4`."""

import copy

import hydra
import lightning as L
from omegaconf import DictConfig
from rules import fifteen_words

from rlhf_lightning import RLHFDataModule, ScalarHeadModel, load_causal_lm, load_tokenizer


@hydra.main(version_base=None, config_path=".", config_name="hydra_app")
def main(config: DictConfig) -> None:
    """Train a policy against a rule; hydra_app.yaml says what is inherited."""
    L.seed_everything(config.seed)
    tokenizer, policy = load_tokenizer(config.model), load_causal_lm(config.model)
    module = hydra.utils.instantiate(
        config.ppo.module,
        policy=policy,
        reference=copy.deepcopy(policy),
        reward=fifteen_words,
        value=ScalarHeadModel.from_causal_lm(load_causal_lm(config.model)),
        tokenizer=tokenizer,
        max_new_tokens=config.data.lengths.max_response_tokens,
        _convert_="all",
    )
    records = hydra.utils.instantiate(config.data.source, _convert_="all")
    data = RLHFDataModule(
        "ppo", tokenizer, records.records("prompts", "train"), **config.data.lengths, **config.ppo.data
    )
    trainer = hydra.utils.instantiate(config.trainer)
    trainer.fit(module, data)
    print(f"score {float(trainer.callback_metrics['rollout/score']):.2f}, lr {module.lr}")


if __name__ == "__main__":
    main()
