/* ARMv8.0 NEON: Q4_K and Q6_K; added rows and widened units for the other sets too. Same bits as the scalar set. */
#include "neon_super.h"

/* Four products of bytes a lane, without an instruction for them. */
static inline int32x4_t add_top(int32x4_t sum, int8x16_t w, int8x16_t q) {
    int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(q)), high = vmull_high_s8(w, q);
    return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}
static inline uint32x4_t add_bottom(uint32x4_t sum, uint8x16_t w, uint8x16_t q) {
    uint16x8_t low = vmull_u8(vget_low_u8(w), vget_low_u8(q)), high = vmull_high_u8(w, q);
    return vaddq_u32(sum, vpaddq_u32(vpaddlq_u16(low), vpaddlq_u16(high)));
}

/* ---- the set ---- */

void neon_tile_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int32_t t = 0; t < tokens; t++) {
        const plm_vectors at = plm_vector_at(x, t, cols);
        one_q4_k(w, cols, &at, y + (int64_t)t * stride, add_top, add_bottom);
    }
}

void neon_tile_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int32_t t = 0; t < tokens; t++) {
        const plm_vectors at = plm_vector_at(x, t, cols);
        one_q6_k(w, cols, &at, y + (int64_t)t * stride, add_top, add_bottom);
    }
}

float neon_row_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_of_q4_k(w, cols, x, add_top, add_bottom);
}
float neon_row_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_of_q6_k(w, cols, x, add_top, add_bottom);
}

void neon_part_q4_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y) {
    part_of_q4_k(super, width, part, a, y, add_top, add_bottom);
}
void neon_part_q6_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y) {
    part_of_q6_k(super, width, part, a, y, add_top, add_bottom);
}

/* ---- rows added up ---- */

/* sums[0..4) += scale * 16 quants. */
static inline void add_quants(float32x4_t *sums, float scale, int8x16_t v) {
    int16x8_t half[2] = {vmovl_s8(vget_low_s8(v)), vmovl_high_s8(v)};
    for (int i = 0; i < 4; i++) {
        int32x4_t wide = i % 2 ? vmovl_high_s16(half[i / 2]) : vmovl_s16(vget_low_s16(half[i / 2]));
        sums[i] = vaddq_f32(sums[i], vmulq_n_f32(vcvtq_f32_s32(wide), scale));
    }
}

/* Part j of 32 of a superblock of all rows. */
static void add_part_q4_k(const uint8_t *w, int64_t bytes, int j, const float *a, int32_t count, float *y) {
    float32x4_t sums[8];
    float less = 0.0f;
    for (int i = 0; i < 8; i++) sums[i] = vld1q_f32(y + 4 * i);
    for (int32_t r = 0; r < count; r++, w += bytes) {
        const float scale = a[r] * (scale_at(w) * (float)plm_scale_q4_k(w + 4, j));
        less += a[r] * (scale_at(w + 2) * (float)plm_least_q4_k(w + 4, j));
        for (int i = 0; i < 2; i++) {
            uint8x16_t v = vld1q_u8(w + 16 + j / 2 * 32 + 16 * i);
            add_quants(sums + 4 * i, scale, as_signed(j % 2 ? nibbles_high(v) : nibbles_low(v)));
        }
    }
    for (int i = 0; i < 8; i++) vst1q_f32(y + 4 * i, vsubq_f32(sums[i], vdupq_n_f32(less)));
}

void neon_add_q4_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    const int64_t bytes = plm_row_bytes(PLM_Q4_K, n);
    for (; n > 0; n -= PLM_SUPER, w += PLM_Q4_K_BYTES)
        for (int j = 0; j < PLM_PARTS; j++, y += PLM_BLOCK) add_part_q4_k(w, bytes, j, a, count, y);
}

/* Values 16 s .. 16 s + 15 of the four parts of half h of a superblock of all rows. */
static void add_half_q6_k(const uint8_t *w, int64_t bytes, int h, int s, const float *a, int32_t count, float *y) {
    float32x4_t sums[4][4];
    for (int i = 0; i < 16; i++) sums[i / 4][i % 4] = vld1q_f32(y + PLM_BLOCK * (i / 4) + 4 * (i % 4));
    for (int32_t r = 0; r < count; r++, w += bytes) {
        uint8x16_t v[4];
        quants_q6_k(vld1q_u8(w + 64 * h + 16 * s), vld1q_u8(w + 64 * h + 32 + 16 * s),
                    vld1q_u8(w + 128 + 32 * h + 16 * s), v);
        for (int k = 0; k < 4; k++)
            add_quants(sums[k], a[r] * (scale_at(w + 208) * (float)(int8_t)w[192 + 8 * h + 2 * k + s]),
                       vsubq_s8(as_signed(v[k]), vdupq_n_s8(32)));
    }
    for (int i = 0; i < 16; i++) vst1q_f32(y + PLM_BLOCK * (i / 4) + 4 * (i % 4), sums[i / 4][i % 4]);
}

void neon_add_q6_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    const int64_t bytes = plm_row_bytes(PLM_Q6_K, n);
    for (; n > 0; n -= PLM_SUPER, w += PLM_Q6_K_BYTES)
        for (int h = 0; h < 2; h++, y += 4 * PLM_BLOCK)
            for (int s = 0; s < 2; s++) add_half_q6_k(w, bytes, h, s, a, count, y + 16 * s);
}

/* ---- units as floats, for many tokens ---- */

void neon_part_rows_q4_k(const uint8_t *super, int32_t width, int32_t part, int32_t first, int32_t last, float *w) {
    const uint8_t *rows = plm_part_rows_at(super, PLM_Q4_K, width, part);
    for (int32_t o = first; o < last; o += 4) {
        float32x4_t scale, least;
        outputs_q4_k(super, width, part, o, &scale, &least);
        for (int64_t unit = 0; unit < PLM_BLOCK; unit++) {
            uint8x8_t v = four_at(rows + unit * (width / 2) + o / 32 * 16 + o % 16);
            v = o % 32 < 16 ? vand_u8(v, vdup_n_u8(15)) : vshr_n_u8(v, 4);
            vst1q_f32(w + unit * (last - first) + o - first, vsubq_f32(vmulq_f32(scale, floats_of(v)), least));
        }
    }
}

void neon_part_rows_q6_k(const uint8_t *super, int32_t width, int32_t part, int32_t first, int32_t last, float *w) {
    const uint8_t *rows = plm_part_rows_at(super, PLM_Q6_K, width, part);
    const int64_t bytes = plm_unit_bytes_super(PLM_Q6_K, width);
    for (int64_t unit = 0; unit < PLM_BLOCK; unit++)
        for (int32_t o = first; o < last; o += PLM_BLOCK) {
            const uint8_t *row = rows + unit * bytes;
            float *to = w + unit * (last - first) + o - first;
            uint8x16_t v[2];
            uint8_t quants[PLM_BLOCK];
            unit_of_q6_k(row + o / 2, row + width / 2 + o / 4, v);
            for (int i = 0; i < 2; i++) vst1q_u8(quants + 16 * i, vsubq_u8(v[i], vdupq_n_u8(32)));
            for (int i = 0; i < PLM_BLOCK; i += 4) {
                float32x4_t scale = outputs_q6_k(super, width, 2 * part + (int32_t)unit / 16, o + i);
                vst1q_f32(to + i, vmulq_f32(scale, signed_floats_of(four_at(quants + i))));
            }
        }
}
