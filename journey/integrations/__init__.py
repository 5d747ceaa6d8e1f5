"""Other libraries.

In reading order: ``trak`` (our projectors and gradients in a ``TRAKer``), ``trak_files`` (reading its files).
"""
