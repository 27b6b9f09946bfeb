/* AVX-512 VNNI: attention in bytes, a head in each of 16 lanes. One vpdpbusd takes four bytes of a row for 16 heads, or
 * of four rows and a head 16 bytes of each. */
#include "avx512.h"

enum { FOUR = 4 * PLM_BLOCK, FOURS = PLM_BYTE_ROWS / 4 }; /* bytes of a block in four rows */

/* `bytes`, 64 or 32, of n <= 4 rows: raised by 128 as they are, and side by side, block by block: columns 0..3, 16..19,
 * 4..7 and 20..23 of a block, then the others. */
INLINED void lay(const int8_t *x, int64_t stride, int n, uint8_t *row, int64_t row_stride, int8_t *four, int bytes) {
    const __mmask16 there = bytes == 64 ? 0xffff : 0xff;
    __m512i v[4];
    for (int r = 0; r < 4; r++) {
        v[r] = r < n ? _mm512_maskz_loadu_epi32(there, x + r * stride) : _mm512_setzero_si512();
        __m512i raised = _mm512_xor_si512(v[r], _mm512_set1_epi8(-128));
        if (r < n && bytes == 64)
            _mm512_storeu_si512(row + r * row_stride, raised);
        else if (r < n)
            _mm256_storeu_si256((void *)(row + r * row_stride), lower(raised));
    }
    __m512i low = _mm512_unpacklo_epi8(v[0], v[1]), low_more = _mm512_unpacklo_epi8(v[2], v[3]);
    __m512i high = _mm512_unpackhi_epi8(v[0], v[1]), high_more = _mm512_unpackhi_epi8(v[2], v[3]);
    __m512i a = _mm512_unpacklo_epi16(low, low_more), b = _mm512_unpackhi_epi16(low, low_more);
    __m512i c = _mm512_unpacklo_epi16(high, high_more), d = _mm512_unpackhi_epi16(high, high_more);
    _mm512_storeu_si512(four, _mm512_shuffle_i32x4(a, b, 0x44));
    _mm512_storeu_si512(four + 64, _mm512_shuffle_i32x4(c, d, 0x44));
    if (bytes < 64) return;
    _mm512_storeu_si512(four + FOUR, _mm512_shuffle_i32x4(a, b, 0xee));
    _mm512_storeu_si512(four + FOUR + 64, _mm512_shuffle_i32x4(c, d, 0xee));
}

void avx512_lay_bytes(const int8_t *x, int64_t stride, int32_t rows, int32_t n, uint8_t *row, int8_t *four) {
    for (int64_t r = 0; r < rows; r += 4) {
        int64_t c = 0;
#define PARTS(there)                                                                                            \
    for (; c + 64 <= n; c += 64)                                                                                \
        lay(x + r * stride + c, stride, (there), row + r * n + c, n, four + r * n + 4 * c, 64);                 \
    if (c < n) lay(x + r * stride + c, stride, (there), row + r * n + c, n, four + r * n + 4 * c, 32);
        if (rows - r >= 4) {
            PARTS(4)
        } else {
            PARTS((int)(rows - r))
        }
#undef PARTS
    }
}

/* R <= 8 rows, their sums in registers. */
INLINED void scores_of(const int8_t *panel, const int32_t *start, const float *scales, const uint8_t *row, int32_t n,
                       const float *x_scale, int64_t x_stride, float *y, int R) {
    const int32_t blocks = n / PLM_BLOCK;
    __m512 out[8];
    for (int r = 0; r < R; r++) out[r] = _mm512_loadu_ps(y + r * PLM_TILE);
    for (int32_t b = 0; b < blocks; b++, row += PLM_BLOCK) {
        __m512i sum[8], begin = load64(start + b * PLM_TILE);
        for (int r = 0; r < R; r++) sum[r] = begin;
        for (int c = 0; c < PLM_BLOCK; c += 4, panel += 4 * PLM_TILE) {
            __m512i q = load64(panel);
            for (int r = 0; r < R; r++) sum[r] = add_bytes(sum[r], in_every(row + (int64_t)r * n + c), q);
        }
        __m512 of_block = _mm512_loadu_ps(scales + b * PLM_TILE);
        for (int r = 0; r < R; r++) out[r] = add_scaled16(out[r], sum[r], of_block, x_scale[r * x_stride + b]);
    }
    for (int r = 0; r < R; r++) _mm512_storeu_ps(y + r * PLM_TILE, out[r]);
}

void avx512_score_bytes(const int8_t *panel, const int32_t *start, const float *scales, const uint8_t *row, int32_t n,
                        const float *x_scale, int32_t x_stride, int32_t rows, float *y) {
    int64_t r = 0;
#define ROWS(R)                                                                                               \
    for (; r + (R) <= rows; r += (R))                                                                         \
        scores_of(panel, start, scales, row + r * n, n, x_scale + r * x_stride, x_stride, y + r * PLM_TILE, (R));
    ROWS(8)
    ROWS(4)
    ROWS(2)
    ROWS(1)
#undef ROWS
}

/* `rows` values of each lane as integers of at most PLM_LARGEST, four rows in 64 bits: of each four rows the lanes 0,
 * 1, 4, 5, 8, 9, 12 and 13, then the others. Missing rows are 0. Returns the scales of the lanes; integers and scales
 * are those that `pack` makes of the values of a lane. */
static inline __m512 fours_of_rows(const float *x, int64_t stride, __mmask16 lanes, int32_t rows,
                                   int64_t (*fours)[PLM_TILE]) {
    const packing16 p = packing_of16(x, stride, lanes, rows, PLM_LARGEST);
    for (int32_t r = 0; r < rows; r += 4) {
        __m512i w[4];
        for (int i = 0; i < 4; i++) {
            __m512 v = _mm512_maskz_loadu_ps(r + i < rows ? lanes : 0, x + (r + i < rows ? r + i : r) * stride);
            w[i] = packed16(p, v);
        }
        __m512i first = _mm512_mask_blend_epi16(0xaaaaaaaa, w[0], _mm512_slli_epi32(w[1], 16));
        __m512i second = _mm512_mask_blend_epi16(0xaaaaaaaa, w[2], _mm512_slli_epi32(w[3], 16));
        _mm512_storeu_si512(fours[r / 4], _mm512_unpacklo_epi32(first, second));
        _mm512_storeu_si512(fours[r / 4] + 8, _mm512_unpackhi_epi32(first, second));
    }
    return p.scale;
}

/* Where fours_of_rows leaves a lane. */
static inline int place_of(int lane) { return lane / 4 * 2 + lane % 2 + lane % 4 / 2 * 8; }

/* L <= 8 lanes of a block of 32 columns, which begin at `four` and y; coefficients (fours, 16) and factors (16) from
 * lane 0 of them. `next`, not made as a pointer, as in avx512_attend.c: `share` bytes of it are asked for, into
 * the second cache: docs/decisions.md. */
INLINED void blend_block(const int8_t *four, int64_t step, int32_t fours, const uint32_t *coefficients,
                         const float *factors, const float *shrink, float *y, int64_t y_stride, uintptr_t next,
                         uintptr_t share, int L) {
    __m512i sum[8][2];
    for (int l = 0; l < L; l++) sum[l][0] = sum[l][1] = _mm512_setzero_si512();
    for (int32_t k = 0; k < fours; k++) {
        for (uintptr_t at = (uintptr_t)k * LINE; at < share; at += (uintptr_t)fours * LINE)
            _mm_prefetch((const void *)(next + at), _MM_HINT_T1);
        __m512i v = load64(four + k * step), w = load64(four + k * step + 64);
        for (int l = 0; l < L; l++) {
            __m512i weight = in_every(coefficients + k * PLM_TILE + l);
            sum[l][0] = add_bytes(sum[l][0], weight, v);
            sum[l][1] = add_bytes(sum[l][1], weight, w);
        }
    }
    for (int l = 0; l < L; l++, y += y_stride)
        for (int i = 0; i < 2; i++) {
            __m512i sums = i ? _mm512_shuffle_i32x4(sum[l][0], sum[l][1], 0xdd)
                             : _mm512_shuffle_i32x4(sum[l][0], sum[l][1], 0x88);
            blend_into16(y + 16 * i, sums, factors[l], shrink[l]);
        }
}

void avx512_blend_bytes(const float *weights, const int8_t *four, const float *x_scale, int32_t x_stride, int32_t rows,
                        int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride, const uint8_t *next,
                        int32_t ahead) {
    int64_t of_rows[FOURS][PLM_TILE], scale_of_rows[FOURS][PLM_TILE];
    uint32_t coefficients[FOURS][PLM_TILE];
    float factors[PLM_TILE], of_blocks[PLM_TILE];
    const int32_t fours = (rows + 3) / 4, blocks = n / PLM_BLOCK, calls = blocks * (lanes / 8 + lanes % 8);
    const uintptr_t share = next ? plm_ceil_div((size_t)ahead, (size_t)(calls * LINE)) * LINE : 0;
    uintptr_t asked = (uintptr_t)next;
    const __m512i most = _mm512_set1_epi16(PLM_WEIGHT);
    const __m512 of_lanes = fours_of_rows(weights, PLM_TILE, 0xffff, rows, of_rows);
    for (int32_t b = 0; b < blocks; b++) {
        const int32_t i = b % PLM_TILE;
        if (i == 0)
            _mm512_storeu_ps(of_blocks,
                             fours_of_rows(x_scale + b, x_stride, first_of(blocks - b), rows, scale_of_rows));
        for (int k = 0; k < fours; k++) {
            __m512i of_block = _mm512_set1_epi64(scale_of_rows[k][place_of(i)]), weight[2];
            for (int j = 0; j < 2; j++)
                weight[j] = _mm512_mulhrs_epi16(_mm512_mulhrs_epi16(load64(of_rows[k] + 8 * j), of_block), most);
            _mm512_storeu_si512(coefficients[k], _mm512_packus_epi16(weight[0], weight[1]));
        }
        __m512 factor = _mm512_mul_ps(of_lanes, _mm512_set1_ps(of_blocks[i]));
        _mm512_storeu_ps(factors, _mm512_mul_ps(factor, _mm512_set1_ps(PLM_OF_WEIGHT)));
        int32_t l = 0;
#define LANES(c)                                                                                                   \
    for (; l + (c) <= lanes; l += (c), asked += share)                                                             \
        blend_block(four + b * FOUR, 4 * (int64_t)n, fours, coefficients[0] + l, factors + l, shrink + l,          \
                    y + (int64_t)l * y_stride + b * PLM_BLOCK, y_stride, asked, share, (c));
        LANES(8)
        LANES(1)
#undef LANES
    }
}
