"""Around the Trainer: fit, checkpoints, callbacks, metrics, memory."""
