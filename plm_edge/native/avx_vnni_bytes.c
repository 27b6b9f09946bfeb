/* AVX-VNNI: attention in bytes, a head in each of 16 lanes, which are two registers. One vpdpbusd takes four bytes of a
 * row for eight heads, or of four rows and a head eight bytes of each. */
#include "avx_vnni.h"

enum { FOUR = 4 * PLM_BLOCK, FOURS = PLM_BYTE_ROWS / 4 }; /* bytes of a block in four rows */

/* 32 bytes of n <= 4 rows: raised by 128 as they are, and side by side: register i has columns 4 i .. 4 i + 3 and 16
 * further. */
INLINED void lay(const int8_t *x, int64_t stride, int n, uint8_t *row, int64_t row_stride, int8_t *four) {
    __m256i v[4];
    for (int r = 0; r < 4; r++) {
        v[r] = r < n ? load32(x + r * stride) : _mm256_setzero_si256();
        if (r < n)
            _mm256_storeu_si256((void *)(row + r * row_stride), _mm256_xor_si256(v[r], _mm256_set1_epi8(-128)));
    }
    __m256i low = _mm256_unpacklo_epi8(v[0], v[1]), low_more = _mm256_unpacklo_epi8(v[2], v[3]);
    __m256i high = _mm256_unpackhi_epi8(v[0], v[1]), high_more = _mm256_unpackhi_epi8(v[2], v[3]);
    _mm256_storeu_si256((void *)four, _mm256_unpacklo_epi16(low, low_more));
    _mm256_storeu_si256((void *)(four + 32), _mm256_unpackhi_epi16(low, low_more));
    _mm256_storeu_si256((void *)(four + 64), _mm256_unpacklo_epi16(high, high_more));
    _mm256_storeu_si256((void *)(four + 96), _mm256_unpackhi_epi16(high, high_more));
}

void avxvnni_lay_bytes(const int8_t *x, int64_t stride, int32_t rows, int32_t n, uint8_t *row, int8_t *four) {
    for (int64_t r = 0; r < rows; r += 4)
        for (int64_t c = 0; c < n; c += PLM_BLOCK) {
            const int8_t *at = x + r * stride + c;
            if (rows - r >= 4)
                lay(at, stride, 4, row + r * n + c, n, four + r * n + 4 * c);
            else
                lay(at, stride, (int)(rows - r), row + r * n + c, n, four + r * n + 4 * c);
        }
}

/* R <= 4 rows, the sums of a block in registers. */
INLINED void scores_of(const int8_t *panel, const int32_t *start, const float *scales, const uint8_t *row, int32_t n,
                       const float *x_scale, int64_t x_stride, float *y, int R) {
    for (int32_t b = 0; b < n / PLM_BLOCK; b++, row += PLM_BLOCK, scales += PLM_TILE, start += PLM_TILE) {
        __m256i low[4], high[4];
        for (int r = 0; r < R; r++) low[r] = load32(start), high[r] = load32(start + 8);
        for (int c = 0; c < PLM_BLOCK; c += 4, panel += 4 * PLM_TILE) {
            __m256i q = load32(panel), q_more = load32(panel + 32);
            for (int r = 0; r < R; r++) {
                __m256i bytes = four_bytes(row + (int64_t)r * n + c);
                low[r] = add_bytes(low[r], bytes, q), high[r] = add_bytes(high[r], bytes, q_more);
            }
        }
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 2; i++) {
                float *at = y + r * PLM_TILE + 8 * i;
                __m256 factor = _mm256_mul_ps(_mm256_loadu_ps(scales + 8 * i),
                                              _mm256_broadcast_ss(x_scale + r * x_stride + b));
                __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(i ? high[r] : low[r]), factor);
                _mm256_storeu_ps(at, _mm256_add_ps(_mm256_loadu_ps(at), product));
            }
    }
}

void avxvnni_score_bytes(const int8_t *panel, const int32_t *start, const float *scales, const uint8_t *row, int32_t n,
                         const float *x_scale, int32_t x_stride, int32_t rows, float *y) {
    int32_t r = 0;
    for (; r + 4 <= rows; r += 4)
        scores_of(panel, start, scales, row + (int64_t)r * n, n, x_scale + (int64_t)r * x_stride, x_stride,
                  y + r * PLM_TILE, 4);
    for (; r < rows; r++)
        scores_of(panel, start, scales, row + (int64_t)r * n, n, x_scale + (int64_t)r * x_stride, x_stride,
                  y + r * PLM_TILE, 1);
}

/* `rows` values of eight lanes as integers of at most PLM_LARGEST, four rows in 64 bits: of each four rows the lanes 0,
 * 1, 4 and 5, then the others. Missing rows are 0. Returns the scales of the lanes; integers and scales are those that
 * `pack` makes of the values of a lane. */
static inline __m256 fours_of_rows(const float *x, int64_t stride, __m256i lanes, int32_t rows, int64_t (*fours)[8]) {
    const packing p = packing_of(x, stride, lanes, rows, PLM_LARGEST);
    for (int32_t r = 0; r < rows; r += 4) {
        __m256i w[4];
        for (int i = 0; i < 4; i++) {
            const int there = r + i < rows;
            w[i] = packed(p, _mm256_maskload_ps(x + (there ? r + i : r) * stride, lanes));
            if (!there) w[i] = _mm256_setzero_si256();
        }
        __m256i first = _mm256_blend_epi16(w[0], _mm256_slli_epi32(w[1], 16), 0xaa);
        __m256i second = _mm256_blend_epi16(w[2], _mm256_slli_epi32(w[3], 16), 0xaa);
        _mm256_storeu_si256((void *)fours[r / 4], _mm256_unpacklo_epi32(first, second));
        _mm256_storeu_si256((void *)(fours[r / 4] + 4), _mm256_unpackhi_epi32(first, second));
    }
    return p.scale;
}

/* Where fours_of_rows leaves a lane. */
static inline int place_of(int lane) { return lane / 4 * 2 + lane % 2 + lane % 4 / 2 * 4; }

/* L <= 6 lanes of half a block, which begins at `four` and whose columns are y[0..8) and y[16..24); coefficients
 * (fours, 16), factors and shrink from lane 0 of them. */
INLINED void blend_half(const int8_t *four, int64_t step, int32_t fours, const uint8_t *coefficients,
                        const float *factors, const float *shrink, float *y, int64_t y_stride, int L) {
    __m256i sum[6][2];
    for (int l = 0; l < L; l++) sum[l][0] = sum[l][1] = _mm256_setzero_si256();
    for (int32_t k = 0; k < fours; k++) {
        __m256i v = load32(four + k * step), w = load32(four + k * step + 32);
#pragma GCC unroll 6
        for (int l = 0; l < L; l++) {
            __m256i weight = four_bytes(coefficients + 4 * (k * PLM_TILE + l));
            sum[l][0] = add_bytes(sum[l][0], weight, v);
            sum[l][1] = add_bytes(sum[l][1], weight, w);
        }
    }
    for (int l = 0; l < L; l++)
        for (int i = 0; i < 2; i++) {
            float *at = y + l * y_stride + 16 * i;
            __m256i sums = i ? _mm256_permute2x128_si256(sum[l][0], sum[l][1], 0x31)
                             : _mm256_permute2x128_si256(sum[l][0], sum[l][1], 0x20);
            blend_into(at, sums, factors + l, shrink + l);
        }
}

void avxvnni_blend_bytes(const float *weights, const int8_t *four, const float *x_scale, int32_t x_stride, int32_t rows,
                         int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride, const uint8_t *next,
                         int32_t ahead) {
    int64_t of_rows[2][FOURS][8], scale_of_rows[FOURS][8];
    uint8_t coefficients[FOURS][4 * PLM_TILE];
    float factors[PLM_TILE], of_blocks[8];
    const int32_t fours = (rows + 3) / 4, blocks = n / PLM_BLOCK;
    /* Not made as a pointer: it moves on past the end. */
    const uintptr_t share = next ? plm_ceil_div((size_t)ahead, (size_t)(2 * blocks * LINE)) * LINE : 0;
    uintptr_t asked = (uintptr_t)next;
    const __m256i most = _mm256_set1_epi16(PLM_WEIGHT);
    __m256 of_lanes[2];
    for (int i = 0; i < 2; i++)
        of_lanes[i] = fours_of_rows(weights + 8 * i, PLM_TILE, _mm256_set1_epi32(-1), rows, of_rows[i]);
    for (int32_t b = 0; b < blocks; b++) {
        const int32_t at = b % 8;
        if (at == 0) {
            __m256i there = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            there = _mm256_cmpgt_epi32(_mm256_set1_epi32(blocks - b), there);
            _mm256_storeu_ps(of_blocks, fours_of_rows(x_scale + b, x_stride, there, rows, scale_of_rows));
        }
        for (int k = 0; k < fours; k++) {
            __m256i of_block = _mm256_set1_epi64x(scale_of_rows[k][place_of(at)]), weight[2];
            for (int i = 0; i < 2; i++) {
                for (int j = 0; j < 2; j++)
                    weight[j] = _mm256_mulhrs_epi16(_mm256_mulhrs_epi16(load32(of_rows[i][k] + 4 * j), of_block), most);
                _mm256_storeu_si256((void *)(coefficients[k] + 32 * i), _mm256_packus_epi16(weight[0], weight[1]));
            }
        }
        for (int i = 0; i < 2; i++) {
            __m256 factor = _mm256_mul_ps(of_lanes[i], _mm256_set1_ps(of_blocks[at]));
            _mm256_storeu_ps(factors + 8 * i, _mm256_mul_ps(factor, _mm256_set1_ps(PLM_OF_WEIGHT)));
        }
        for (int half = 0; half < 2; half++, asked += share) {
            const int8_t *from = four + b * FOUR + 64 * half;
            float *to = y + b * PLM_BLOCK + 8 * half;
            for (uintptr_t p = 0; p < share; p += LINE) _mm_prefetch((const void *)(asked + p), _MM_HINT_T0);
            int32_t l = 0;
#define LANES(c)                                                                                                   \
    for (; l + (c) <= lanes; l += (c))                                                                             \
        blend_half(from, 4 * (int64_t)n, fours, coefficients[0] + 4 * l, factors + l, shrink + l,                  \
                   to + (int64_t)l * y_stride, y_stride, (c));
            LANES(6)
            LANES(4)
            LANES(1)
#undef LANES
        }
    }
}
