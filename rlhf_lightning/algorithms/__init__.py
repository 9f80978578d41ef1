"""The mathematics of the recipe: losses, estimators, batches, keyed random numbers."""
