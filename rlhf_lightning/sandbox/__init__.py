"""The sealed world: instructions whose true preference is known exactly."""
