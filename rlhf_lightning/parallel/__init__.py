"""Several processes as one: reductions, sharded weights, throughput."""
