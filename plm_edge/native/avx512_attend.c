/* AVX-512: attention with a head in each of 16 lanes, or a token of a prompt. In floats one product takes 16 heads of
 * one value, so a cached row of PLM is 1,088 of them; in integers one takes two values. */
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

/* ---- in integers ---- */

/* `rows` values of each lane as integers of at most `largest`, a pair of rows in 32 bits; beside the last row of an odd
 * number lies 0. Returns the scales of the lanes. The same integers and scales as `pack` makes of the values of a lane. */
static inline __m512 pairs_of_rows(const float *x, int64_t stride, __mmask16 lanes, int32_t rows, float largest,
                                   int32_t (*pairs)[PLM_TILE]) {
    const packing16 p = packing_of16(x, stride, lanes, rows, largest);
    __m512i even = _mm512_setzero_si512();
    for (int32_t r = 0; r < rows; r++) {
        __m512i w = packed16(p, _mm512_maskz_loadu_ps(lanes, x + r * stride)), odd = _mm512_slli_epi32(w, 16);
        even = r % 2 ? even : _mm512_maskz_mov_epi16(0x55555555, w);
        _mm512_storeu_si512(pairs[r / 2], r % 2 ? _mm512_or_si512(even, odd) : even);
    }
    return p.scale;
}

/* L <= 8 lanes of 32 columns, which begin at x and y; coefficients (pairs, 16) and factors (16) from lane 0 of them.
 * `next` as in scores_of: `share` bytes of it are asked for, spread over the pairs. */
INLINED void blend_block(const int16_t *x, int64_t stride, int32_t pairs, const int32_t *coefficients,
                         const float *factors, const float *shrink, float *y, int64_t y_stride, uintptr_t next,
                         uintptr_t share, int L) {
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    __m512i sum[8][2]; /* 0: columns 0..3, 8..11, 16..19, 24..27, 1: the others */
    for (int l = 0; l < L; l++) sum[l][0] = sum[l][1] = _mm512_setzero_si512();
    for (int32_t p = 0; p < pairs; p++, x += 2 * stride, coefficients += PLM_TILE) {
        for (uintptr_t at = (uintptr_t)p * LINE; at < share; at += (uintptr_t)pairs * LINE)
            _mm_prefetch((const void *)(next + at), _MM_HINT_T1);
        __m512i even = load64(x), odd = load64(x + stride);
        __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
        for (int l = 0; l < L; l++) {
            __m512i both = _mm512_set1_epi32(coefficients[l]);
            sum[l][0] = add_words(sum[l][0], low, both);
            sum[l][1] = add_words(sum[l][1], high, both);
        }
    }
    for (int l = 0; l < L; l++, y += y_stride)
        for (int i = 0; i < 2; i++) {
            __m512i sums = _mm512_permutex2var_epi64(sum[l][0], i ? second : first, sum[l][1]);
            blend_into16(y + 16 * i, sums, factors[l], shrink[l]);
        }
}

void avx512_blend_words(const float *weights, const int16_t *x, const float *scales, int32_t stride, int32_t rows,
                        int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride,
                        const uint8_t *next) {
    enum { PAIRS = PLM_BLOCK / 2 };
    int32_t of_rows[PAIRS][PLM_TILE], scale_of_rows[PAIRS][PLM_TILE], coefficients[PAIRS][PLM_TILE];
    float factors[PLM_TILE], of_blocks[PLM_TILE];
    const int32_t pairs = (rows + 1) / 2, blocks = n / PLM_BLOCK, calls = blocks * (lanes / 8 + lanes % 8);
    const uintptr_t share = next ? plm_ceil_div((size_t)(2 * rows * stride), (size_t)(calls * LINE)) * LINE : 0;
    uintptr_t ahead = (uintptr_t)next;
    const __m512 of_lanes = pairs_of_rows(weights, PLM_TILE, 0xffff, rows, PLM_LARGEST, of_rows);
    for (int32_t b = 0; b < blocks; b++) {
        const int32_t i = b % PLM_TILE;
        if (i == 0) {
            __m512 of_16 = pairs_of_rows(scales + b, stride / PLM_BLOCK, first_of(blocks - b), rows, PLM_PANEL, scale_of_rows);
            _mm512_storeu_ps(of_blocks, of_16);
        }
        for (int p = 0; p < pairs; p++) {
            __m512i both = _mm512_set1_epi32(scale_of_rows[p][i]);
            _mm512_storeu_si512(coefficients[p], _mm512_mulhrs_epi16(load64(of_rows[p]), both));
        }
        __m512 factor = _mm512_mul_ps(of_lanes, _mm512_set1_ps(of_blocks[i]));
        _mm512_storeu_ps(factors, _mm512_mul_ps(factor, _mm512_set1_ps(0x1p15f)));
        const int16_t *columns = x + b * PLM_BLOCK;
        float *to = y + b * PLM_BLOCK;
        int32_t l = 0;
#define LANES(n)                                                                                                    \
    for (; l + (n) <= lanes; l += (n)) {                                                                              \
        blend_block(columns, stride, pairs, coefficients[0] + l, factors + l, shrink + l, to + (int64_t)l * y_stride, \
                    y_stride, ahead, share, (n));                                                                      \
        ahead += share;                                                                                               \
    }
        LANES(8)
        LANES(1)
#undef LANES
    }
}

/* ---- a prompt: a token in each of 16 lanes ---- */

void avx512_blend_rows(const float *weights, const int16_t *x, const float *scales, int32_t n, const float *shrink,
                       int32_t lanes, float *y, int32_t y_stride) {
    const int32_t blocks = n / PLM_BLOCK;
    for (int32_t b = 0; b < blocks; b++) {
        __m512 v[PLM_BLOCK];
        __m512i largest = _mm512_setzero_si512(); /* as integers: a NaN is larger than all numbers */
        for (int r = 0; r < PLM_BLOCK; r++) {
            __m512 weight = _mm512_loadu_ps(weights + PLM_TILE * r);
            __mmask16 some = _mm512_cmp_ps_mask(weight, _mm512_setzero_ps(), _CMP_NEQ_UQ);
            v[r] = _mm512_maskz_mul_ps(some, weight, _mm512_set1_ps(scales[r * blocks + b]));
            largest = _mm512_max_epu32(largest, _mm512_castps_si512(v[r]));
        }
        const __m512 most = _mm512_castsi512_ps(largest);
        const __mmask16 numbers = _mm512_cmp_ps_mask(most, _mm512_set1_ps(INFINITY), _CMP_LT_OQ);
        const packing16 packing = packing_for16(most, numbers, PLM_PANEL);
        float factors[PLM_TILE];
        _mm512_storeu_ps(factors, packing.scale);
        int32_t pairs[PLM_BLOCK / 2][PLM_TILE];
        for (int p = 0; p < PLM_BLOCK / 2; p++) {
            __m512i even = packed16(packing, v[2 * p]), odd = packed16(packing, v[2 * p + 1]);
            _mm512_storeu_si512(pairs[p], _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
        }
        const int16_t *columns = x + b * PLM_BLOCK;
        float *to = y + b * PLM_BLOCK;
        int32_t l = 0;
        for (; l + 8 <= lanes; l += 8)
            blend_block(columns, n, PLM_BLOCK / 2, pairs[0] + l, factors + l, shrink + l, to + (int64_t)l * y_stride,
                        y_stride, 0, 0, 8);
        for (; l < lanes; l++)
            blend_block(columns, n, PLM_BLOCK / 2, pairs[0] + l, factors + l, shrink + l, to + (int64_t)l * y_stride,
                        y_stride, 0, 0, 1);
    }
}
