/* What the aarch64 sets have in common: the small steps, and the functions of the first set (neon.c) that the better
 * ones take over. */
#ifndef PLM_NEON_H
#define PLM_NEON_H

#include "superblocks.h"

#include <arm_neon.h>

static inline float32x4_t scales4(const uint8_t *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }

static inline float scale_at(const uint8_t *p) {
    uint16x4_t bits = vdup_n_u16((uint16_t)(p[0] | p[1] << 8));
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(bits)), 0);
}

/* 16-bit activations as two bytes, q = 256 top + bottom: top signed, bottom not, so that every q has its pair. A
 * 4-bit weight is both a signed and an unsigned byte: its products with either need no correction. */
typedef struct {
    int8x16_t top;
    uint8x16_t bottom;
} limbs;

static inline limbs split(const int16_t *q) {
    uint8x16x2_t bytes = vld2q_u8((const void *)q);
    return (limbs){vreinterpretq_s8_u8(bytes.val[1]), bytes.val[0]};
}

static inline int8x16_t as_signed(uint8x16_t v) { return vreinterpretq_s8_u8(v); }
static inline uint8x16_t nibbles_low(uint8x16_t v) { return vandq_u8(v, vdupq_n_u8(15)); }
static inline uint8x16_t nibbles_high(uint8x16_t v) { return vshrq_n_u8(v, 4); }

static inline uint8x16_t four_bytes(const uint8_t *p) {
    uint32_t four;
    memcpy(&four, p, sizeof four);
    return vreinterpretq_u8_u32(vdupq_n_u32(four));
}

/* 256 top + bottom; what was to be taken off, the sum of the bottoms began with, modulo 2^32. */
static inline int32x4_t join(int32x4_t top, uint32x4_t bottom) {
    return vaddq_s32(vshlq_n_s32(top, 8), vreinterpretq_s32_u32(bottom));
}

/* y + the exact sums of a block times (scales of the weights times the scale of the activations). */
static inline float32x4_t add_scaled(float32x4_t y, int32x4_t sums, const uint8_t *scales, float scale) {
    float32x4_t factor = vmulq_n_f32(scales4(scales), scale);
    return vaddq_f32(y, vmulq_f32(vcvtq_f32_s32(sums), factor));
}

static inline void add_sums(float *y, int32x4_t sums, const uint8_t *scales, float scale) {
    vst1q_f32(y, add_scaled(vld1q_f32(y), sums, scales, scale));
}

/* y[0..4) += sums of four lanes of a panel times their scales. */
static inline void add_lanes(float *y, int32x4_t sums, const float *scales, float scale) {
    float32x4_t factor = vmulq_n_f32(vld1q_f32(scales), scale);
    vst1q_f32(y, vaddq_f32(vld1q_f32(y), vmulq_f32(vcvtq_f32_s32(sums), factor)));
}

static inline int32x4_t sums_of_four(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
    return vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
}

enum { PANEL_BLOCK = PLM_BLOCK * PLM_TILE }; /* integers of a block of a panel */

/* Register i takes value i of all eight. */
static inline void transpose8(int16x8_t *v) {
    for (int step = 0; step < 3; step++) { /* a riffle of the first four registers with the last four, three times */
        int16x8_t u[8];
        for (int i = 0; i < 4; i++) {
            u[2 * i] = vzip1q_s16(v[i], v[i + 4]);
            u[2 * i + 1] = vzip2q_s16(v[i], v[i + 4]);
        }
        for (int i = 0; i < 8; i++) v[i] = u[i];
    }
}

/* Eight columns of eight lanes, of which `lanes` are there. */
static inline void eight_lanes(const int16_t *x, int64_t lane, int64_t column, int32_t lanes, int16x8_t *v) {
    if (lanes >= 8 && column == 1) {
        for (int i = 0; i < 8; i++) v[i] = vld1q_s16(x + i * lane);
    } else if (lanes >= 8 && lane == 1) {
        for (int i = 0; i < 8; i++) v[i] = vld1q_s16(x + i * column);
        transpose8(v);
    } else {
        for (int i = 0; i < 8; i++) {
            int16_t eight[8];
            for (int c = 0; c < 8; c++) eight[c] = i < lanes ? x[i * lane + c * column] : 0;
            v[i] = vld1q_s16(eight);
        }
    }
}

/* Blocks of a plain row, four a step; their results are added one after the other, as the scalar set does.
 * products: of a block, as four sums. */
static inline float row_int(const uint8_t *w, int32_t cols, const plm_vectors *x, int format,
                            int32x4_t (*products)(const uint8_t *w, const int16_t *q)) {
    const int bytes = plm_block_bytes(format);
    int32_t b = 0, blocks = cols / PLM_BLOCK;
    float y = 0.0f, part[4];
    for (; b + 4 <= blocks; b += 4, w += 4 * bytes) {
        int32x4_t s[4];
        float scales[4];
        for (int i = 0; i < 4; i++) {
            s[i] = products(w + i * bytes, x->q + (b + i) * PLM_BLOCK);
            scales[i] = scale_at(w + i * bytes);
        }
        int32x4_t sums = sums_of_four(s[0], s[1], s[2], s[3]);
        if (format == PLM_Q4_0) sums = vsubq_s32(sums, vshlq_n_s32(vld1q_s32(x->sum + b), 3));
        float32x4_t factor = vmulq_f32(vld1q_f32(scales), vld1q_f32(x->scale + b));
        vst1q_f32(part, vmulq_f32(vcvtq_f32_s32(sums), factor));
        for (int i = 0; i < 4; i++) y += part[i];
    }
    for (; b < blocks; b++, w += bytes) {
        int32_t sum = vaddvq_s32(products(w, x->q + b * PLM_BLOCK));
        if (format == PLM_Q4_0) sum -= 8 * x->sum[b];
        y += (float)sum * (scale_at(w) * x->scale[b]);
    }
    return y;
}

/* plm_exp of four, step by step the same. */
static inline float32x4_t exp4(float32x4_t x) {
    static const float term[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    float32x4_t n = vrndmq_f32(vaddq_f32(vmulq_n_f32(x, 1.44269504f), vdupq_n_f32(0.5f)));
    float32x4_t r = vsubq_f32(x, vmulq_n_f32(n, 0.693359375f));
    r = vsubq_f32(r, vmulq_n_f32(n, -2.12194440e-4f));
    float32x4_t p = vdupq_n_f32(1.0f / 720);
    for (int i = 0; i < 6; i++) p = vaddq_f32(vmulq_f32(p, r), vdupq_n_f32(term[i]));
    int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    uint32x4_t y = vreinterpretq_u32_f32(vmulq_f32(p, vreinterpretq_f32_s32(power)));
    y = vbicq_u32(y, vcltq_f32(x, vdupq_n_f32(-87.0f))); /* below: 0 */
    return vbslq_f32(vceqq_f32(x, x), vreinterpretq_f32_u32(y), x);
}

/* The units of an integer group that fired: their rows and coefficients, filled up to a multiple of four with a row
 * that is read anyway and coefficients of 0. */
typedef struct {
    const uint8_t *row[PLM_BLOCK];
    int16_t q[PLM_BLOCK];
    uint8_t top[PLM_BLOCK], bottom[PLM_BLOCK]; /* of q */
    int32_t count, sum, sum_bottom;            /* units; sum of q and of its bottom bytes */
    float scale;                               /* one for the group: the scale of a weight belongs to its output */
} fired;

/* Returns how many fired; `rows` are of `bytes` each. */
int32_t neon_find_fired(const uint8_t *rows, int64_t bytes, const float *a, fired *f);

/* What every set takes over as it is: float formats, vectors, panels, rows and units that are only widened. */
typedef void tile_of(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
typedef float row_of(const uint8_t *w, int32_t cols, const plm_vectors *x);
typedef void added_rows_of(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
typedef void units_of(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y,
                      const plm_ahead *next);
typedef void unit_rows_of(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y);

tile_of neon_tile_f32, neon_tile_f16, neon_tile_bf16;
row_of neon_row_f32, neon_row_f16, neon_row_bf16;
added_rows_of neon_add_f32, neon_add_f16, neon_add_bf16, neon_add_q8_0, neon_add_q4_0;
units_of neon_units_f32, neon_units_f16, neon_units_bf16;
unit_rows_of neon_unit_rows_f32, neon_unit_rows_f16, neon_unit_rows_bf16, neon_unit_rows_q8_0, neon_unit_rows_q4_0;

/* Q4_K and Q6_K: neon_super.c, neon_dotprod_super.c. */
typedef void part_units_of(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y);
typedef void part_rows_of(const uint8_t *super, int32_t width, int32_t part, int32_t first, int32_t last, float *w);
tile_of neon_tile_q4_k, neon_tile_q6_k, dotprod_tile_q4_k, dotprod_tile_q6_k;
row_of neon_row_q4_k, neon_row_q6_k, dotprod_row_q4_k, dotprod_row_q6_k;
added_rows_of neon_add_q4_k, neon_add_q6_k;
part_units_of neon_part_q4_k, neon_part_q6_k, dotprod_part_q4_k, dotprod_part_q6_k;
part_rows_of neon_part_rows_q4_k, neon_part_rows_q6_k;

void neon_mix(const float *a, const uint8_t *which, int32_t count, const float *w, int32_t n, float *y);
float neon_dot(const float *a, const float *b, int32_t n);
void neon_add(float a, const float *x, int32_t n, float *y);
void neon_widen(const uint16_t *f16, int32_t n, float *y);
void neon_pack(const float *x, int32_t cols, float most, int16_t *q, float *scale, int32_t *sum);
void neon_pack_halves(const uint16_t *x, int32_t cols, float most, int16_t *q, float *scale);
void neon_exps(float *x, int32_t n);
void neon_weigh(const int16_t *a, const int16_t *b, int32_t n, int16_t *y);
void neon_scores(const float *q, const float *x, int32_t stride, int32_t rows, int32_t n, float scale, float *y,
                 const uint8_t *next);
void neon_softmax(float *x, int32_t rows, float *most, float *sum, float *shrink);
void dotprod_lay_bytes(const int8_t *x, int64_t stride, int32_t rows, int32_t n, uint8_t *row, int8_t *four);
void dotprod_score_bytes(const int8_t *panel, const int32_t *start, const float *scales, const uint8_t *row, int32_t n,
                         const float *x_scale, int32_t x_stride, int32_t rows, float *y);
void dotprod_blend_bytes(const float *weights, const int8_t *four, const float *x_scale, int32_t x_stride, int32_t rows,
                         int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride, const uint8_t *next,
                         int32_t ahead);

typedef void weave_of(const int16_t *x, int32_t lane, int32_t column, int32_t lanes, int32_t columns, int16_t *panel);
typedef void panel_of(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                      const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride);

#define NEON_SHARED                                                                                             \
    .tile[PLM_F32] = neon_tile_f32, .tile[PLM_F16] = neon_tile_f16, .tile[PLM_BF16] = neon_tile_bf16,           \
    .row[PLM_F32] = neon_row_f32, .row[PLM_F16] = neon_row_f16, .row[PLM_BF16] = neon_row_bf16,                 \
    .add_rows = {neon_add_f32, neon_add_f16, neon_add_bf16, neon_add_q8_0, neon_add_q4_0,                       \
                 neon_add_q4_k, neon_add_q6_k},                                                                 \
    .part_rows = {[PLM_Q4_K] = neon_part_rows_q4_k, [PLM_Q6_K] = neon_part_rows_q6_k},                          \
    .units[PLM_F32] = neon_units_f32, .units[PLM_F16] = neon_units_f16, .units[PLM_BF16] = neon_units_bf16,     \
    .unit_rows = {neon_unit_rows_f32, neon_unit_rows_f16, neon_unit_rows_bf16, neon_unit_rows_q8_0,             \
                  neon_unit_rows_q4_0},                                                                         \
    .mix = neon_mix, .pack = neon_pack, .pack_halves = neon_pack_halves, .weigh = neon_weigh,                   \
    .exps = neon_exps, .dot = neon_dot, .add = neon_add, .widen = neon_widen, .words = plm_scalar_words,       \
    .widen_bytes = plm_scalar_widen_bytes, .lanes = plm_scalar_lanes, .scores = neon_scores,                    \
    .softmax = neon_softmax, .blend = plm_scalar_blend

/* Rows of a table: attention in bytes. */
#define NEON_BYTES                                                                                              \
    .lay_bytes = dotprod_lay_bytes, .score_bytes = dotprod_score_bytes, .blend_bytes = dotprod_blend_bytes

/* Rows of a table: Q4_K and Q6_K as that set has them. */
#define NEON_SUPER(set)                                                                                         \
    .tile[PLM_Q4_K] = set##_tile_q4_k, .tile[PLM_Q6_K] = set##_tile_q6_k,                                       \
    .row[PLM_Q4_K] = set##_row_q4_k, .row[PLM_Q6_K] = set##_row_q6_k,                                           \
    .part_units = {[PLM_Q4_K] = set##_part_q4_k, [PLM_Q6_K] = set##_part_q6_k}

/* What the later sets take from the earlier ones: neon.c, neon_vectors.c, neon_dotprod.c. */
row_of neon_row_q8_0, dotprod_row_q4_0;
tile_of dotprod_tile_q4_0;
weave_of neon_weave; /* for smlal by lane: column by column */
panel_of neon_panel;

/* The I8MM set: neon_i8mm.c for one token, neon_smmla.c for several. */
void i8mm_one_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y);
tile_of smmla_tile_q8_0, smmla_tile_q4_0;
weave_of smmla_weave;
panel_of smmla_panel;

#endif
