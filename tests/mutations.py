"""Random damage to a file, the same for the same seed."""

from __future__ import annotations

import random


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to three random faults: a bit, a byte, a cut, a piece doubled, a number made extreme."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(out)) if out else 0
        match rng.randrange(6):
            case 0 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at] = rng.choice(b'\x00\xff\x7f\x80 "{}[],:-0179.e')
            case 2:
                del out[at:]
            case 3:
                del out[at : at + rng.randint(1, 8)]
            case 4:
                out[at:at] = out[at : at + rng.randint(1, 16)]
            case 5:
                out[at : at + 8] = rng.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]).to_bytes(
                    8, "little"
                )
    return bytes(out)
