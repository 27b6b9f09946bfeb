"""Which cached rows the next prompt can keep.

A conversation is rendered anew for every turn, and mostly begins with the ids that are cached
already. The answer in it may be cut into other tokens than those the model chose, with the same
text; then the cached ones stay: the model goes on from what it said, and the answer is not
computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from plm_edge.runtime.stream import TokenBytes


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    for at, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return at
    return min(len(a), len(b))


def reuse(
    cached: Sequence[int], wanted: Sequence[int], tokenizer: TokenBytes
) -> tuple[list[int], int]:
    """The prompt's ids, and how many of them, from the first, lie in the cache.

    Beyond the common prefix a stretch of text up to a special token counts as equal if its bytes
    are. At least one id is left over to run, since its logits are what comes next.
    """
    special = frozenset(tokenizer.special_ids.values())
    at = to = kept_at = kept_to = common(cached, wanted)
    left = right = b""  # bytes since both were equal; one is empty or a head of the other
    while to < len(wanted):
        if left == right:
            left = right = b""
            if wanted[to] in special:
                kept_at, kept_to = at, to
            if at < len(cached) and cached[at] == wanted[to]:
                at, to = at + 1, to + 1
                if (kept_at, kept_to) == (at - 1, to - 1):
                    kept_at, kept_to = at, to
                continue
        if len(left) <= len(right):
            if at == len(cached) or cached[at] in special:
                break
            left += tokenizer.token_bytes(cached[at])
            at += 1
        else:
            if wanted[to] in special:
                break
            right += tokenizer.token_bytes(wanted[to])
            to += 1
        if not left.startswith(right) and not right.startswith(left):
            break
    ids = [*cached[:kept_at], *wanted[kept_to:]]
    return ids, min(kept_at, len(ids) - 1)
