"""Training images in common formats.

In reading order: ``items`` (the image, the captions and the label of what a dataset gives), ``ids`` (by which images
are named), ``sources`` (whatever holds images, opened) and ``loader`` (worker processes that read ahead). A source is a
``folder``, ``parquet`` files, or a ``stream``, such as the shards in ``tar``. They are put together from ``listing``
(which files are images, and which are passed over), ``patterns`` (names of several files), ``picture`` (an image file,
decoded and scaled), ``metadata`` (what ``metadata.jsonl`` and its like tell), ``tables`` (parquet, opened) and
``captions`` (text files beside the images). Beside them ``numbers`` (indices and labels of the forms people have).
"""
