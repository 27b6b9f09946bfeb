/* What the files of kernels share: sizes of rows and tiles, requests to memory, stretches of a weight. */
#ifndef PLM_KERNELS_H
#define PLM_KERNELS_H

#include "plm.h"
#include "plm_math.h"
#include "quantize_k.h"

static inline size_t plm_ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }
static inline int32_t plm_min(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t plm_whole_blocks(int32_t n) { return (n + PLM_BLOCK - 1) / PLM_BLOCK * PLM_BLOCK; }

/* max(x, 0)^2. A NaN is not <= 0: it flows on and shows. By its bits, since a compiler makes a branch of `x <= 0`, and
 * which of the units fire no CPU can guess. */
static inline float plm_squared_relu(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= (uint32_t)(x <= 0.0f) - 1;
    memcpy(&x, &bits, sizeof x);
    return x * x;
}

/* A half where it lies, at any address. */
static inline float plm_half_at(const uint8_t *p) { return plm_f16((uint16_t)(p[0] | p[1] << 8)); }

/* 32 values of Q8_0 or Q4_0 in a plain row, their scale first. */
static inline int plm_block_bytes(int format) { return format == PLM_Q8_0 ? 34 : 18; }

static inline int64_t plm_row_bytes(int format, int32_t cols) {
    static const uint8_t bytes[PLM_FORMATS] = {4, 2, 2, 34, 18, PLM_Q4_K_BYTES, PLM_Q6_K_BYTES};
    static const int16_t values[PLM_FORMATS] = {1, 1, 1, PLM_BLOCK, PLM_BLOCK, PLM_SUPER, PLM_SUPER};
    return (int64_t)bytes[format] * (cols / values[format]);
}

/* Bytes of 16 rows in TILE16X4; a float tile is padded to whole groups of 4 columns. */
static inline int64_t plm_tile_bytes(int format, int32_t cols) {
    return PLM_TILE * plm_row_bytes(format, format >= PLM_Q8_0 ? cols : (cols + 3) / 4 * 4);
}

/* Formats of superblocks. */
static inline int plm_is_super(int format) { return format >= PLM_Q4_K; }

/* What a byte counts in `blend_bytes` for 1 of its integer weight: two are multiplied, then that and PLM_WEIGHT, each
 * time over 2^15. */
#define PLM_OF_WEIGHT (0x1p30f / PLM_WEIGHT)

/* Bytes: how far before their use lines of several streams are asked for; where they come into both caches, into the
 * second PLM_LATER, into the first PLM_AT_LAST. */
enum { PLM_SOON = 2048, PLM_LATER = 2560, PLM_AT_LAST = 1024 };

/* Asks memory for a line, into the first cache unless `near` is PLM_SECOND. Always inlined, like the next one: gcc
 * takes a function that only prefetches for one that does nothing, and drops its calls. */
static inline __attribute__((always_inline)) void plm_ask_line(const uint8_t *line, int32_t near) {
    enum { SECOND_CACHE = 2, FIRST_CACHE = 3 };
    if (near != PLM_SECOND)
        __builtin_prefetch(line, 0, FIRST_CACHE);
    else
        __builtin_prefetch(line, 0, SECOND_CACHE);
}

/* Asks memory for the share of outputs o .. o + PLM_SHARE. For an o in between, nothing. */
static inline __attribute__((always_inline)) void plm_ask(const plm_ahead *next, int32_t o) {
    const int64_t share = o / PLM_SHARE;
    if (o % PLM_SHARE || !next->rows) return;
    for (int32_t i = 0; i < next->rows; i++)
        for (int32_t at = 0; at < next->row_share; at += PLM_LINE)
            plm_ask_line(next->row[i] + share * next->row_share + at, next->near);
    for (int32_t at = 0; at < next->scales_share; at += PLM_LINE)
        plm_ask_line(next->scales + share * next->scales_share + at, next->near);
}

/* Pieces first .. end of a weight, cut by factoring (Hummel, Schonberg, Flynn 1992): each round gives every thread an
 * equal share of half of what is left, then come single pieces. So a thread reads long stretches, and slow threads and
 * fast ones come to the end together. */
typedef struct {
    int32_t first, end;
} plm_stretch;

size_t plm_stretches(int32_t pieces, int32_t threads);                    /* how many items */
plm_stretch plm_stretch_at(int32_t pieces, int32_t threads, size_t item); /* behind the last one: none */

typedef void plm_tile(const uint8_t *tile, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                      int32_t stride);

/* y (last - first) = rows first .. last of w, in tiles, times one token. `next`: the row with which this thread will
 * probably go on; past the end of w it says nothing. `near`: as in plm_step. */
void plm_tiles_of_one(const plm_isa *isa, const plm_matrix *w, int32_t first, int32_t last, const plm_vectors *x,
                      float *y, int32_t next, int32_t near);

/* y (tokens, stride) = rows first .. last of w, in tiles, times several tokens. Writes whole tiles. */
void plm_tiles_of_several(const plm_isa *isa, const plm_matrix *w, int32_t first, int32_t last, const plm_vectors *x,
                          int32_t tokens, float *y, int32_t stride);

/* y (count) = plain rows that lie behind each other times one token. `next`: as in plm_isa. */
static inline void plm_rows_of_one(const plm_isa *isa, int format, const uint8_t *rows, int32_t cols,
                                   const plm_vectors *x, int32_t count, float *y, const uint8_t *next) {
    const int64_t bytes = plm_row_bytes(format, cols);
    if (isa->rows[format])
        isa->rows[format](rows, cols, x, count, y, next);
    else
        for (int32_t i = 0; i < count; i++) y[i] = isa->row[format](rows + i * bytes, cols, x);
}

/* Row t of the activations. */
static inline plm_vectors plm_vector_at(const plm_vectors *x, int64_t t, int32_t cols) {
    int64_t blocks = cols / PLM_BLOCK;
    plm_vectors at = {.f = x->f ? x->f + t * cols : NULL};
    if (x->bytes) at.bytes = x->bytes + t * cols;
    if (x->q) at.q = x->q + t * cols, at.scale = x->scale + t * blocks, at.sum = x->sum + t * blocks;
    return at;
}

/* Bytes of one cached row; stored: one of PLM_CACHE_. */
static inline int64_t plm_cache_row_bytes(int stored, int32_t rank, int32_t rope) {
    if (stored == PLM_CACHE_Q8_0) return rank + 2 * (rank / PLM_BLOCK + rope);
    return (int64_t)(rank + rope) * (stored == PLM_CACHE_F16 ? 2 : 4);
}

/* Attention in floats as the scalar set does it, for sets without their own. */
void plm_scalar_lanes(const float *x, int32_t stride, int32_t n_lanes, int32_t n, float *y);
void plm_scalar_scores(const float *q, const float *x, int32_t stride, int32_t rows, int32_t n, float scale, float *y,
                       const uint8_t *next);
void plm_scalar_softmax(float *x, int32_t rows, float *most, float *sum, float *shrink);
void plm_scalar_blend(const float *weights, const float *x, int32_t stride, int32_t rows, int32_t n,
                      const float *shrink, int32_t lanes, float *y, int32_t y_stride);
void plm_scalar_blend_words(const float *weights, const int16_t *x, const float *scales, int32_t stride, int32_t rows,
                            int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride,
                            const uint8_t *next);
void plm_scalar_lay_bytes(const int8_t *x, int64_t stride, int32_t rows, int32_t n, uint8_t *row, int8_t *four);
void plm_scalar_score_bytes(const int8_t *panel, const int32_t *start, const float *scales, const uint8_t *row,
                            int32_t n, const float *x_scale, int32_t x_stride, int32_t rows, float *y);
void plm_scalar_blend_bytes(const float *weights, const int8_t *four, const float *x_scale, int32_t x_stride,
                            int32_t rows, int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride,
                            const uint8_t *next, int32_t ahead);
void plm_scalar_words(const int8_t *q, int32_t n, int16_t *y);
void plm_scalar_widen_bytes(const int8_t *q, const uint16_t *scales, int32_t blocks, float *y);

/* One kernel of the table in kernels.c, defined in attend.c, expand.c or feed_forward.c. */
#define PLM_KERNEL(name)                              \
    size_t plm_##name##_items(const void *args);      \
    void plm_##name##_item(const void *args, size_t item, int thread);
PLM_KERNEL(absorb)
PLM_KERNEL(attend)
PLM_KERNEL(unabsorb)
PLM_KERNEL(expand)
PLM_KERNEL(fire)
PLM_KERNEL(gather)
PLM_KERNEL(up)
PLM_KERNEL(down)
#undef PLM_KERNEL

#endif
