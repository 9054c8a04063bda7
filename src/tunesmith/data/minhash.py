"""Near-equal texts by MinHash (Broder 1997) with banding: linear in the rows, whatever the number
of pairs.

A text is the set of its word pairs, case and punctuation apart. 128 hashes in 32 bands of 4 find a
pair of Jaccard similarity 0.8 with probability over 0.99999; each candidate pair is then judged by
the share of its 128 hashes that agree.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

HASHES, BANDS = 128, 32
# texts compared with each one that falls into the same band: what keeps a band of a thousand linear
NEIGHBOURS = 32
_WORD = re.compile(r"\w+")


def near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> list[list[int]]:
    """Groups of two or more indices whose texts are near-equal, each group and the list in rising
    order."""
    signatures = _signatures(texts)
    parent = np.arange(len(texts))
    bands = signatures.reshape(len(texts), BANDS, HASHES // BANDS)
    for band in range(BANDS):
        order = np.lexsort(
            (*bands[:, (band + 1) % BANDS].T, *bands[:, band].T)
        )  # within a band, the likest beside each other
        for apart in range(1, NEIGHBOURS + 1):
            a, b = order[:-apart], order[apart:]
            alike = (bands[a, band] == bands[b, band]).all(1)
            a, b = a[alike], b[alike]
            agree = (signatures[a] == signatures[b]).mean(1) >= threshold
            for i, j in zip(a[agree].tolist(), b[agree].tolist(), strict=True):
                _join(parent, i, j)
    groups: dict[int, list[int]] = {}
    for i in range(len(texts)):
        groups.setdefault(_root(parent, i), []).append(i)
    return sorted(g for g in groups.values() if len(g) > 1)


def _signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """(texts, HASHES): the least value of each hash over a text's word pairs."""
    numbers: dict[str, int] = {}
    words: list[int] = []
    starts: list[int] = []
    for text in texts:
        starts.append(len(words))
        for word in _WORD.findall(text.lower()):
            if (
                word not in numbers
            ):  # a word's number is its own, so that a pair is judged alike in any company
                numbers[word] = int.from_bytes(
                    blake2b(word.encode(errors="replace"), digest_size=8).digest(), "big"
                )
            words.append(numbers[word])
        words.append(
            0
        )  # the last word pairs with nothing, so that a text of one word is a set of one
    flat = np.asarray(words, np.uint64)
    pairs = _mixed(flat * np.uint64(0x9E3779B97F4A7C15) + np.append(flat[1:], np.uint64(0)))
    ends = (
        np.asarray([*starts[1:], len(words)], np.int64) - 1
    )  # a pair of an end mark and the next text's first word belongs to neither text
    pairs[ends] = np.uint64(2**64 - 1)
    generator = np.random.default_rng(0)
    found = np.empty((len(texts), HASHES), np.uint32)
    for h in range(HASHES):
        factor, shift = generator.integers(0, 2**63, 2, dtype=np.uint64)
        values = _mixed(pairs * (factor | np.uint64(1)) + shift) >> np.uint64(32)
        values[ends] = np.uint64(2**32 - 1)
        found[:, h] = np.minimum.reduceat(values, starts)
    return found


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return x ^ (x >> np.uint64(29))


def _root(parent: NDArray[np.int64], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


def _join(parent: NDArray[np.int64], i: int, j: int) -> None:
    a, b = _root(parent, i), _root(parent, j)
    parent[max(a, b)] = min(a, b)
