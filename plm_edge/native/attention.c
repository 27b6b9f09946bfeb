/* Cached rows as they meet the queries, and the running softmax. */
#include "attention.h"

/* A slice of the context as one thread leaves it: for each head the maximum of its scores, the sum of
 * exp(score - maximum) and the sum of the latents with those weights, filled up to whole blocks. */
size_t plm_partial_floats(int32_t heads, int32_t rank) { return (size_t)heads * ((size_t)plm_whole_blocks(rank) + 2); }

size_t plm_query_bytes(int32_t heads, int32_t rank, int32_t rope) {
    const plm_attention a = {.rank = rank, .rope = rope};
    const size_t width = (size_t)plm_row_width(&a), floats = (size_t)rank * sizeof(float);
    const size_t integers = width * sizeof(int16_t) + width / PLM_BLOCK * sizeof(float);
    return plm_ceil_div((size_t)heads * (integers > floats ? integers : floats), PLM_LINE) * PLM_LINE;
}

size_t plm_attention_scratch(int32_t heads, int32_t nope, int32_t rope, int32_t v_head, int32_t rank, int32_t chunk) {
    plm_attention a = {.heads = heads, .nope = nope, .rope = rope, .v_head = v_head, .rank = rank, .chunk = chunk};
    size_t most = plm_attend_scratch(&a), others[] = {plm_attend_bytes_scratch(&a), plm_expand_scratch(&a)};
    for (int i = 0; i < 2; i++)
        if (others[i] > most) most = others[i];
    return (most + 63) / 64 * 64;
}

plm_row_block plm_take_rows(plm_room *r, const plm_attention *a) {
    size_t width = (size_t)plm_row_width(a);
    plm_row_block rows;
    rows.q = plm_take(r, PLM_CONTEXT_BLOCK * width, sizeof *rows.q);
    rows.scale = plm_take(r, PLM_CONTEXT_BLOCK * width / PLM_BLOCK, sizeof *rows.scale);
    size_t ropes = PLM_CONTEXT_BLOCK * (size_t)plm_whole_blocks(a->rope);
    rows.ropes = plm_take(r, ropes, sizeof *rows.ropes);
    rows.rope_q = plm_take(r, ropes, sizeof *rows.rope_q);
    rows.rope_scale = plm_take(r, ropes / PLM_BLOCK, sizeof *rows.rope_scale);
    return rows;
}

const uint8_t *plm_cached_row(const plm_attention *a, int32_t at) {
    return (const uint8_t *)a->cache + at * plm_cache_row_bytes(a->stored, a->rank, a->rope);
}

const uint8_t *plm_rows_ahead(const plm_slice *s, int32_t at) {
    const int32_t next = plm_row_behind(s, at);
    return next < s->end ? plm_cached_row(s->a, next) : NULL;
}

/* A cached row of Q8_0: [rank int8 | rank / 32 halves, the scales | rope halves]. */
static void q8_0_to_floats(const plm_attention *a, const uint8_t *row, float *y) {
    const int32_t blocks = a->rank / PLM_BLOCK;
    const uint16_t *scales = (const void *)(row + a->rank);
    a->isa->widen_bytes((const int8_t *)row, scales, blocks, y);
    a->isa->widen(scales + blocks, a->rope, y + a->rank);
}

const float *plm_float_rows(const plm_attention *a, int32_t first, int32_t n, float *space) {
    int32_t width = a->rank + a->rope;
    const uint8_t *rows = plm_cached_row(a, first);
    if (a->stored == PLM_CACHE_F32) return (const float *)(const void *)rows;
    if (a->stored == PLM_CACHE_F16)
        a->isa->widen((const uint16_t *)(const void *)rows, n * width, space);
    else
        for (int32_t r = 0; r < n; r++) q8_0_to_floats(a, plm_cached_row(a, first + r), space + (int64_t)r * width);
    return space;
}

void plm_pack_part(const plm_isa *isa, const float *x, int32_t n, int16_t *q, float *scale) {
    int32_t whole = n / PLM_BLOCK * PLM_BLOCK;
    isa->pack(x, whole, PLM_PANEL, q, scale, NULL);
    if (whole == n) return;
    float end[PLM_BLOCK] = {0};
    memcpy(end, x + whole, (size_t)(n - whole) * sizeof *x);
    isa->pack(end, PLM_BLOCK, PLM_PANEL, q + whole, scale + whole / PLM_BLOCK, NULL);
}

/* n halves as integers, filled up to whole blocks. */
static void pack_halves(const plm_isa *isa, const uint8_t *x, int32_t n, int16_t *q, float *scale) {
    const uint16_t *halves = (const uint16_t *)(const void *)x;
    int32_t whole = n / PLM_BLOCK * PLM_BLOCK;
    isa->pack_halves(halves, whole, PLM_PANEL, q, scale);
    if (whole == n) return;
    float end[PLM_BLOCK];
    isa->widen(halves + whole, n - whole, end);
    plm_pack_part(isa, end, n - whole, q + whole, scale + whole / PLM_BLOCK);
}

/* n values of 16 bits, block by block: copies of a known size need no call. */
static inline void copy_words(void *to, const void *from, int32_t n) {
    int32_t at = 0;
    for (; at + PLM_BLOCK <= n; at += PLM_BLOCK)
        memcpy((int16_t *)to + at, (const int16_t *)from + at, PLM_BLOCK * sizeof(int16_t));
    if (at < n) memcpy((int16_t *)to + at, (const int16_t *)from + at, (size_t)(n - at) * sizeof(int16_t));
}

/* The latents and scales of rows of Q8_0, and their rope keys, which are packed all at once. */
static void integers_of_q8_0(const plm_attention *a, int32_t first, int32_t n, const plm_row_block *rows) {
    int32_t width = plm_row_width(a), blocks = a->rank / PLM_BLOCK, rope = plm_whole_blocks(a->rope);
    if (rope > a->rope) memset(rows->ropes, 0, (size_t)(n * rope) * sizeof *rows->ropes);
    for (int32_t r = 0; r < n; r++) {
        const uint8_t *row = plm_cached_row(a, first + r), *scales = row + a->rank;
        a->isa->words((const int8_t *)row, a->rank, rows->q + r * width);
        a->isa->widen((const uint16_t *)(const void *)scales, blocks, rows->scale + r * (width / PLM_BLOCK));
        copy_words(rows->ropes + r * rope, scales + 2 * blocks, a->rope);
    }
    a->isa->pack_halves(rows->ropes, n * rope, PLM_PANEL, rows->rope_q, rows->rope_scale);
    for (int32_t r = 0; r < n; r++) {
        copy_words(rows->q + r * width + a->rank, rows->rope_q + r * rope, rope);
        for (int32_t b = 0; b < rope / PLM_BLOCK; b++)
            rows->scale[r * (width / PLM_BLOCK) + blocks + b] = rows->rope_scale[r * (rope / PLM_BLOCK) + b];
    }
}

static void integers_of_halves(const plm_attention *a, int32_t first, int32_t n, const plm_row_block *rows) {
    int32_t width = plm_row_width(a), latents = plm_latent_width(a);
    if (width == a->rank + a->rope) { /* rows without gaps on both sides */
        a->isa->pack_halves((const void *)plm_cached_row(a, first), n * width, PLM_PANEL, rows->q, rows->scale);
        return;
    }
    for (int32_t r = 0; r < n; r++) {
        const uint8_t *row = plm_cached_row(a, first + r);
        int16_t *q = rows->q + r * width;
        float *scale = rows->scale + r * (width / PLM_BLOCK);
        pack_halves(a->isa, row, a->rank, q, scale);
        pack_halves(a->isa, row + 2 * a->rank, a->rope, q + latents, scale + latents / PLM_BLOCK);
    }
}

void plm_integer_rows(const plm_attention *a, int32_t first, int32_t n, const plm_row_block *rows) {
    int32_t width = plm_row_width(a);
    if (a->stored == PLM_CACHE_Q8_0)
        integers_of_q8_0(a, first, n, rows);
    else
        integers_of_halves(a, first, n, rows);
    memset(rows->q + n * width, 0, (size_t)((PLM_CONTEXT_BLOCK - n) * width) * sizeof *rows->q);
    memset(rows->scale + n * (width / PLM_BLOCK), 0,
           (size_t)((PLM_CONTEXT_BLOCK - n) * (width / PLM_BLOCK)) * sizeof(float));
}

void plm_weave_rows(const plm_isa *isa, const int16_t *x, const float *x_scale, int32_t n, int32_t width,
                       int16_t *panels, float *scales) {
    int32_t blocks = width / PLM_BLOCK;
    for (int32_t at = 0; at < n; at += PLM_TILE, panels += width * PLM_TILE, scales += blocks * PLM_TILE) {
        int32_t lanes = plm_min(PLM_TILE, n - at);
        isa->weave(x + (int64_t)at * width, width, 1, lanes, width, panels);
        isa->lanes(x_scale + at * blocks, blocks, lanes, blocks, scales);
    }
}

float plm_online_softmax(const plm_isa *isa, float *scores, int32_t n, float *most, float *sum) {
    float top = *most;
    for (int32_t r = 0; r < n; r++)
        if (!(scores[r] <= top)) top = scores[r]; /* a NaN shows in its own weight */
    float shrink = *sum == 0.0f ? 0.0f : plm_exp(*most - top);
    float total = 0.0f;
    for (int32_t r = 0; r < n; r++) scores[r] -= top;
    isa->exps(scores, n);
    for (int32_t r = 0; r < n; r++) total += scores[r];
    *sum = *sum * shrink + total;
    *most = top;
    return shrink;
}
