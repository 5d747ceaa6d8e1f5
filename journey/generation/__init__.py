"""The second verb: how a model makes an image, and which images it may still become.

In reading order: ``trajectory`` (the recorded steps), ``record`` (sampling with a record), ``sampler`` (one step at a
time, from any step on), ``noised`` (given images in place of generated ones), ``completions`` (other ends of one
image), ``transitions`` (when a feature is decided), ``likelihood`` (the statistics of that).
"""
