"""Atomic writing of files, and fingerprints of their contents.

In reading order: ``publish`` (write under another name, sync, rename), ``lock`` (one process at a time in a folder),
``tensors`` (one safetensors file of a kind, with the SHA-256 of its tensors), ``fingerprint`` (hashes of tensors and
JSON values), ``named`` (choices that a fingerprint names).
"""
