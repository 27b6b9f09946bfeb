/* ATTEND over a cache of Q8_0 whose latents meet the queries as the bytes they are: a query's latent becomes bytes with
 * a scale for each block of 32, and the weights of 64 rows become bytes too. Rope keys, cached as halves, meet theirs
 * in floats. */
#include "attention.h"

enum { AT_ONCE = 16 }; /* rows that are laid out and scored together: few enough for the first cache */

/* Within the room of plm_query_bytes: floats need more. */
typedef struct {
    int8_t *q;      /* (heads, rank) */
    float *scale;   /* (heads, rank / 32), with the scale of the scores in it */
    int32_t *start; /* (heads, rank / 32): -128 times the sum of q */
} byte_queries;

static byte_queries queries_at(const plm_attention *a, uint8_t *queries) {
    const int64_t size = (int64_t)a->heads * a->rank;
    float *scale = (float *)(void *)(queries + size);
    return (byte_queries){(int8_t *)queries, scale, (int32_t *)(void *)(scale + size / PLM_BLOCK)};
}

void plm_pack_byte_query(const plm_attention *a, int32_t head, const float *latent, int16_t *space, uint8_t *queries) {
    const byte_queries all = queries_at(a, queries);
    const int32_t blocks = a->rank / PLM_BLOCK;
    int8_t *q = all.q + (int64_t)head * a->rank;
    float *scale = all.scale + head * blocks;
    int32_t *start = all.start + head * blocks;
    a->isa->pack(latent, a->rank, PLM_BYTE, space, scale, start);
    for (int32_t i = 0; i < a->rank; i++) q[i] = (int8_t)space[i];
    for (int32_t b = 0; b < blocks; b++) scale[b] *= a->scale, start[b] *= -128;
}

typedef struct {
    int8_t *panels;             /* the queries' latents: (groups of 16 heads, rank / 4, 16, 4) */
    int32_t *start;             /* (groups, rank / 32, 16) */
    float *scales;              /* the same */
    float *ropes;               /* the queries' rope keys: (groups, rope, 16) */
    uint8_t *row;               /* (16, rank), as lay_bytes makes them */
    int8_t *four;               /* (64, rank) */
    float *tails;               /* (64, rank / 32 + rope): scales and rope keys of rows */
    float *scores;              /* (groups, 64, 16), then the weights */
    float *most, *sum, *shrink; /* (groups, 16), (groups, 16), (16) */
} byte_room;

static size_t take_bytes(byte_room *w, uint8_t *base, const plm_attention *a) {
    plm_room r = {base, 0};
    const size_t groups = plm_panels_of(a->heads), rank = (size_t)plm_latent_width(a), rope = (size_t)a->rope;
    const size_t blocks = rank / PLM_BLOCK, rows = PLM_BYTE_ROWS;
    w->panels = plm_take(&r, groups * rank * PLM_TILE, sizeof *w->panels);
    w->start = plm_take(&r, groups * blocks * PLM_TILE, sizeof *w->start);
    w->scales = plm_take(&r, groups * blocks * PLM_TILE, sizeof *w->scales);
    w->ropes = plm_take(&r, groups * rope * PLM_TILE, sizeof *w->ropes);
    w->row = plm_take(&r, AT_ONCE * rank, sizeof *w->row);
    w->four = plm_take(&r, rows * rank, sizeof *w->four);
    w->tails = plm_take(&r, rows * (blocks + rope), sizeof *w->tails);
    w->scores = plm_take(&r, groups * rows * PLM_TILE, sizeof *w->scores);
    w->most = plm_take(&r, groups * PLM_TILE, sizeof *w->most);
    w->sum = plm_take(&r, groups * PLM_TILE, sizeof *w->sum);
    w->shrink = plm_take(&r, PLM_TILE, sizeof *w->shrink);
    return r.used;
}

size_t plm_attend_bytes_scratch(const plm_attention *a) {
    byte_room w;
    return take_bytes(&w, NULL, a);
}

/* n times 32 bits of each head of a group, side by side. */
static void beside_each_other(const plm_slice *s, int32_t first, const void *x, int32_t stride, int32_t n, void *y) {
    const int32_t lanes = plm_min(PLM_TILE, s->a->heads - first);
    s->a->isa->lanes((const float *)x, stride, lanes, n, (float *)y);
}

/* The queries of the group of 16 heads that begins at `first`. */
static void weave_queries(const plm_slice *s, int32_t first, const byte_room *w) {
    const plm_attention *a = s->a;
    const byte_queries all = queries_at(a, s->queries);
    const int32_t words = a->rank / 4, blocks = a->rank / PLM_BLOCK, each = a->nope + a->rope;
    beside_each_other(s, first, all.q + (int64_t)first * a->rank, words, words, w->panels + (int64_t)first * a->rank);
    beside_each_other(s, first, all.start + first * blocks, blocks, blocks, w->start + first * blocks);
    beside_each_other(s, first, all.scale + first * blocks, blocks, blocks, w->scales + first * blocks);
    beside_each_other(s, first, s->q + (int64_t)first * each + a->nope, each, a->rope, w->ropes + first * a->rope);
}

/* The scores of n rows from `at` on, and what the weights will need of them. */
static void score_rows(const plm_slice *s, int32_t at, int32_t n, const byte_room *w) {
    const plm_attention *a = s->a;
    const int64_t row_bytes = plm_cache_row_bytes(a->stored, a->rank, a->rope);
    const int32_t rank = a->rank, blocks = rank / PLM_BLOCK, tail = blocks + a->rope;
    for (int32_t r = 0; r < n; r += AT_ONCE) {
        const int32_t rows = plm_min(AT_ONCE, n - r);
        const uint8_t *cached = plm_cached_row(a, at + r);
        float *tails = w->tails + r * tail;
        a->isa->lay_bytes((const int8_t *)cached, row_bytes, rows, rank, w->row, w->four + r * rank);
        for (int32_t i = 0; i < rows; i++)
            a->isa->widen((const void *)(cached + i * row_bytes + rank), tail, tails + i * tail);
        for (int32_t h = 0; h < a->heads; h += PLM_TILE) {
            float *scores = w->scores + h * PLM_BYTE_ROWS + r * PLM_TILE;
            a->isa->scores(w->ropes + h * a->rope, tails + blocks, tail, rows, a->rope, a->scale, scores, NULL);
            a->isa->score_bytes(w->panels + (int64_t)h * rank, w->start + h * blocks, w->scales + h * blocks, w->row,
                                rank, tails, tail, rows, scores);
        }
    }
}

void plm_attend_in_bytes(const plm_slice *s, uint8_t *scratch) {
    const plm_attention *a = s->a;
    const int32_t groups = (int32_t)plm_panels_of(a->heads), rank = a->rank, tail = rank / PLM_BLOCK + a->rope;
    byte_room w;
    take_bytes(&w, scratch, a);
    for (int32_t h = 0; h < a->heads; h += PLM_TILE) weave_queries(s, h, &w);
    for (int32_t i = 0; i < groups * PLM_TILE; i++) w.most[i] = -INFINITY, w.sum[i] = 0.0f;
    for (int32_t at = s->first; at < s->last; at += PLM_BYTE_ROWS) {
        const int32_t n = plm_min(PLM_BYTE_ROWS, s->last - at);
        const int32_t behind = plm_row_behind(s, at + n), until = behind < s->last ? s->last : s->end;
        const int32_t rows = plm_min(PLM_BYTE_ROWS, until - behind); /* to ask for */
        const int64_t ahead = rows * plm_cache_row_bytes(a->stored, rank, a->rope);
        const uint8_t *next = plm_rows_ahead(s, at + n);
        score_rows(s, at, n, &w);
        for (int32_t h = 0; h < a->heads; h += PLM_TILE) {
            float *weights = w.scores + h * PLM_BYTE_ROWS;
            a->isa->softmax(weights, n, w.most + h, w.sum + h, w.shrink);
            a->isa->blend_bytes(weights, w.four, w.tails, tail, n, rank, w.shrink, plm_min(PLM_TILE, a->heads - h),
                                s->latent + (int64_t)h * rank, rank, h ? NULL : next, (int32_t)ahead);
        }
    }
    memcpy(s->most, w.most, (size_t)a->heads * sizeof *w.most);
    memcpy(s->sum, w.sum, (size_t)a->heads * sizeof *w.sum);
}
