"""How a row of a file becomes a record."""
