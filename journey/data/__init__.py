"""Training images in common formats.

In reading order: ``items`` (the image, the captions and the label of what a dataset gives), ``ids`` (by which images
are named), ``folder`` (a folder of
images as a dataset), and what it is put together from: ``listing`` (which files are images, and which are passed over),
``picture`` (an image file, decoded and scaled), ``metadata`` (what ``metadata.jsonl`` and ``metadata.csv`` tell) and
``captions`` (text files beside the images). Beside them ``numbers`` (indices and labels of the forms people have).
"""
