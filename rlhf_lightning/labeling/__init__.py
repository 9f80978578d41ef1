"""Who ranks responses, and what they say."""
