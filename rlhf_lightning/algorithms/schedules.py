"""Learning-rate schedules of the paper."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_schedule(
    optimizer: Optimizer, total_steps: int, final_fraction: float = 0.1, warmup_steps: int = 0
) -> LambdaLR:
    """Cosine decay from the peak to ``final_fraction`` of it, after a linear warm-up if one is asked for.

    Source: InstructGPT, appendix C.1 (SFT) and C.2 (reward model): down to 10 %, no warm-up.

    Args:
        optimizer: Its learning rate is the peak.
        total_steps: Optimizer steps until the end of the decay.
        final_fraction: In [0, 1].
        warmup_steps: Steps from 0 to the peak, for training from scratch.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


def warmup_schedule(
    optimizer: Optimizer, total_steps: int, warmup_steps: int = 10, initial_fraction: float = 0.1
) -> LambdaLR:
    """Linear warm-up from ``initial_fraction`` of the peak, then constant.

    Source: InstructGPT, appendix C.4 (PPO): 10 iterations from one tenth of the peak.

    Args:
        optimizer: Its learning rate is the peak.
        total_steps: Not needed; every schedule takes it.
        warmup_steps: Iterations until the peak.
        initial_fraction: In [0, 1].
    """
    del total_steps

    def factor(step: int) -> float:
        return min(1.0, initial_fraction + (1 - initial_fraction) * step / max(warmup_steps, 1))

    return LambdaLR(optimizer, factor)
