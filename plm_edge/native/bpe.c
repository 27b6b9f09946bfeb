#include "bpe.h"

#include <string.h>

#define NONE UINT32_MAX

/* ---------------------------------------------------------------- the byte alphabet */

/* The character of a byte: itself where it prints, else the next one from 256 on
 * (bytes_to_unicode of openai/gpt-2, src/encoder.py). */
static int prints(uint32_t c) {
    return (c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
}

/* byte_of[c] for the characters 0..323; -1 where a character stands for no byte. */
static void fill_byte_of(int16_t byte_of[324]) {
    int16_t shifted = 256;
    for (int c = 0; c < 324; c++) byte_of[c] = -1;
    for (int16_t b = 0; b < 256; b++) {
        if (prints((uint32_t)b)) byte_of[b] = b;
        else byte_of[shifted++] = b;
    }
}

/* Spell out a token in raw bytes. Returns how many, or -1 at a character of another alphabet. */
static int64_t unmap(const uint8_t *text, int64_t n, const int16_t byte_of[324], uint8_t *raw) {
    int64_t made = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t c = text[i];
        if (c >= 0x80) {
            if (c < 0xc2 || c > 0xdf || i + 1 >= n || (text[i + 1] & 0xc0) != 0x80) return -1;
            c = (c & 0x1f) << 6 | (text[++i] & 0x3f);
        }
        if (c >= 324 || byte_of[c] < 0) return -1;
        raw[made++] = (uint8_t)byte_of[c];
    }
    return made;
}

/* ---------------------------------------------------------------- the two hash tables */

/* FNV-1a, which goes on from the hash of the text before: hash(hash(a), b) is the hash of ab. */
#define HASH_START 14695981039346656037u
static uint64_t hash_text(uint64_t h, const uint8_t *text, int64_t n) {
    for (int64_t i = 0; i < n; i++) h = (h ^ text[i]) * 1099511628211u;
    return h;
}

static uint64_t mixed(uint64_t h) {
    h = (h ^ h >> 32) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}

/* The slot of the token spelt `a` then `b`: its own, or the free one where it would stand. */
static uint32_t *token_slot(const struct plm_bpe_build *t, const uint8_t *a, int64_t n_a,
                            const uint8_t *b, int64_t n_b) {
    uint64_t mask = (uint64_t)t->token_slot_mask;
    uint64_t slot = mixed(hash_text(hash_text(HASH_START, a, n_a), b, n_b)) & mask;
    for (;; slot = (slot + 1) & mask) {
        uint32_t id = t->token_slots[slot];
        if (id == NONE) return t->token_slots + slot;
        const uint8_t *text = t->token_blob + t->token_offsets[id];
        int64_t n = t->token_offsets[id + 1] - t->token_offsets[id];
        if (n == n_a + n_b && memcmp(text, a, (size_t)n_a) == 0
            && memcmp(text + n_a, b, (size_t)n_b) == 0)
            return t->token_slots + slot;
    }
}

static uint64_t pair_hash(uint32_t left, uint32_t right) {
    return mixed((uint64_t)left << 32 | right);
}

/* The rank of merging left and right, NONE where they do not merge. */
static uint32_t rank_of(const struct plm_bpe_encode *e, uint32_t left, uint32_t right) {
    uint64_t mask = (uint64_t)e->merge_slot_mask;
    uint64_t slot = pair_hash(left, right) & mask;
    for (;; slot = (slot + 1) & mask) {
        uint32_t rank = e->merge_slots[slot];
        if (rank == NONE || (e->left[rank] == left && e->right[rank] == right)) return rank;
    }
}

/* ---------------------------------------------------------------- building */

static int offsets_ok(const int64_t *offsets, int64_t n, int64_t *where) {
    for (int64_t i = 0; i < n; i++) {
        if (offsets[i] < 0 || offsets[i + 1] < offsets[i]) {
            *where = i;
            return 0;
        }
    }
    return 1;
}

static int32_t add_tokens(struct plm_bpe_build *b) {
    int16_t byte_of[324];
    fill_byte_of(byte_of);
    for (int64_t i = 0; i < 256; i++) b->byte_ids[i] = NONE;
    memset(b->token_slots, 0xff, ((size_t)b->token_slot_mask + 1) * sizeof *b->token_slots);

    b->raw_offsets[0] = 0;
    for (int64_t id = 0; id < b->n_tokens; id++) {
        const uint8_t *text = b->token_blob + b->token_offsets[id];
        uint8_t *raw = b->raw + b->raw_offsets[id];
        int64_t n = b->token_offsets[id + 1] - b->token_offsets[id];
        int64_t n_raw = n;
        b->where = id;
        if (b->added[id]) memcpy(raw, text, (size_t)n);
        else n_raw = unmap(text, n, byte_of, raw);
        if (n_raw <= 0) return PLM_BPE_BAD_TOKEN;
        b->raw_offsets[id + 1] = b->raw_offsets[id] + n_raw;

        uint32_t *slot = token_slot(b, text, n, text, 0);
        if (*slot != NONE) return PLM_BPE_TWIN_TOKEN;
        *slot = (uint32_t)id;
        if (n_raw == 1 && !b->added[id]) b->byte_ids[raw[0]] = (uint32_t)id;
    }
    for (b->where = 0; b->where < 256; b->where++)
        if (b->byte_ids[b->where] == NONE) return PLM_BPE_NO_BYTE;
    return PLM_BPE_OK;
}

static int mergeable(const struct plm_bpe_build *b, uint32_t id) {
    return id != NONE && !b->added[id];
}

static int32_t add_merges(struct plm_bpe_build *b) {
    uint64_t mask = (uint64_t)b->merge_slot_mask;
    memset(b->merge_slots, 0xff, ((size_t)mask + 1) * sizeof *b->merge_slots);

    for (int64_t rank = 0; rank < b->n_merges; rank++) {
        const uint8_t *text = b->merge_blob + b->merge_offsets[rank];
        int64_t n = b->merge_offsets[rank + 1] - b->merge_offsets[rank];
        const uint8_t *space = n ? memchr(text, ' ', (size_t)n) : NULL;
        b->where = rank;
        if (!space) return PLM_BPE_BAD_MERGE;
        int64_t n_left = space - text, n_right = n - n_left - 1;
        if (n_left == 0 || n_right == 0 || memchr(space + 1, ' ', (size_t)n_right))
            return PLM_BPE_BAD_MERGE;

        uint32_t left = *token_slot(b, text, n_left, text, 0);
        uint32_t right = *token_slot(b, space + 1, n_right, text, 0);
        uint32_t result = *token_slot(b, text, n_left, space + 1, n_right);
        if (!mergeable(b, left) || !mergeable(b, right) || !mergeable(b, result))
            return PLM_BPE_UNKNOWN_PART;
        b->left[rank] = left;
        b->right[rank] = right;
        b->result[rank] = result;

        uint64_t slot = pair_hash(left, right) & mask;
        for (; b->merge_slots[slot] != NONE; slot = (slot + 1) & mask) {
            uint32_t other = b->merge_slots[slot];
            if (b->left[other] == left && b->right[other] == right) return PLM_BPE_TWIN_MERGE;
        }
        b->merge_slots[slot] = (uint32_t)rank;
    }
    return PLM_BPE_OK;
}

int32_t plm_bpe_build(struct plm_bpe_build *b) {
    if (!offsets_ok(b->token_offsets, b->n_tokens, &b->where)
        || !offsets_ok(b->merge_offsets, b->n_merges, &b->where))
        return PLM_BPE_BAD_OFFSETS;
    int32_t code = add_tokens(b);
    return code == PLM_BPE_OK ? add_merges(b) : code;
}

/* ---------------------------------------------------------------- merging */

/* The ranks of all pairs of a word lie in a tree of minima, 16 to a node (one cache line): the best
 * pair is found and a changed one is noted in log16(n) steps, fewer where the minimum stays. A word
 * of up to 17 bytes is one node. Rank i belongs to the pair that begins at byte i. */
#define FAN 16
#define MAX_LEVELS 8 /* 16^8 = 2^32 */

struct tree {
    uint32_t *level[MAX_LEVELS]; /* level[0] the ranks; each padded with NONE to whole nodes */
    int top;
};

static int64_t padded(int64_t n) { return (n + FAN - 1) / FAN * FAN; }

int64_t plm_bpe_work_values(int64_t bytes) {
    int64_t values = 3 * bytes + FAN; /* ids, before, after; room to align */
    int64_t n = padded(bytes > 0 ? bytes : 1);
    for (; n > FAN; n = padded(n / FAN)) values += n;
    return values + n;
}

static uint32_t node_min(const uint32_t *node) {
    uint32_t least = node[0];
    for (int i = 1; i < FAN; i++) least = node[i] < least ? node[i] : least;
    return least;
}

static void tree_build(struct tree *t, uint32_t *ranks, int64_t n) {
    t->level[0] = ranks;
    t->top = 0;
    for (int64_t width = padded(n); width > FAN;) {
        uint32_t *below = t->level[t->top], *level = below + width;
        int64_t nodes = width / FAN;
        t->level[++t->top] = level;
        width = padded(nodes);
        for (int64_t i = 0; i < nodes; i++) level[i] = node_min(below + i * FAN);
        for (int64_t i = nodes; i < width; i++) level[i] = NONE;
    }
}

static void tree_set(struct tree *t, int64_t at, uint32_t rank) {
    t->level[0][at] = rank;
    for (int l = 0; l < t->top; l++) {
        uint32_t least = node_min(t->level[l] + at / FAN * FAN);
        at /= FAN;
        if (t->level[l + 1][at] == least) return;
        t->level[l + 1][at] = least;
    }
}

/* The leftmost pair of the lowest rank; -1 where nothing merges. `rank` is that of the pair before,
 * and no pair of that rank lies left of `from`: where it stays the lowest, the search goes on from
 * there, in constant time where the next pair is near, as in a run of one letter. */
static int64_t tree_next(const struct tree *t, int64_t from, uint32_t *rank) {
    uint32_t least = node_min(t->level[t->top]);
    int64_t at = least == *rank ? from : 0;
    int l = least == *rank ? 0 : t->top;
    *rank = least;
    if (least == NONE) return -1;
    for (;; l++) { /* up, to the first node that has it at `at` or to the right */
        const uint32_t *level = t->level[l];
        int64_t end = at / FAN * FAN + FAN;
        while (at < end && level[at] != least) at++;
        if (at < end) break;
        at = end / FAN;
    }
    while (l-- > 0) /* down */
        for (at *= FAN; t->level[l][at] != least;) at++;
    return at;
}

static int64_t merge_word(const struct plm_bpe_encode *e, const uint8_t *word, int64_t n,
                          uint32_t *out) {
    uint32_t *ids = e->work, *before = ids + n, *after = before + n;
    /* Whole nodes of the tree begin where the next 64 bytes of the work memory begin. */
    uintptr_t end = (uintptr_t)(after + n);
    uint32_t *ranks = after + n + (size_t)((64 - end % 64) % 64 / sizeof *ranks);
    struct tree tree;

    for (int64_t i = 0; i < n; i++) {
        ids[i] = e->byte_ids[word[i]];
        before[i] = i ? (uint32_t)(i - 1) : NONE;
        after[i] = i + 1 < n ? (uint32_t)(i + 1) : NONE;
    }
    for (int64_t i = 0; i + 1 < n; i++) ranks[i] = rank_of(e, ids[i], ids[i + 1]);
    for (int64_t i = n - 1; i < padded(n); i++) ranks[i] = NONE;
    tree_build(&tree, ranks, n);

    uint32_t rank = NONE;
    int64_t from = 0;
    for (int64_t at; (at = tree_next(&tree, from, &rank)) >= 0;) {
        uint32_t gone = after[at], next = after[gone], previous = before[at];
        ids[at] = e->result[rank];
        after[at] = next;
        if (next != NONE) before[next] = (uint32_t)at;
        if (ranks[gone] != NONE) tree_set(&tree, gone, NONE);
        tree_set(&tree, at, next == NONE ? NONE : rank_of(e, ids[at], ids[next]));
        if (previous != NONE) {
            uint32_t with = rank_of(e, ids[previous], ids[at]);
            if (with != ranks[previous]) tree_set(&tree, previous, with);
        }
        from = previous == NONE ? at : previous;
    }
    int64_t made = 0;
    for (uint32_t i = 0; i != NONE; i = after[i]) out[made++] = ids[i];
    return made;
}

int64_t plm_bpe_encode(struct plm_bpe_encode *e) {
    int64_t made = 0;
    for (int64_t w = 0; w < e->n_words; w++) {
        int64_t n = e->word_offsets[w + 1] - e->word_offsets[w];
        e->id_offsets[w] = made;
        if (n > 0) made += merge_word(e, e->words + e->word_offsets[w], n, e->ids + made);
    }
    e->id_offsets[e->n_words] = made;
    return made;
}
