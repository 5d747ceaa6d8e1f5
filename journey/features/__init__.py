"""The first verb: a dataset, measured once.

In reading order: ``fit`` (learns from some of the images first), ``fitted`` (the fit on disk), ``gram_rows`` (the rows
of its Gram matrix), ``featurize`` (the verb), ``features`` (its result), ``open`` (the same, stored earlier),
``identity`` (fingerprints of everything that features depend on), ``row_plan`` (how many draws go through the network
at once), ``fill`` (the loop over shards), ``layer_sizes`` (how large the gradients of each layer were, for a few
images).
"""
