"""The kinds of instruction of the sealed world, each with its generator, its answers and its checker."""
