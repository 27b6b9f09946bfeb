/* The scalar set: attention with 16 heads side by side, the oracle of the other sets. */
#include "kernels.h"

void plm_scalar_lanes(const float *x, int32_t stride, int32_t n_lanes, int32_t n, float *y) {
    for (int64_t c = 0; c < n; c++)
        for (int64_t l = 0; l < PLM_TILE; l++) y[c * PLM_TILE + l] = l < n_lanes ? x[l * stride + c] : 0.0f;
}

void plm_scalar_scores(const float *q, const float *x, int32_t stride, int32_t rows, int32_t n, float scale, float *y,
                       const uint8_t *next) {
    (void)next;
    for (int64_t r = 0; r < rows; r++, y += PLM_TILE) {
        float sum[PLM_TILE] = {0};
        for (int64_t c = 0; c < n; c++)
            for (int l = 0; l < PLM_TILE; l++) sum[l] += q[c * PLM_TILE + l] * x[r * stride + c];
        for (int l = 0; l < PLM_TILE; l++) y[l] = scale * sum[l];
    }
}

void plm_scalar_softmax(float *x, int32_t rows, float *most, float *sum, float *shrink) {
    for (int l = 0; l < PLM_TILE; l++) {
        float top = most[l], total = 0.0f;
        for (int32_t r = 0; r < rows; r++)
            if (!(x[r * PLM_TILE + l] <= top)) top = x[r * PLM_TILE + l]; /* a NaN shows in its own weight */
        shrink[l] = sum[l] == 0.0f ? 0.0f : plm_exp(most[l] - top);
        for (int32_t r = 0; r < rows; r++) {
            float *at = &x[r * PLM_TILE + l];
            *at = plm_exp(*at - top);
            total += *at;
        }
        sum[l] = sum[l] * shrink[l] + total;
        most[l] = top;
    }
}

void plm_scalar_blend(const float *weights, const float *x, int32_t stride, int32_t rows, int32_t n,
                      const float *shrink, int32_t lanes, float *y, int32_t y_stride) {
    for (int64_t l = 0; l < lanes; l++, y += y_stride) {
        for (int32_t c = 0; c < n; c++) y[c] *= shrink[l];
        for (int64_t r = 0; r < rows; r++)
            for (int32_t c = 0; c < n; c++) y[c] += weights[r * PLM_TILE + l] * x[r * stride + c];
    }
}

/* ---- in integers ---- */

void plm_scalar_blend_words(const float *weights, const int16_t *x, const float *scales, int32_t stride, int32_t rows,
                            int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride,
                            const uint8_t *next) {
    (void)next;
    for (int64_t l = 0; l < lanes; l++, y += y_stride)
        for (int64_t b = 0; b < n / PLM_BLOCK; b++) {
            float by_row[2][PLM_BLOCK] = {{0}}, scale[2];
            int16_t whole[2][PLM_BLOCK], coefficient[PLM_BLOCK];
            for (int64_t r = 0; r < rows; r++)
                by_row[0][r] = weights[r * PLM_TILE + l], by_row[1][r] = scales[r * stride / PLM_BLOCK + b];
            plm_scalar.pack(by_row[0], PLM_BLOCK, PLM_LARGEST, whole[0], &scale[0], NULL);
            plm_scalar.pack(by_row[1], PLM_BLOCK, PLM_PANEL, whole[1], &scale[1], NULL);
            plm_scalar.weigh(whole[0], whole[1], PLM_BLOCK, coefficient);
            for (int64_t c = b * PLM_BLOCK; c < (b + 1) * PLM_BLOCK; c++) {
                int32_t sum = 0;
                for (int64_t r = 0; r < rows; r++) sum += coefficient[r] * x[r * stride + c];
                y[c] = y[c] * shrink[l] + (float)sum * (scale[0] * scale[1] * 0x1p15f);
            }
        }
}
