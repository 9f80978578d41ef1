"""Text and token ids: tokenizers, chat templates, and the tokens that end a response."""
