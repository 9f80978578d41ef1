"""The recipe of the paper, a file per step."""
