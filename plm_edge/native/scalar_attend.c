/* The scalar set: attention with 16 heads side by side, the oracle of the other sets. */
#include "kernels.h"

void plm_scalar_lanes(const float *x, int32_t stride, int32_t n_lanes, int32_t n, float *y) {
    memset(y, 0, (size_t)(n * PLM_TILE) * sizeof *y);
    for (int64_t c = 0; c < n; c++) /* as bits: they need not be floats */
        for (int64_t l = 0; l < n_lanes; l++) memcpy(y + c * PLM_TILE + l, x + l * stride + c, sizeof *y);
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

/* ---- in bytes ---- */

void plm_scalar_lay_bytes(const int8_t *x, int64_t stride, int32_t rows, int32_t n, uint8_t *row, int8_t *four) {
    const int64_t whole = (rows + 3) / 4 * 4;
    for (int64_t r = 0; r < whole; r++)
        for (int64_t c = 0; c < n; c++) {
            const int8_t byte = r < rows ? x[r * stride + c] : 0;
            if (r < rows) row[r * n + c] = (uint8_t)(byte + 128);
            four[r / 4 * 4 * n + 4 * c + r % 4] = byte;
        }
}

void plm_scalar_score_bytes(const int8_t *panel, const int32_t *start, const float *scales, const uint8_t *row,
                            int32_t n, const float *x_scale, int32_t x_stride, int32_t rows, float *y) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t l = 0; l < PLM_TILE; l++)
            for (int64_t b = 0; b < n / PLM_BLOCK; b++) {
                int32_t sum = start[b * PLM_TILE + l];
                for (int64_t c = b * PLM_BLOCK; c < (b + 1) * PLM_BLOCK; c++)
                    sum += panel[c / 4 * 4 * PLM_TILE + 4 * l + c % 4] * row[r * n + c];
                y[r * PLM_TILE + l] += (float)sum * (scales[b * PLM_TILE + l] * x_scale[r * x_stride + b]);
            }
}

/* The n <= PLM_BYTE_ROWS values of a column of x as integers with one scale, which is returned: what `pack` does. */
static float pack_column(const float *x, int64_t stride, int32_t n, int16_t *q) {
    float most = 0.0f, whole = 0.0f;
    for (int64_t r = 0; r < n; r++) {
        most = fabsf(x[r * stride]) > most ? fabsf(x[r * stride]) : most;
        whole += x[r * stride] - x[r * stride]; /* NaN where a value is NaN or infinite */
    }
    const float inverse = most > 1e-30f && whole == 0.0f ? PLM_LARGEST / most : 0.0f;
    for (int64_t r = 0; r < n; r++) q[r] = inverse > 0.0f ? (int16_t)lrintf(x[r * stride] * inverse) : 0;
    return most / PLM_LARGEST + whole;
}

void plm_scalar_blend_bytes(const float *weights, const int8_t *four, const float *x_scale, int32_t x_stride,
                            int32_t rows, int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride,
                            const uint8_t *next, int32_t ahead) {
    int16_t of_lane[PLM_TILE][PLM_BYTE_ROWS], of_block[PLM_BYTE_ROWS], most[PLM_BYTE_ROWS], weight[PLM_BYTE_ROWS];
    float lane_scale[PLM_TILE];
    (void)next, (void)ahead;
    for (int32_t r = 0; r < rows; r++) most[r] = PLM_WEIGHT;
    for (int32_t l = 0; l < lanes; l++) lane_scale[l] = pack_column(weights + l, PLM_TILE, rows, of_lane[l]);
    for (int32_t b = 0; b < n / PLM_BLOCK; b++) {
        const float block_scale = pack_column(x_scale + b, x_stride, rows, of_block);
        for (int32_t l = 0; l < lanes; l++) {
            const float factor = lane_scale[l] * block_scale * PLM_OF_WEIGHT;
            plm_scalar.weigh(of_lane[l], of_block, rows, weight);
            plm_scalar.weigh(weight, most, rows, weight);
            for (int64_t c = b * PLM_BLOCK; c < (b + 1) * PLM_BLOCK; c++) {
                float *at = y + (int64_t)l * y_stride + c;
                int32_t sum = 0;
                for (int64_t r = 0; r < rows; r++) sum += weight[r] * four[r / 4 * 4 * n + 4 * c + r % 4];
                *at = *at * shrink[l] + (float)sum * factor;
            }
        }
    }
}
