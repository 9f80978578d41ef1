"""stub"""
from pathlib import Path
def write_report(run, lineage):
    return Path(run)/"report"/"index.html"
