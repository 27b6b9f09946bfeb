"""The plain read that speeds are held against: it meets every line, on any number of threads."""

from __future__ import annotations

import numpy as np

from plm_edge.native.bandwidth import Reader, read


def test_a_plain_read_meets_every_line() -> None:
    for lines in (1, 4, 9, 23):
        data = np.random.default_rng(0).integers(0, 256, 64 * lines, dtype=np.uint8)
        words = data.view("<u8")[::8]
        assert read(data) == int(words.sum(dtype=np.uint64))
        assert read(data[:-1]) == int(words[:-1].sum(dtype=np.uint64))  # whole lines
        for line in range(lines):
            bent = data.copy()
            bent[64 * line] ^= 1
            assert read(bent) != read(data)


def test_a_reader_takes_any_number_of_threads() -> None:
    reader = Reader(1 << 20)
    assert all(reader.bytes_per_s(threads) > 0 for threads in (1, 3))
