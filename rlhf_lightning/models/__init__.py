"""What transformers does not do: the scalar head, log-probs, shared prefixes, adapters, export."""

from rlhf_lightning.models.loading import load_causal_lm
from rlhf_lightning.tokenization.loading import load_tokenizer

__all__ = ["load_causal_lm", "load_tokenizer"]
