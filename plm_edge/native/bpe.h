/* Byte-level BPE: the vocabulary's tables, and the merging of words.
 *
 * A token is spelt in the alphabet of GPT-2, one character (1 or 2 bytes of UTF-8) for each byte of
 * text; a merge is two tokens with one space between. Nothing here allocates: the caller owns every
 * array, and the tables are read-only once they are built. */
#ifndef PLM_BPE_H
#define PLM_BPE_H

#include <stdint.h>

#include "plm.h"

/* What a build can find. The index of the token, merge or byte at fault is in `where`. */
enum {
    PLM_BPE_OK = 0,
    PLM_BPE_BAD_OFFSETS = 1,      /* offsets run backwards or past the end */
    PLM_BPE_BAD_TOKEN = 2,        /* a character outside the byte alphabet, or an empty token */
    PLM_BPE_TWIN_TOKEN = 3,       /* two tokens spelt alike */
    PLM_BPE_NO_BYTE = 4,          /* one of the 256 bytes has no token */
    PLM_BPE_BAD_MERGE = 5,        /* not two parts with one space between */
    PLM_BPE_UNKNOWN_PART = 6,     /* a part, or what both make, is not a token that text can become */
    PLM_BPE_TWIN_MERGE = 7        /* the same merge twice */
};

struct plm_bpe_build {
    const uint8_t *token_blob;    /* all tokens, UTF-8, one after the other */
    const int64_t *token_offsets; /* (n_tokens + 1) into token_blob, from 0 */
    const uint8_t *added;         /* (n_tokens) 1: verbatim text, never made by merges */
    const uint8_t *merge_blob;    /* all merges; the place in the list is the rank */
    const int64_t *merge_offsets; /* (n_merges + 1) */
    uint32_t *token_slots;        /* work: (token_slot_mask + 1), a power of two above n_tokens */
    uint32_t *merge_slots;        /* out: (merge_slot_mask + 1), a power of two above n_merges */
    uint32_t *left;               /* out: (n_merges) token ids */
    uint32_t *right;              /* out: (n_merges) */
    uint32_t *result;             /* out: (n_merges) */
    uint32_t *byte_ids;           /* out: (256) token of each byte */
    uint8_t *raw;                 /* out: the bytes each token stands for; as many as token_blob at most */
    int64_t *raw_offsets;         /* out: (n_tokens + 1) */
    int64_t n_tokens;             /* below 2^31 */
    int64_t n_merges;             /* below 2^31 */
    int64_t token_slot_mask;
    int64_t merge_slot_mask;
    int64_t where;                /* out */
};

struct plm_bpe_encode {
    const uint32_t *merge_slots;  /* the tables that plm_bpe_build made */
    const uint32_t *left;
    const uint32_t *right;
    const uint32_t *result;
    const uint32_t *byte_ids;
    const uint8_t *words;         /* raw bytes, one word after the other */
    const int64_t *word_offsets;  /* (n_words + 1), from 0, ascending; each word below 2^31 bytes */
    uint32_t *ids;                /* out: room for as many ids as there are bytes */
    int64_t *id_offsets;          /* out: (n_words + 1) */
    uint32_t *work;               /* plm_bpe_work_values(longest word) values */
    int64_t merge_slot_mask;
    int64_t n_words;
};

/* Check the vocabulary and build its tables. Returns one of the codes above. */
PLM_API int32_t plm_bpe_build(struct plm_bpe_build *b);

/* Values (uint32) of work memory for a word of `bytes` bytes. */
PLM_API int64_t plm_bpe_work_values(int64_t bytes);

/* Merge each word: the pair of lowest rank first, of equal ones the leftmost. Returns how many ids. */
PLM_API int64_t plm_bpe_encode(struct plm_bpe_encode *e);

#endif
