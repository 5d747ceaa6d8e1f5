"""Other libraries.

In reading order: ``ray`` (featurizing on a Ray cluster), ``trak`` (our projectors and gradients in a ``TRAKer``),
``trak_files`` (reading its files).
"""
