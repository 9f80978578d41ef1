"""The page on which people label: `rlhf-label`."""
