/* Products of several tokens with the matrix instructions of I8MM: smmla and usmmla multiply two rows of eight columns
 * with two tokens, twice the products of a dot product. An odd token takes the place of two. */
#include "neon.h"

/* Four rows of a block: register k has eight columns of the first two rows, register 4 + k of the others;
 * columns 8 k .. 8 k + 7, for which the bytes of two groups of four columns lie side by side. Nibbles: 16 times the
 * weight, since (byte ^ 0x88) is two signed nibbles. */
static inline void four_rows(const uint8_t *w, int8x16_t *v, int format) {
    for (int k = 0; k < (format == PLM_Q8_0 ? 4 : 2); k++) {
        uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(w + 128 * k));
        uint32x4_t b = vreinterpretq_u32_u8(vld1q_u8(w + 128 * k + 64));
        for (int i = 0; i < 2; i++) {
            uint8x16_t bytes = vreinterpretq_u8_u32(i ? vzip2q_u32(a, b) : vzip1q_u32(a, b));
            if (format == PLM_Q8_0) {
                v[4 * i + k] = as_signed(bytes);
            } else {
                bytes = veorq_u8(bytes, vdupq_n_u8(0x88));
                v[4 * i + k] = as_signed(vshlq_n_u8(bytes, 4));
                v[4 * i + 2 + k] = as_signed(vandq_u8(bytes, vdupq_n_u8(0xf0)));
            }
        }
    }
}

/* Two tokens of a block: eight columns of both a register. */
typedef struct {
    int8x16_t top[4];
    uint8x16_t bottom[4];
} two_tokens;

static inline two_tokens two_limbs(const int16_t *first, const int16_t *second) {
    two_tokens q;
    for (int i = 0; i < 2; i++) {
        limbs a = split(first + 16 * i), b = split(second + 16 * i);
        int64x2_t a_top = vreinterpretq_s64_s8(a.top), b_top = vreinterpretq_s64_s8(b.top);
        uint64x2_t a_bottom = vreinterpretq_u64_u8(a.bottom), b_bottom = vreinterpretq_u64_u8(b.bottom);
        q.top[2 * i] = vreinterpretq_s8_s64(vzip1q_s64(a_top, b_top));
        q.top[2 * i + 1] = vreinterpretq_s8_s64(vzip2q_s64(a_top, b_top));
        q.bottom[2 * i] = vreinterpretq_u8_u64(vzip1q_u64(a_bottom, b_bottom));
        q.bottom[2 * i + 1] = vreinterpretq_u8_u64(vzip2q_u64(a_bottom, b_bottom));
    }
    return q;
}

/* sum + two tokens (rows of the result) times two rows of weights (its columns). */
static inline int32x4_t add_tops(int32x4_t sum, const two_tokens *q, const int8x16_t *v) {
    for (int k = 0; k < 4; k++) sum = vmmlaq_s32(sum, q->top[k], v[k]);
    return sum;
}
static inline int32x4_t add_bottoms(int32x4_t sum, const two_tokens *q, const int8x16_t *v) {
    for (int k = 0; k < 4; k++) sum = vusmmlaq_s32(sum, q->bottom[k], v[k]);
    return sum;
}

/* The sums of the first or the second token with four rows. */
static inline int32x4_t sums_of_token(int i, int32x4_t two_rows, int32x4_t next_two) {
    int64x2_t a = vreinterpretq_s64_s32(two_rows), b = vreinterpretq_s64_s32(next_two);
    return vreinterpretq_s32_s64(i ? vzip2q_s64(a, b) : vzip1q_s64(a, b));
}

/* ---- tiles ---- */

static inline __attribute__((always_inline)) void tile_of_tokens(const uint8_t *w, int32_t cols, const plm_vectors *x,
                                                                 float *y, int32_t stride, int format, int T) {
    const int64_t blocks = cols / PLM_BLOCK;
    float32x4_t sums[4][4];
    for (int i = 0; i < 4 * T; i++) sums[i / 4][i % 4] = vdupq_n_f32(0.0f);
    for (int32_t b = 0; b < blocks; b++, w += format == PLM_Q8_0 ? 544 : 288) {
        two_tokens q[2];
        for (int64_t t = 0; t < T; t += 2) {
            const int16_t *first = x->q + t * cols + b * PLM_BLOCK;
            q[t / 2] = two_limbs(first, t + 1 < T ? first + cols : first);
        }
#pragma GCC unroll 1 /* four rows and their tokens fill the registers */
        for (int r = 0; r < 4; r++) {
            int8x16_t v[8];
            four_rows(w + 32 + 16 * r, v, format);
            for (int p = 0; p < (T + 1) / 2; p++) {
                int32x4_t sum[2];
                for (int i = 0; i < 2; i++)
                    sum[i] = add_bottoms(vshlq_n_s32(add_tops(vdupq_n_s32(0), q + p, v + 4 * i), 8), q + p, v + 4 * i);
                for (int i = 0; i < 2 && 2 * p + i < T; i++) {
                    int32x4_t both = sums_of_token(i, sum[0], sum[1]);
                    float32x4_t exact = format == PLM_Q8_0 ? vcvtq_f32_s32(both) : vcvtq_n_f32_s32(both, 4);
                    float32x4_t factor = vmulq_n_f32(scales4(w + 8 * r), x->scale[(2 * p + i) * blocks + b]);
                    sums[2 * p + i][r] = vaddq_f32(sums[2 * p + i][r], vmulq_f32(exact, factor));
                }
            }
        }
    }
    for (int64_t t = 0; t < T; t++)
        for (int r = 0; r < 4; r++) vst1q_f32(y + t * stride + 4 * r, sums[t][r]);
}

/* Returns how many tokens are left: none or one. */
static inline int32_t tile_int(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                               int32_t stride, int format) {
    plm_vectors at = *x;
    for (; tokens >= 4; tokens -= 4, y += 4 * (int64_t)stride, at = plm_vector_at(&at, 4, cols))
        tile_of_tokens(w, cols, &at, y, stride, format, 4);
    if (tokens == 3) tile_of_tokens(w, cols, &at, y, stride, format, 3);
    if (tokens == 2) tile_of_tokens(w, cols, &at, y, stride, format, 2);
    return tokens == 1;
}

void smmla_tile_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (!tile_int(w, cols, x, tokens, y, stride, PLM_Q8_0)) return;
    plm_vectors last = plm_vector_at(x, tokens - 1, cols);
    i8mm_one_q8_0(w, cols, &last, y + (int64_t)(tokens - 1) * stride);
}

void smmla_tile_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (!tile_int(w, cols, x, tokens, y, stride, PLM_Q4_0)) return;
    plm_vectors last = plm_vector_at(x, tokens - 1, cols);
    dotprod_tile_q4_0(w, cols, &last, 1, y + (int64_t)(tokens - 1) * stride, stride);
}

/* ---- panels: a value as two signed bytes, 256 high + low ---- */

/* In a block two lanes have eight registers of eight columns each: four of high bytes, then four of low ones. */
enum { HIGH = 0, LOW = 4, TWO_ROWS = 8 };

void smmla_weave(const int16_t *x, int32_t lane, int32_t column, int32_t lanes, int32_t columns, int16_t *panel) {
    int8_t *to = (int8_t *)panel;
    for (int64_t c = 0; c < columns; c += 8)
        for (int64_t r = 0; r < PLM_TILE; r += 8) {
            int16x8_t v[8];
            eight_lanes(x + r * lane + c * column, lane, column, lanes - (int32_t)r, v);
            int8_t *at = to + c / PLM_BLOCK * 2 * PANEL_BLOCK + r / 2 * 16 * TWO_ROWS + c % PLM_BLOCK * 2;
            for (int i = 0; i < 8; i++) {
                vst1_s8(at + i / 2 * 16 * TWO_ROWS + i % 2 * 8 + 16 * HIGH, vrshrn_n_s16(v[i], 8));
                vst1_s8(at + i / 2 * 16 * TWO_ROWS + i % 2 * 8 + 16 * LOW, vmovn_s16(v[i]));
            }
        }
}

/* Two tokens times two lanes, of both bytes. */
static inline int32x4_t sums_of_limbs(const two_tokens *q, const int8_t *panel) {
    int8x16_t v[TWO_ROWS];
    for (int k = 0; k < TWO_ROWS; k++) v[k] = vld1q_s8(panel + 16 * k);
    int32x4_t sum = vshlq_n_s32(add_tops(vdupq_n_s32(0), q, v + HIGH), 8);
    sum = vshlq_n_s32(add_tops(add_bottoms(sum, q, v + HIGH), q, v + LOW), 8);
    return add_bottoms(sum, q, v + LOW);
}

static inline __attribute__((always_inline)) void panel_rows(const int8_t *panel, const float *scales, int32_t blocks,
                                                             const int16_t *x, int32_t x_stride, const float *x_scale,
                                                             int32_t x_blocks, float *y, int32_t stride, int R) {
    for (int32_t b = 0; b < blocks; b++, x += PLM_BLOCK) {
        two_tokens q[2];
        for (int64_t t = 0; t < R; t += 2) {
            const int16_t *first = x + t * x_stride;
            q[t / 2] = two_limbs(first, t + 1 < R ? first + x_stride : first);
        }
#pragma GCC unroll 1
        for (int r = 0; r < PLM_TILE; r += 4, panel += 32 * TWO_ROWS, scales += 4) {
            int32x4_t two[2], next[2];
            for (int p = 0; p < (R + 1) / 2; p++) {
                two[p] = sums_of_limbs(q + p, panel);
                next[p] = sums_of_limbs(q + p, panel + 16 * TWO_ROWS);
            }
            for (int64_t t = 0; t < R; t++)
                add_lanes(y + t * stride + r, sums_of_token(t % 2, two[t / 2], next[t / 2]), scales,
                          x_scale[t * x_blocks + b]);
        }
    }
}

void smmla_panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                 const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) {
    const int8_t *bytes = (const int8_t *)panel;
    for (; rows >= 4; rows -= 4) {
        panel_rows(bytes, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 4);
        x += 4 * (int64_t)x_stride, x_scale += 4 * (int64_t)x_blocks, y += 4 * (int64_t)stride;
    }
    if (rows == 3) panel_rows(bytes, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 3);
    if (rows == 2) panel_rows(bytes, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 2);
    if (rows == 1) panel_rows(bytes, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 1);
}
