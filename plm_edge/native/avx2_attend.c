/* AVX2: attention in floats, a head in each of 16 lanes, which are two registers. */
#include "avx2.h"

/* Eight rows of eight columns from x on, exchanged, into columns of 16 lanes. */
static inline void columns_of(const float *x, int64_t stride, float *y) {
    __m256 v[8];
    for (int r = 0; r < 8; r++) v[r] = _mm256_loadu_ps(x + r * stride);
    transpose8(v);
    for (int c = 0; c < 8; c++) _mm256_storeu_ps(y + PLM_TILE * c, v[c]);
}

void avx2_lanes(const float *x, int32_t stride, int32_t n_lanes, int32_t n, float *y) {
    int32_t c = 0;
    for (; n_lanes == PLM_TILE && c + 8 <= n; c += 8) {
        columns_of(x + c, stride, y + c * PLM_TILE);
        columns_of(x + 8 * (int64_t)stride + c, stride, y + c * PLM_TILE + 8);
    }
    if (c < n) plm_scalar_lanes(x + c, stride, n_lanes, n - c, y + c * PLM_TILE);
}

void avx2_widen_bytes(const int8_t *q, const uint16_t *scales, int32_t blocks, float *y) {
    for (int32_t b = 0; b < blocks; b++) {
        __m256 scale = _mm256_set1_ps(_cvtsh_ss(scales[b]));
        for (int i = 0; i < PLM_BLOCK; i += 8, q += 8, y += 8) {
            __m256i eight = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)q));
            _mm256_storeu_ps(y, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(eight)));
        }
    }
}

/* R <= 6 rows, their sums in twelve registers. `next` as in scores: not made as a pointer. */
INLINED void scores_of(const float *q, const float *x, int64_t stride, int32_t n, float scale, float *y,
                       uintptr_t next, int R) {
    __m256 sum[6][2];
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (int32_t c = 0; c < n; c++, q += PLM_TILE) {
        __m256 low = _mm256_loadu_ps(q), high = _mm256_loadu_ps(q + 8);
        if (next && 2 * R * c % LINE < 2 * R) _mm_prefetch((const void *)(next + (unsigned)(2 * R * c)), _MM_HINT_T0);
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            __m256 value = _mm256_broadcast_ss(x + r * stride + c);
            sum[r][0] = _mm256_fmadd_ps(low, value, sum[r][0]);
            sum[r][1] = _mm256_fmadd_ps(high, value, sum[r][1]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < 2; i++)
            _mm256_storeu_ps(y + PLM_TILE * r + 8 * i, _mm256_mul_ps(_mm256_set1_ps(scale), sum[r][i]));
}

void avx2_scores(const float *q, const float *x, int32_t stride, int32_t rows, int32_t n, float scale, float *y,
                 const uint8_t *next) {
    uintptr_t ahead = (uintptr_t)next;
#define ROWS(R)                                                                 \
    do {                                                                        \
        scores_of(q, x, stride, n, scale, y, ahead, (R));                       \
        ahead = ahead ? ahead + (R) * 2 * (uintptr_t)n : 0;                     \
        rows -= (R), x += (R) * (int64_t)stride, y += (R) * PLM_TILE;           \
    } while (0)
    while (rows >= 5) /* of five and six rows: fewer sums than ten wait for one another */
        if (rows % 6)
            ROWS(5);
        else
            ROWS(6);
    while (rows >= 2) ROWS(2);
    if (rows) ROWS(1);
#undef ROWS
}

void avx2_softmax(float *x, int32_t rows, float *most, float *sum, float *shrink) {
    for (int i = 0; i < PLM_TILE; i += 8) {
        __m256 before = _mm256_loadu_ps(most + i), top = before, total = _mm256_setzero_ps();
        __m256 sums = _mm256_loadu_ps(sum + i);
        for (int32_t r = 0; r < rows; r++) { /* a NaN shows in its own weight */
            __m256 v = _mm256_loadu_ps(x + PLM_TILE * r + i);
            top = _mm256_blendv_ps(top, v, _mm256_cmp_ps(v, top, _CMP_NLE_UQ));
        }
        __m256 begun = _mm256_cmp_ps(sums, _mm256_setzero_ps(), _CMP_NEQ_UQ);
        __m256 factor = _mm256_and_ps(begun, exp8(_mm256_sub_ps(before, top)));
        for (int32_t r = 0; r < rows; r++) {
            __m256 v = exp8(_mm256_sub_ps(_mm256_loadu_ps(x + PLM_TILE * r + i), top));
            _mm256_storeu_ps(x + PLM_TILE * r + i, v);
            total = _mm256_add_ps(total, v);
        }
        _mm256_storeu_ps(shrink + i, factor);
        _mm256_storeu_ps(sum + i, _mm256_add_ps(_mm256_mul_ps(sums, factor), total));
        _mm256_storeu_ps(most + i, top);
    }
}

/* L lanes of C registers of columns, which begin at x and y. */
INLINED void blend_columns(const float *weights, const float *x, int64_t stride, int32_t rows, const float *shrink,
                           float *y, int64_t y_stride, int L, int C) {
    __m256 sum[6][2];
    for (int l = 0; l < L; l++)
        for (int c = 0; c < C; c++)
            sum[l][c] = _mm256_mul_ps(_mm256_broadcast_ss(shrink + l), _mm256_loadu_ps(y + l * y_stride + 8 * c));
    for (int32_t r = 0; r < rows; r++, x += stride, weights += PLM_TILE) {
        __m256 v[2];
        for (int c = 0; c < C; c++) v[c] = _mm256_loadu_ps(x + 8 * c);
#pragma GCC unroll 6
        for (int l = 0; l < L; l++) {
            __m256 weight = _mm256_broadcast_ss(weights + l);
            for (int c = 0; c < C; c++) sum[l][c] = _mm256_fmadd_ps(weight, v[c], sum[l][c]);
        }
    }
    for (int l = 0; l < L; l++)
        for (int c = 0; c < C; c++) _mm256_storeu_ps(y + l * y_stride + 8 * c, sum[l][c]);
}

/* C registers of columns of all lanes: of a block of rows they stay in the cache while all lanes need them. */
INLINED void blend_lanes(const float *weights, const float *x, int64_t stride, int32_t rows, const float *shrink,
                         int32_t lanes, float *y, int64_t y_stride, int C) {
    int32_t l = 0;
    for (; l + 6 <= lanes; l += 6)
        blend_columns(weights + l, x, stride, rows, shrink + l, y + l * y_stride, y_stride, 6, C);
    for (; l + 4 <= lanes; l += 4)
        blend_columns(weights + l, x, stride, rows, shrink + l, y + l * y_stride, y_stride, 4, C);
    for (; l < lanes; l++)
        blend_columns(weights + l, x, stride, rows, shrink + l, y + l * y_stride, y_stride, 1, C);
}

void avx2_blend(const float *weights, const float *x, int32_t stride, int32_t rows, int32_t n, const float *shrink,
                int32_t lanes, float *y, int32_t y_stride) {
    int32_t c = 0;
    for (; c + 16 <= n; c += 16) blend_lanes(weights, x + c, stride, rows, shrink, lanes, y + c, y_stride, 2);
    for (; c + 8 <= n; c += 8) blend_lanes(weights, x + c, stride, rows, shrink, lanes, y + c, y_stride, 1);
    if (c < n) plm_scalar_blend(weights, x + c, stride, rows, n - c, shrink, lanes, y + c, y_stride);
}
