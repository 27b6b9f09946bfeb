/* What the files of the AVX-VNNI set share. */
#ifndef PLM_AVX_VNNI_H
#define PLM_AVX_VNNI_H

#include "avx2.h"

/* sum + the four products of unsigned and signed bytes of each 32 bits. */
static inline __m256i add_bytes(__m256i sum, __m256i bytes, __m256i signed_bytes) {
    return in_place(_mm256_dpbusd_avx_epi32(sum, bytes, signed_bytes));
}

void avxvnni_lay_bytes(const int8_t *x, int64_t stride, int32_t rows, int32_t n, uint8_t *row, int8_t *four);
void avxvnni_score_bytes(const int8_t *panel, const int32_t *start, const float *scales, const uint8_t *row, int32_t n,
                         const float *x_scale, int32_t x_stride, int32_t rows, float *y);
void avxvnni_blend_bytes(const float *weights, const int8_t *four, const float *x_scale, int32_t x_stride, int32_t rows,
                         int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride, const uint8_t *next,
                         int32_t ahead);

#endif
