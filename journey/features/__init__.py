"""The first verb: a dataset, measured once.

In reading order: ``fit`` (learns from some of the images first), ``fitted`` (the fit on disk), ``gram_rows`` (the
rows of its Gram matrix), ``gram_blocks`` (the part of single images in it), ``featurize`` (the verb), ``features`` (its
result), ``open`` (the same, stored earlier), ``begin`` (the store of a run), ``choices`` (what the caller chose),
``prepare`` (what comes before measuring or planning), ``identity`` (fingerprints of everything that features depend
on), ``contents`` (whether images are those that were measured), ``row_plan`` (how many draws go through the network at
once), ``fill`` and ``fill_stream`` (the loops over shards, of a dataset and of a stream), ``filled`` (one shard),
``measurer`` (items in, rows out), ``worker`` (the same for other engines), ``layer_sizes`` (how large the gradients of
each layer were, for a few images).

Before all of them ``plan`` (what featurizing will take), ``planned`` (its result), ``plan_fit``, ``plan_measure`` and
``plan_sizes`` (the parts of it), ``plan_times`` (times with their spread).
"""
