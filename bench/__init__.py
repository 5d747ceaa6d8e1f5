"""Benchmarks of the compiled operations and of a whole featurizing step, beside peers and the machine's own ceilings.

``python -m bench`` runs everything; ``bench/README.md`` says what is measured and against what.
"""
