"""``rlhf`` and ``python -m rlhf_lightning``."""

import gc


def main() -> None:
    """Entry point of ``rlhf``."""
    gc.disable()  # what is imported stays: looking through it for garbage takes a quarter of the start
    from rlhf_lightning.cli import main as run

    gc.freeze()  # nor has any later collection to look through it, which takes each half a second
    gc.enable()
    run()


if __name__ == "__main__":
    main()
