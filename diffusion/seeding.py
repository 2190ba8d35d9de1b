"""Randomness by name: every draw comes from a generator keyed by what it is for, never from global state.

So a draw depends on (seed, purpose, step, lane) alone: not on the number of workers, the device, the
order of calls or what was drawn before. This is what makes training and sampling split-invariant.
"""

from __future__ import annotations

import hashlib

import numpy as np

FEISTEL_ROUNDS = 8


def key(seed: int, purpose: str, step: int = 0, lane: int = 0) -> int:
    """128 bits of SHA-256 over the arguments, as an int. A 32-bit seed would collide within 10^5 pictures."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{step}/{lane}".encode()).digest()[:16], "little")


def generator(seed: int, purpose: str, step: int = 0, lane: int = 0) -> np.random.Generator:
    """A numpy Philox generator (Salmon et al. 2011) for one purpose, step and lane; equal arguments, equal stream."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, step, lane)))


def image_seeds(seed: int, start: int, stop: int) -> list[int]:
    """The seeds, in [0, 2^63), of the images with index start … stop-1 of a request with this seed."""
    return [key(seed, "image", lane=index) >> 65 for index in range(start, stop)]


def permuted(index: int, size: int, seed: int, purpose: str) -> int:
    """Where a keyed permutation of 0 … size-1 takes `index`, without making the permutation: the same cost at any size.

    A Feistel network (Luby & Rackoff 1988) over the next power of four, walked until it lands inside.
    """
    assert 0 <= index < size, (index, size)
    bits = -(-(size - 1).bit_length() // 2)
    mask = (1 << bits) - 1
    while True:
        left, right = index >> bits, index & mask
        for feistel_round in range(FEISTEL_ROUNDS):
            left, right = right, left ^ (key(seed, purpose, step=feistel_round, lane=right) & mask)
        index = left << bits | right
        if index < size:
            return index
