/* What the kernels of latent attention share: cached rows as they meet the queries, and room for one thread. */
#ifndef PLM_ATTENTION_H
#define PLM_ATTENTION_H

#include "kernels.h"

enum { PLM_CONTEXT_BLOCK = PLM_BLOCK }; /* cached rows taken together: their weights share a scale */

/* Scales of a panel whose integers have none of their own. */
static const float plm_ones[PLM_TILE] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

static inline int plm_cache_is_float(const plm_attention *a) { return a->stored == PLM_CACHE_F32; }
static inline size_t plm_panels_of(int32_t lanes) { return plm_ceil_div((size_t)lanes, PLM_TILE); }

/* A cached row as integers: the latent, then the rope key, each filled up to whole blocks with zeros. */
static inline int32_t plm_latent_width(const plm_attention *a) { return plm_whole_blocks(a->rank); }
static inline int32_t plm_row_width(const plm_attention *a) { return plm_latent_width(a) + plm_whole_blocks(a->rope); }

/* Whether a decode step meets cached bytes as they are. */
static inline int plm_attends_in_bytes(const plm_attention *a) {
    return a->stored == PLM_CACHE_Q8_0 && a->isa->blend_bytes;
}

/* The queries of a token: for a cache of floats the latents (heads, rank), which meet rows beside q itself. Where
 * cached bytes are met as they are, what attend_bytes.c makes of the latents. Else integers (heads, row_width), then
 * their scales (heads, row_width / 32), in which the scale of the scores is. */
static inline uint8_t *plm_queries_of(const plm_attention *a, int64_t t) {
    return a->queries + t * (int64_t)plm_query_bytes(a->heads, a->rank, a->rope);
}
static inline float *plm_query_scales(const plm_attention *a, uint8_t *queries) {
    return (float *)(void *)(queries + (int64_t)a->heads * plm_row_width(a) * (int64_t)sizeof(int16_t));
}

static inline const uint8_t *plm_head_row(const plm_attention *a, int32_t head, int32_t row) {
    return a->kv_b.data + (int64_t)(head * (a->nope + a->v_head) + row) * plm_row_bytes(a->kv_b.format, a->rank);
}

static inline uint8_t *plm_scratch_of(const plm_attention *a, int thread) {
    return a->scratch + a->scratch_bytes * thread;
}

/* Bytes of that scratch for ABSORB, ATTEND and UNABSORB, for ATTEND in bytes, and for EXPAND. */
size_t plm_attend_scratch(const plm_attention *a);
size_t plm_attend_bytes_scratch(const plm_attention *a);
size_t plm_expand_scratch(const plm_attention *a);

typedef struct {
    uint8_t *base; /* NULL: only count */
    size_t used;
} plm_room;

static inline void *plm_take(plm_room *r, size_t count, size_t size) {
    void *at = r->base ? r->base + r->used : NULL;
    r->used += (count * size + 63) / 64 * 64;
    return at;
}

/* The running softmax of one token over a slice of its context. */
typedef struct {
    const plm_attention *a;
    const float *q;             /* (heads, nope + rope) */
    uint8_t *queries;           /* as plm_queries_of has them */
    int32_t first, last;        /* rows */
    int32_t then, end;          /* with which row this thread will probably go on, `end` if none; rows of the context */
    float *most, *sum, *latent; /* (heads), (heads), (heads, latent_width) */
} plm_slice;

/* The latent of a head's query as plm_attend_in_bytes meets it. space: rank integers. */
void plm_pack_byte_query(const plm_attention *a, int32_t head, const float *latent, int16_t *space, uint8_t *queries);
void plm_attend_in_bytes(const plm_slice *s, uint8_t *scratch);

/* A block of cached rows as integers (32, row_width) with scales (32, row_width / 32), and room for the rope keys of
 * the block alone, as halves and as integers with scales. */
typedef struct {
    int16_t *q;
    float *scale;
    uint16_t *ropes;
    int16_t *rope_q;
    float *rope_scale;
} plm_row_block;

plm_row_block plm_take_rows(plm_room *r, const plm_attention *a);

const uint8_t *plm_cached_row(const plm_attention *a, int32_t at);
/* The row with which this thread will go on when it has done those before `at`; s->end where there is none. */
static inline int32_t plm_row_behind(const plm_slice *s, int32_t at) { return at < s->last ? at : s->then; }
/* That row, or NULL. */
const uint8_t *plm_rows_ahead(const plm_slice *s, int32_t at);
/* Cached rows first .. first + n as floats (n, rank + rope): where they lie, or widened into `space`. */
const float *plm_float_rows(const plm_attention *a, int32_t first, int32_t n, float *space);
/* x (n), filled up to whole blocks with zeros, as integers of PLM_PANEL. */
void plm_pack_part(const plm_isa *isa, const float *x, int32_t n, int16_t *q, float *scale);
/* Cached rows first .. first + n <= 32 as integers; the rest of the block is zeros. */
void plm_integer_rows(const plm_attention *a, int32_t first, int32_t n, const plm_row_block *rows);
/* Panels of rows x (n, width) with scales (n, width / 32): 16 rows in the lanes of each. */
void plm_weave_rows(const plm_isa *isa, const int16_t *x, const float *x_scale, int32_t n, int32_t width,
                    int16_t *panels, float *scales);
/* Take one query's scores of a block into its running softmax; the scores become weights. Returns by how much the
 * earlier sums shrink. */
float plm_online_softmax(const plm_isa *isa, float *scores, int32_t n, float *most, float *sum);

static inline void plm_scale_by(float *y, int32_t n, float factor) {
    if (factor == 1.0f) return;
    for (int32_t i = 0; i < n; i++) y[i] *= factor;
}

#endif
