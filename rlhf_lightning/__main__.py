"""``rlhf`` and ``python -m rlhf_lightning``."""

import gc

gc.disable()  # what is imported stays: looking through it for garbage, again and again, takes a quarter of the start

from rlhf_lightning.cli import main  # noqa: E402

gc.freeze()  # nor has any later collection to look through it, which takes each half a second
gc.enable()

if __name__ == "__main__":
    main()
