"""The first verb: a dataset, measured once.

In reading order: ``featurize`` (the verb), ``features`` (what it gives), ``open`` (the same, stored earlier),
``identity`` (what features depend on, as fingerprints), ``row_plan`` (how many draws go through the network at once),
``fits`` (what is learned from some of the images first), ``fill`` (the loop over shards), ``layer_sizes`` (how large
the gradients of each layer were, for a few images).
"""
