"""The plain read that speeds are held against: it meets every byte, on any number of threads."""

from __future__ import annotations

import numpy as np

from plm_edge.native.bandwidth import Reader, read


def test_a_plain_read_meets_every_word() -> None:
    data = np.random.default_rng(0).integers(0, 256, 64 * 9, dtype=np.uint8)
    assert read(data) == int(data.view("<u8").sum(dtype=np.uint64))
    assert read(data[:-1]) == int(data[:-64].view("<u8").sum(dtype=np.uint64))  # whole lines
    for at in (0, 63, 64 * 9 - 1):
        bent = data.copy()
        bent[at] ^= 1
        assert read(bent) != read(data)


def test_a_reader_takes_any_number_of_threads() -> None:
    reader = Reader(1 << 20)
    assert all(reader.bytes_per_s(threads) > 0 for threads in (1, 3))
