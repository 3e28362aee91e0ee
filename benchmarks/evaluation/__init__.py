"""Our scores against those of the benchmarks' own scripts, which are read where a user has them."""
