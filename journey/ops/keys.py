"""Names of random streams: a seed and what the numbers are for, hashed to the 64-bit key of the generator."""

import hashlib

# The use of a draw of timesteps or captions: the last word of the counter. The other uses are named where the kernels
# are (csrc/common/philox.h); ``journey.ops.reference`` names all of them again, and a test compares.
STREAM_TIMESTEP = 6


def derive_key(seed: int, *parts: str | int) -> int:
    """Return the 64-bit key of the stream named by ``seed`` and ``parts``, in ``[0, 2**64)``.

    The key is BLAKE2b-64 of the seed and the parts, each with its type and length, so that different names give
    independent streams on every machine and nothing depends on the order in which streams are asked for.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *parts):
        text = str(part).encode()
        digest.update(f"{type(part).__name__}:{len(text)}:".encode())
        digest.update(text)
    return int.from_bytes(digest.digest(), "little")


def to_signed(key: int) -> int:
    """Return the int64 with the bits of the unsigned ``key``: the form in which torch carries it."""
    return key - 2**64 if key >= 2**63 else key


def to_unsigned(key: int) -> int:
    """Return the inverse of ``to_signed``."""
    return key % 2**64
