"""The stages as LightningModules."""
