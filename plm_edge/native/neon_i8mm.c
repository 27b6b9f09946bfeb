/* NEON with dot products and the mixed-sign ones of I8MM (phones since 2021): usdot takes signed weights times
 * unsigned bottom bytes as they are, and whole bytes of 4-bit weights times signed top bytes; smmla and usmmla take two
 * rows of eight columns times two tokens. Everything else is the dotprod or the neon set's. */
#include "neon.h"

static void one_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y) {
    float32x4_t sums[4];
    for (int r = 0; r < 4; r++) sums[r] = vdupq_n_f32(0.0f);
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 544) {
        limbs q0 = split(x->q + b * PLM_BLOCK), q1 = split(x->q + b * PLM_BLOCK + 16);
        int32x4_t top[4], bottom[4];
        for (int r = 0; r < 4; r++) top[r] = bottom[r] = vdupq_n_s32(0);
#define FOUR_VALUES(q, lane, at) /* a lane must be a literal */                          \
    for (int r = 0; r < 4; r++) {                                                         \
        int8x16_t v = as_signed(vld1q_u8(w + 32 + (at) + 16 * r));                        \
        top[r] = vdotq_laneq_s32(top[r], v, q.top, lane);                                 \
        bottom[r] = vsudotq_laneq_s32(bottom[r], v, q.bottom, lane);                      \
    }
        FOUR_VALUES(q0, 0, 0)
        FOUR_VALUES(q0, 1, 64)
        FOUR_VALUES(q0, 2, 128)
        FOUR_VALUES(q0, 3, 192)
        FOUR_VALUES(q1, 0, 256)
        FOUR_VALUES(q1, 1, 320)
        FOUR_VALUES(q1, 2, 384)
        FOUR_VALUES(q1, 3, 448)
#undef FOUR_VALUES
        for (int r = 0; r < 4; r++) {
            int32x4_t sum = vaddq_s32(vshlq_n_s32(top[r], 8), bottom[r]);
            sums[r] = add_scaled(sums[r], sum, w + 8 * r, x->scale[b]);
        }
    }
    for (int r = 0; r < 4; r++) vst1q_f32(y + 4 * r, sums[r]);
}

/* ---- tiles of several tokens ---- */

/* Four rows of a block: register k of `two` has eight columns of the first two rows, register 4 + k of the others;
 * columns 8 k .. 8 k + 7, for which the bytes of two groups of four columns lie side by side. Nibbles: 16 times the
 * weight, since (byte ^ 0x88) is two signed nibbles. */
static inline void two_rows(const uint8_t *w, int8x16_t *v, int format) {
    for (int k = 0; k < (format == PLM_Q8_0 ? 4 : 2); k++) {
        uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(w + 128 * k)), b = vreinterpretq_u32_u8(vld1q_u8(w + 128 * k + 64));
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

/* The sums of two tokens (rows of the result) with two rows of weights (its columns). */
static inline int32x4_t sums_of_two(const two_tokens *q, const int8x16_t *v) {
    int32x4_t sum = vdupq_n_s32(0);
    for (int k = 0; k < 4; k++) sum = vmmlaq_s32(sum, q->top[k], v[k]);
    sum = vshlq_n_s32(sum, 8);
    for (int k = 0; k < 4; k++) sum = vusmmlaq_s32(sum, q->bottom[k], v[k]);
    return sum;
}

/* P pairs of tokens. */
static inline __attribute__((always_inline)) void tile_of_pairs(const uint8_t *w, int32_t cols, const plm_vectors *x,
                                                                float *y, int32_t stride, int format, int P) {
    const int32_t blocks = cols / PLM_BLOCK, bytes = format == PLM_Q8_0 ? 544 : 288;
    float32x4_t sums[4][4];
    for (int i = 0; i < 8 * P; i++) sums[i / 4][i % 4] = vdupq_n_f32(0.0f);
    for (int64_t b = 0; b < blocks; b++, w += bytes) {
        two_tokens q[2];
        for (int p = 0; p < P; p++) {
            const int16_t *first = x->q + 2 * p * (int64_t)cols + b * PLM_BLOCK;
            q[p] = two_limbs(first, first + cols);
        }
#pragma GCC unroll 1 /* four rows fill the registers */
        for (int r = 0; r < 4; r++) {
            int8x16_t v[8];
            two_rows(w + 32 + 16 * r, v, format);
            for (int p = 0; p < P; p++) {
                int64x2_t one = vreinterpretq_s64_s32(sums_of_two(q + p, v));
                int64x2_t other = vreinterpretq_s64_s32(sums_of_two(q + p, v + 4));
                for (int i = 0; i < 2; i++) {
                    int32x4_t sum = vreinterpretq_s32_s64(i ? vzip2q_s64(one, other) : vzip1q_s64(one, other));
                    float32x4_t exact = format == PLM_Q8_0 ? vcvtq_f32_s32(sum) : vcvtq_n_f32_s32(sum, 4);
                    float32x4_t factor = vmulq_n_f32(scales4(w + 8 * r), x->scale[(2 * p + i) * (int64_t)blocks + b]);
                    sums[2 * p + i][r] = vaddq_f32(sums[2 * p + i][r], vmulq_f32(exact, factor));
                }
            }
        }
    }
    for (int t = 0; t < 2 * P; t++)
        for (int r = 0; r < 4; r++) vst1q_f32(y + (int64_t)t * stride + 4 * r, sums[t][r]);
}

/* Tokens in fours and twos; returns how many were done: all but an odd one. */
static inline int32_t tile_of_tokens(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                                     int32_t stride, int format) {
    int32_t t = 0;
    for (; t + 2 <= tokens; t += tokens - t >= 4 ? 4 : 2) {
        plm_vectors at = plm_vector_at(x, t, cols);
        if (tokens - t >= 4)
            tile_of_pairs(w, cols, &at, y + (int64_t)t * stride, stride, format, 2);
        else
            tile_of_pairs(w, cols, &at, y + (int64_t)t * stride, stride, format, 1);
    }
    return t;
}

static void tile_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    int32_t done = tile_of_tokens(w, cols, x, tokens, y, stride, PLM_Q8_0);
    plm_vectors last = plm_vector_at(x, done, cols);
    if (done < tokens) one_q8_0(w, cols, &last, y + (int64_t)done * stride);
}

static void tile_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    int32_t done = tile_of_tokens(w, cols, x, tokens, y, stride, PLM_Q4_0);
    plm_vectors last = plm_vector_at(x, done, cols);
    if (done < tokens) dotprod_tile_q4_0(w, cols, &last, 1, y + (int64_t)done * stride, stride);
}

/* ---- rows and units ---- */

static inline int32x4_t products_q8_0(const uint8_t *w, const int16_t *q) {
    int32x4_t top = vdupq_n_s32(0), bottom = top;
    for (int i = 0; i < PLM_BLOCK; i += 16) {
        int8x16_t v = as_signed(vld1q_u8(w + 2 + i));
        limbs x = split(q + i);
        top = vdotq_s32(top, v, x.top);
        bottom = vusdotq_s32(bottom, x.bottom, v);
    }
    return vaddq_s32(vshlq_n_s32(top, 8), bottom);
}

static float row_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_int(w, cols, x, PLM_Q8_0, products_q8_0);
}

static void units_q8_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    fired f;
    (void)units; /* integer groups are whole */
    if (!neon_find_fired(w + 2 * (int64_t)width, width, a, &f)) return;
    for (int32_t o = 0; o < width; o += 16) {
        int32x4_t top[4], bottom[4];
        for (int i = 0; i < 4; i++) top[i] = bottom[i] = vdupq_n_s32(0);
        for (int32_t k = 0; k < f.count; k += 4) {
            uint8x16x4_t v = four_units(f.row + k, o);
            int8x16_t q_top = as_signed(four_bytes(f.top + k));
            uint8x16_t q_bottom = four_bytes(f.bottom + k);
            for (int i = 0; i < 4; i++) {
                top[i] = vdotq_s32(top[i], as_signed(v.val[i]), q_top);
                bottom[i] = vusdotq_s32(bottom[i], q_bottom, as_signed(v.val[i]));
            }
        }
        for (int i = 0; i < 4; i++) {
            int32x4_t sum = vaddq_s32(vshlq_n_s32(top[i], 8), bottom[i]);
            add_sums(y + o + 4 * i, sum, w + 2 * (int64_t)(o + 4 * i), f.scale);
        }
    }
}

/* A byte is low + 16 high: the products of whole bytes less those of the low nibbles are 16 times the high ones'. */
static void units_q4_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    fired f;
    (void)units;
    if (!neon_find_fired(w + 2 * (int64_t)width, width / 2, a, &f)) return;
    const int32x4_t start = vdupq_n_s32(-8 * f.sum);
    for (int32_t o = 0; o < width; o += PLM_BLOCK) {
        int32x4_t top[4], top_byte[4];
        uint32x4_t bottom[4], bottom_byte[4];
        for (int i = 0; i < 4; i++) {
            top[i] = top_byte[i] = vdupq_n_s32(0);
            bottom[i] = bottom_byte[i] = vdupq_n_u32(0);
        }
        for (int32_t k = 0; k < f.count; k += 4) {
            uint8x16x4_t v = four_units(f.row + k, o / 2);
            int8x16_t q_top = as_signed(four_bytes(f.top + k));
            uint8x16_t q_bottom = four_bytes(f.bottom + k);
            for (int i = 0; i < 4; i++) {
                uint8x16_t low = nibbles_low(v.val[i]);
                top[i] = vdotq_s32(top[i], as_signed(low), q_top);
                bottom[i] = vdotq_u32(bottom[i], low, q_bottom);
                top_byte[i] = vusdotq_s32(top_byte[i], v.val[i], q_top);
                bottom_byte[i] = vdotq_u32(bottom_byte[i], v.val[i], q_bottom);
            }
        }
        for (int i = 0; i < 4; i++) {
            int32_t at = o + 4 * i;
            int32x4_t low = join(top[i], bottom[i]), byte = join(top_byte[i], bottom_byte[i]);
            int32x4_t high = vshrq_n_s32(vsubq_s32(byte, low), 4);
            add_sums(y + at, vaddq_s32(start, low), w + 2 * (int64_t)at, f.scale);
            add_sums(y + at + 16, vaddq_s32(start, high), w + 2 * (int64_t)(at + 16), f.scale);
        }
    }
}

const plm_isa plm_neon_i8mm = {
    .name = "neon-i8mm",
    NEON_SHARED,
    .tile[PLM_Q8_0] = tile_q8_0,
    .tile[PLM_Q4_0] = tile_q4_0,
    .row[PLM_Q8_0] = row_q8_0,
    .row[PLM_Q4_0] = dotprod_row_q4_0,
    .units[PLM_Q8_0] = units_q8_0,
    .units[PLM_Q4_0] = units_q4_0,
};
