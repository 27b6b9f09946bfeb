/* NEON: attention with a head in each of 16 lanes, which are four registers. */
#include "neon.h"

/* R <= 4 rows, their sums in registers. */
static inline __attribute__((always_inline)) void scores_of(const float *q, const float *x, int64_t stride, int32_t n,
                                                            float scale, float *y, int R) {
    float32x4_t sum[4][4];
    for (int r = 0; r < R; r++)
        for (int h = 0; h < 4; h++) sum[r][h] = vdupq_n_f32(0.0f);
    for (int32_t c = 0; c < n; c++, q += PLM_TILE)
        for (int h = 0; h < 4; h++) {
            float32x4_t column = vld1q_f32(q + 4 * h);
            for (int r = 0; r < R; r++) sum[r][h] = vfmaq_n_f32(sum[r][h], column, x[r * stride + c]);
        }
    for (int r = 0; r < R; r++)
        for (int h = 0; h < 4; h++) vst1q_f32(y + r * PLM_TILE + 4 * h, vmulq_n_f32(sum[r][h], scale));
}

void neon_scores(const float *q, const float *x, int32_t stride, int32_t rows, int32_t n, float scale, float *y,
                 const uint8_t *next) {
    int64_t r = 0;
    (void)next;
    for (; r + 4 <= rows; r += 4) scores_of(q, x + r * stride, stride, n, scale, y + r * PLM_TILE, 4);
    for (; r < rows; r++) scores_of(q, x + r * stride, stride, n, scale, y + r * PLM_TILE, 1);
}

void neon_softmax(float *x, int32_t rows, float *most, float *sum, float *shrink) {
    for (int l = 0; l < PLM_TILE; l += 4) {
        float32x4_t before = vld1q_f32(most + l), top = before, total = vdupq_n_f32(0.0f), sums = vld1q_f32(sum + l);
        for (int32_t r = 0; r < rows; r++) { /* a NaN shows in its own weight */
            float32x4_t v = vld1q_f32(x + r * PLM_TILE + l);
            top = vbslq_f32(vcleq_f32(v, top), top, v);
        }
        float32x4_t factor = exp4(vsubq_f32(before, top));
        uint32x4_t begun = vmvnq_u32(vceqq_f32(sums, vdupq_n_f32(0.0f)));
        factor = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(factor), begun));
        for (int32_t r = 0; r < rows; r++) {
            float32x4_t v = exp4(vsubq_f32(vld1q_f32(x + r * PLM_TILE + l), top));
            vst1q_f32(x + r * PLM_TILE + l, v);
            total = vaddq_f32(total, v);
        }
        vst1q_f32(shrink + l, factor);
        vst1q_f32(sum + l, vaddq_f32(vmulq_f32(sums, factor), total));
        vst1q_f32(most + l, top);
    }
}
