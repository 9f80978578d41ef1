"""The paper's findings, measured: the rule of each, the runs that it needs, what came out."""
