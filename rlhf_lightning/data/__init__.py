"""Records, tokens, batches: what the models are trained on."""
