/* What the sets of 256 bits do with several plain rows times one token. Eight blocks of a row make one register of
 * sums, and those of eight rows are added block after block with a row in each lane: the steps of pairs_row in its
 * order, so its bits. */
#ifndef PLM_AVX2_ROWS_H
#define PLM_AVX2_ROWS_H

#include "avx2_pairs.h"

/* The sums of the eight lanes of eight registers, side by side. */
static inline __m256i add_lanes(const __m256i *v) {
    __m256i a[4], b[2];
    for (int i = 0; i < 4; i++)
        a[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                                _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 2; i++)
        b[i] = _mm256_add_epi32(_mm256_unpacklo_epi64(a[2 * i], a[2 * i + 1]),
                                _mm256_unpackhi_epi64(a[2 * i], a[2 * i + 1]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(b[0], b[1], 0x20), _mm256_permute2x128_si256(b[0], b[1], 0x31));
}

/* Blocks b .. b + 8 of a row, of which w is the first, a block in each lane. */
INLINED __m256 eight_blocks(const uint8_t *w, const plm_vectors *x, int32_t b, int format, add_pairs *add) {
    const int size = plm_block_bytes(format);
    __m256i v[8];
    for (int i = 0; i < 8; i++) v[i] = block_products(w + i * size, x->q + (b + i) * PLM_BLOCK, format, add);
    __m256i sums = add_lanes(v);
    if (format == PLM_Q4_0) sums = _mm256_sub_epi32(sums, _mm256_slli_epi32(load32(x->sum + b), 3));
    return _mm256_mul_ps(_mm256_cvtepi32_ps(sums),
                         _mm256_mul_ps(eight_scales(w, format), _mm256_loadu_ps(x->scale + b)));
}

enum { TOGETHER = 64 }; /* blocks of a row whose results are kept at a time: of eight rows 2 KiB of the stack */

/* y + eight rows, `bytes` apart, of 8 n <= TOGETHER blocks from b on. They are read one after the other, as memory
 * likes it. Meanwhile it is asked for as much at `next`, unless that is NULL. */
INLINED __m256 eight_rows(const uint8_t *w, int64_t bytes, const plm_vectors *x, int32_t b, int32_t n,
                          const uint8_t *next, __m256 y, int format, add_pairs *add) {
    const int step = 8 * plm_block_bytes(format);
    __m256 part[TOGETHER / 8][8];
    for (int r = 0; r < 8; r++)
        for (int32_t k = 0; k < n; k++) {
            for (int at = 0; next && at < step; at += LINE)
                _mm_prefetch((const void *)(next + r * bytes + k * step + at), _MM_HINT_T0);
            part[k][r] = eight_blocks(w + r * bytes + k * step, x, b + 8 * k, format, add);
        }
    for (int32_t k = 0; k < n; k++) {
        transpose8(part[k]);
        for (int i = 0; i < 8; i++) y = _mm256_add_ps(y, part[k][i]);
    }
    return y;
}

INLINED void pairs_rows(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t count, float *y,
                        const uint8_t *next, int format, add_pairs *add) {
    const int size = plm_block_bytes(format);
    const int32_t blocks = cols / PLM_BLOCK, whole = blocks / 8 * 8;
    const int64_t bytes = plm_row_bytes(format, cols);
    for (; count >= 8; count -= 8, w += 8 * bytes, y += 8) {
        __m256 sum = _mm256_setzero_ps();
        for (int32_t b = 0; b < whole; b += TOGETHER) {
            const uint8_t *at = w + b * size, *then = count >= 16 ? at + 8 * bytes : next ? next + b * size : NULL;
            const int32_t n = (whole - b < TOGETHER ? whole - b : TOGETHER) / 8;
            sum = eight_rows(at, bytes, x, b, n, then, sum, format, add);
        }
        _mm256_storeu_ps(y, sum);
        for (int r = 0; whole < blocks && r < 8; r++)
            y[r] = pairs_rest(y[r], w + r * bytes, whole, blocks, x, format, add);
    }
    for (; count > 0; count--, w += bytes) *y++ = pairs_row(w, cols, x, format, add);
}

#endif
