/* AVX-512: attention in floats, a head in each of 16 lanes. One product takes 16 heads of one value, so a cached row of
 * PLM is 1,088 of them, two of which start in each cycle where registers of 512 bits are not halved. */
#include "avx512.h"

/* Sixteen rows of sixteen columns from x on, exchanged. */
static inline void transpose16(const float *x, int64_t stride, float *y) {
    __m512i a[16], b[16];
    for (int r = 0; r < 16; r++) a[r] = load64(x + r * stride);
    for (int r = 0; r < 16; r += 2)
        b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]), b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
    for (int r = 0; r < 16; r += 4)
        for (int k = 0; k < 2; k++) {
            a[r + 2 * k] = _mm512_unpacklo_epi64(b[r + k], b[r + k + 2]);
            a[r + 2 * k + 1] = _mm512_unpackhi_epi64(b[r + k], b[r + k + 2]);
        }
    for (int c = 0; c < 4; c++) { /* quarter i of a[c], a[4 + c], a[8 + c], a[12 + c] is column 4 i + c */
        __m512i low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88), high = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
        __m512i low_more = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
        __m512i high_more = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        _mm512_storeu_si512(y + 16 * c, _mm512_shuffle_i32x4(low, low_more, 0x88));
        _mm512_storeu_si512(y + 16 * (4 + c), _mm512_shuffle_i32x4(high, high_more, 0x88));
        _mm512_storeu_si512(y + 16 * (8 + c), _mm512_shuffle_i32x4(low, low_more, 0xdd));
        _mm512_storeu_si512(y + 16 * (12 + c), _mm512_shuffle_i32x4(high, high_more, 0xdd));
    }
}

void avx512_lanes(const float *x, int32_t stride, int32_t n_lanes, int32_t n, float *y) {
    int32_t c = 0;
    for (; n_lanes == PLM_TILE && c + 16 <= n; c += 16) transpose16(x + c, stride, y + c * PLM_TILE);
    if (c < n) plm_scalar_lanes(x + c, stride, n_lanes, n - c, y + c * PLM_TILE);
}

/* R <= 16 rows, their sums in registers. `next` may lie past the end of what is there (cached rows narrower than
 * halves), so it must not be made as a pointer. */
INLINED void scores_of(const float *q, const float *x, int64_t stride, int32_t n, float scale, float *y,
                       uintptr_t next, int R) {
    __m512 sum[16];
    for (int r = 0; r < R; r++) sum[r] = _mm512_setzero_ps();
    for (int32_t c = 0; c < n; c++) {
        __m512 column = _mm512_loadu_ps(q + (int64_t)c * PLM_TILE);
        if (next && 2 * R * c % LINE == 0) _mm_prefetch((const void *)(next + (unsigned)(2 * R * c)), _MM_HINT_T0);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) sum[r] = _mm512_fmadd_ps(column, _mm512_set1_ps(x[r * stride + c]), sum[r]);
    }
    for (int r = 0; r < R; r++) _mm512_storeu_ps(y + PLM_TILE * r, _mm512_mul_ps(_mm512_set1_ps(scale), sum[r]));
}

void avx512_scores(const float *q, const float *x, int32_t stride, int32_t rows, int32_t n, float scale, float *y,
                   const uint8_t *next) {
    uintptr_t ahead = (uintptr_t)next;
#define ROWS(R)                                                                           \
    for (; rows >= (R); rows -= (R), x += (R) * (int64_t)stride, y += (R) * PLM_TILE) {   \
        scores_of(q, x, stride, n, scale, y, ahead, (R));                                 \
        ahead = ahead ? ahead + (R) * 2 * (uintptr_t)n : 0;                               \
    }
    ROWS(16)
    ROWS(8)
    ROWS(4)
    ROWS(1)
#undef ROWS
}

void avx512_softmax(float *x, int32_t rows, float *most, float *sum, float *shrink) {
    __m512 before = _mm512_loadu_ps(most), top = before, total = _mm512_setzero_ps(), sums = _mm512_loadu_ps(sum);
    for (int32_t r = 0; r < rows; r++) { /* a NaN shows in its own weight */
        __m512 v = _mm512_loadu_ps(x + PLM_TILE * r);
        top = _mm512_mask_mov_ps(top, _mm512_cmp_ps_mask(v, top, _CMP_NLE_UQ), v);
    }
    __mmask16 begun = _mm512_cmp_ps_mask(sums, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    __m512 factor = _mm512_maskz_mov_ps(begun, exp16(_mm512_sub_ps(before, top)));
    for (int32_t r = 0; r < rows; r++) {
        __m512 v = exp16(_mm512_sub_ps(_mm512_loadu_ps(x + PLM_TILE * r), top));
        _mm512_storeu_ps(x + PLM_TILE * r, v);
        total = _mm512_add_ps(total, v);
    }
    _mm512_storeu_ps(shrink, factor);
    _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_mul_ps(sums, factor), total));
    _mm512_storeu_ps(most, top);
}

/* L lanes of C registers of columns, which begin at x and y. */
INLINED void blend_columns(const float *weights, const float *x, int64_t stride, int32_t rows, const float *shrink,
                           float *y, int64_t y_stride, int L, int C) {
    __m512 sum[4][4];
    for (int l = 0; l < L; l++)
        for (int c = 0; c < C; c++)
            sum[l][c] = _mm512_mul_ps(_mm512_set1_ps(shrink[l]), _mm512_loadu_ps(y + l * y_stride + 16 * c));
    for (int32_t r = 0; r < rows; r++, x += stride, weights += PLM_TILE) {
        __m512 v[4];
        for (int c = 0; c < C; c++) v[c] = _mm512_loadu_ps(x + 16 * c);
        for (int l = 0; l < L; l++)
            for (int c = 0; c < C; c++) sum[l][c] = _mm512_fmadd_ps(_mm512_set1_ps(weights[l]), v[c], sum[l][c]);
    }
    for (int l = 0; l < L; l++)
        for (int c = 0; c < C; c++) _mm512_storeu_ps(y + l * y_stride + 16 * c, sum[l][c]);
}

void avx512_blend(const float *weights, const float *x, int32_t stride, int32_t rows, int32_t n, const float *shrink,
                  int32_t lanes, float *y, int32_t y_stride) {
    int32_t c = 0;
    for (; c + 64 <= n; c += 64) { /* the columns of a block of rows stay in the cache while all lanes need them */
        int32_t l = 0;
        for (; l + 4 <= lanes; l += 4)
            blend_columns(weights + l, x + c, stride, rows, shrink + l, y + (int64_t)l * y_stride + c, y_stride, 4, 4);
        for (; l < lanes; l++)
            blend_columns(weights + l, x + c, stride, rows, shrink + l, y + (int64_t)l * y_stride + c, y_stride, 1, 4);
    }
    for (; c + 16 <= n; c += 16)
        for (int32_t l = 0; l < lanes; l++)
            blend_columns(weights + l, x + c, stride, rows, shrink + l, y + (int64_t)l * y_stride + c, y_stride, 1, 1);
    if (c < n) plm_scalar_blend(weights, x + c, stride, rows, n - c, shrink, lanes, y + c, y_stride);
}
