"""Our own figure for each claim of the article that this library follows: ``python -m bench.seeds``."""
