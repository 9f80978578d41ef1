"""The LightningModules: language model, reward model, PPO."""
