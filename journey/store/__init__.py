"""A folder of features that survives crashes, readable without this package.

In reading order: ``store`` (create, resume, read), ``layout`` (which shards there are and are to be), ``part``
(images that were planned together), ``ids`` (ids as tensors), ``manifest`` (what a run is, by fingerprints),
``shard`` (the rows of some images in one file), ``rows`` (the forms of a row: 8 bits, 4 bits, floats), ``marks``
(files that were verified).
"""
