/* `blend_words` of the sets of 256 bits, with `add` as in avx2_pairs.h. */
#ifndef PLM_AVX2_BLEND_H
#define PLM_AVX2_BLEND_H

#include "avx2_pairs.h"

/* `rows` values of eight lanes as integers of at most `largest`, a pair of rows in 32 bits; beside the last row of an
 * odd number lies 0. Returns the scales of the lanes. Integers and scales are those that `pack` makes of a lane. */
static inline __m256 pairs_of_rows(const float *x, int64_t stride, __m256i lanes, int32_t rows, float largest,
                                   int32_t *pairs) {
    const packing p = packing_of(x, stride, lanes, rows, largest);
    __m256i even = _mm256_setzero_si256();
    for (int32_t r = 0; r < rows; r++) {
        __m256i w = packed(p, _mm256_maskload_ps(x + r * stride, lanes));
        even = r % 2 ? even : _mm256_and_si256(w, _mm256_set1_epi32(0xffff));
        _mm256_storeu_si256((void *)(pairs + r / 2 * PLM_TILE),
                            r % 2 ? _mm256_or_si256(even, _mm256_slli_epi32(w, 16)) : even);
    }
    return p.scale;
}

/* L <= 6 lanes of 16 columns, which begin at x and y; coefficients (pairs, 16) and factors from lane 0 of them. */
INLINED void pairs_blend_columns(const int16_t *x, int64_t stride, int32_t pairs, const int32_t *coefficients,
                                 const float *factors, const float *shrink, float *y, int64_t y_stride, int L,
                                 add_pairs *add) {
    __m256i sum[6][2]; /* 0: columns 0..3 and 8..11, 1: the others */
    for (int l = 0; l < L; l++) sum[l][0] = sum[l][1] = _mm256_setzero_si256();
    for (int32_t p = 0; p < pairs; p++) { /* by number: a pointer moved on would leave its room at the end */
        __m256i even = load32(x + 2 * p * stride), odd = load32(x + (2 * p + 1) * stride);
        __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
#pragma GCC unroll 6
        for (int l = 0; l < L; l++) {
            __m256i both = _mm256_set1_epi32(coefficients[p * PLM_TILE + l]);
            sum[l][0] = add(sum[l][0], low, both);
            sum[l][1] = add(sum[l][1], high, both);
        }
    }
    for (int l = 0; l < L; l++)
        for (int i = 0; i < 2; i++) {
            float *at = y + l * y_stride + 8 * i;
            __m256i sums = i ? _mm256_permute2x128_si256(sum[l][0], sum[l][1], 0x31)
                             : _mm256_permute2x128_si256(sum[l][0], sum[l][1], 0x20);
            blend_into(at, sums, factors + l, shrink + l);
        }
}

INLINED void pairs_blend_words(const float *weights, const int16_t *x, const float *scales, int32_t stride,
                               int32_t rows, int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride,
                               const uint8_t *next, add_pairs *add) {
    enum { PAIRS = PLM_BLOCK / 2 };
    int32_t of_rows[PAIRS][PLM_TILE], scale_of_rows[PAIRS][PLM_TILE], coefficients[PAIRS][PLM_TILE];
    float factors[PLM_TILE], of_blocks[8];
    /* Not made as pointers: cached rows narrower than halves end earlier. */
    uintptr_t ahead = (uintptr_t)next, end = ahead ? ahead + (uintptr_t)(2 * rows * stride) : 0;
    const int32_t pairs = (rows + 1) / 2, blocks = n / PLM_BLOCK;
    const int32_t calls = n / 16 * (lanes / 6 + lanes % 6 / 4 + lanes % 6 % 4);
    const int share = (int)plm_ceil_div((size_t)(2 * rows * stride), (size_t)(calls * LINE)); /* lines of each call */
    __m256 of_lanes[2];
    for (int i = 0; i < 2; i++)
        of_lanes[i] = pairs_of_rows(weights + 8 * i, PLM_TILE, _mm256_set1_epi32(-1), rows, PLM_LARGEST,
                                    of_rows[0] + 8 * i);
    for (int32_t b = 0; b < blocks; b++) {
        const int32_t k = b % 8;
        if (k == 0) {
            __m256i there = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            there = _mm256_cmpgt_epi32(_mm256_set1_epi32(blocks - b), there);
            _mm256_storeu_ps(of_blocks, pairs_of_rows(scales + b, stride / PLM_BLOCK, there, rows, PLM_PANEL,
                                                      scale_of_rows[0]));
        }
        for (int p = 0; p < pairs; p++) {
            __m256i both = _mm256_set1_epi32(scale_of_rows[p][k]);
            for (int i = 0; i < PLM_TILE; i += 8)
                _mm256_storeu_si256((void *)(coefficients[p] + i), _mm256_mulhrs_epi16(load32(of_rows[p] + i), both));
        }
        for (int i = 0; i < 2; i++) {
            __m256 factor = _mm256_mul_ps(of_lanes[i], _mm256_set1_ps(of_blocks[k]));
            _mm256_storeu_ps(factors + 8 * i, _mm256_mul_ps(factor, _mm256_set1_ps(0x1p15f)));
        }
        for (int32_t c = b * PLM_BLOCK; c < (b + 1) * PLM_BLOCK; c += 16) {
            int32_t l = 0;
#define LANES(n)                                                                                                     \
    for (; l + (n) <= lanes; l += (n)) {                                                                             \
        for (int i = 0; i < share && ahead < end; i++, ahead += LINE)                                                \
            _mm_prefetch((const void *)ahead, _MM_HINT_T1);                                                          \
        pairs_blend_columns(x + c, stride, pairs, coefficients[0] + l, factors + l, shrink + l,                      \
                            y + (int64_t)l * y_stride + c, y_stride, (n), add);                                      \
    }
            LANES(6)
            LANES(4)
            LANES(1)
#undef LANES
        }
    }
}

#endif
