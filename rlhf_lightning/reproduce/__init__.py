"""The paper's findings, measured: twelve claims, the runs that each needs, what came out."""
