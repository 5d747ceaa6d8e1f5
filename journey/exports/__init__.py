"""Scores and features in the forms of other tools, from plain tensors and lists.

In reading order: ``tables`` (pandas, Parquet, ``datasets``), ``vectors`` (features as an index of FAISS, Parquet,
Lance), ``csv`` (for spreadsheets), ``whole`` (files that other libraries write), ``packages`` (optional ones).
"""
