"""Who samples responses, and who scores them."""
