"""One contender in a process of its own: ``worker.py MODULE FUNCTION SHAPE`` (the shape as JSON)."""

import importlib
import json
import os
import sys
import warnings

import torch
from gate import Gate

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    module, function, shape = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    contender = getattr(importlib.import_module(module), function)
    contender(Gate(), shape)
