"""A folder of features that survives crashes, readable without this package.

In reading order: ``store`` (create, resume, read), ``manifest`` (what a run is, by fingerprints), ``shard`` (the rows
of some images in one file), ``rows`` (the forms of a row: 8 bits, 4 bits, floats).
"""
