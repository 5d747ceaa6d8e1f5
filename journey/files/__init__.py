"""Atomic writing of files, and fingerprints of their contents.

In reading order: ``paths`` (a folder, or an address on an object store), ``publish`` (write under another name, sync,
rename), ``objects`` (whole objects of a store, and its errors), ``copies`` (of objects, to map into memory), ``lock``
(one process at a time in a folder), ``tensors`` (one safetensors file of a kind, with the SHA-256 of its tensors),
``fingerprint`` (hashes of tensors and JSON values), ``named`` (choices that a fingerprint names).
"""
