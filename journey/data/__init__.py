"""Training images in the forms people have them.

In reading order: ``items`` (the image, the captions and the label of what a dataset gives), ``folder`` (a folder of
images as a dataset), ``numbers`` (what else people give as numbers).
"""
