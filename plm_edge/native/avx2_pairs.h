/* What the sets of 256 bits do with pairs of 16-bit integers: `add` adds the products of both numbers of a pair to a
 * sum of 32 bits, in one instruction or in two. */
#ifndef PLM_AVX2_PAIRS_H
#define PLM_AVX2_PAIRS_H

#include "avx2.h"

typedef __m256i add_pairs(__m256i sum, __m256i a, __m256i b);

/* Without VNNI: two instructions. */
static inline __m256i add_in_two(__m256i sum, __m256i a, __m256i b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

/* ---- tiles: 16 rows interleaved, 4 consecutive values each ---- */

/* One register is 4 rows by 4 values as int16; two sums a row are left, which the block's end adds. N tiles behind each
 * other: of several streams memory answers more at once than of one. `next`: as in plm_isa. */
INLINED void pairs_tiles_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y, const uint8_t *next,
                              int near, int N, add_pairs *add) {
    const int64_t bytes = plm_tile_bytes(PLM_Q8_0, cols);
    __m256 out[8];
    for (int i = 0; i < 2 * N; i++) out[i] = _mm256_setzero_ps();
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++) {
        const block_ahead ahead = block_asked(w, bytes, b * 544, 544, next, near, N);
        ask_tiles(&ahead, bytes, 0, 9, 544, near, N);
        for (int i = 0; i < N; i++) {
            const uint8_t *block = w + i * bytes + b * 544;
            __m256i sum[4];
            for (int k = 0; k < 4; k++) sum[k] = _mm256_setzero_si256();
            for (int g = 0; g < 8; g++) {
                int64_t four;
                memcpy(&four, x->q + b * PLM_BLOCK + 4 * g, sizeof four);
                __m256i q = _mm256_set1_epi64x(four);
                for (int k = 0; k < 4; k++) {
                    const uint8_t *at = block + 32 + 64 * g + 16 * k;
                    sum[k] = add(sum[k], _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)at)), q);
                }
            }
            for (int k = 0; k < 2; k++) {
                __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[2 * k], sum[2 * k + 1]), 0xd8);
                out[2 * i + k] = add_scaled(out[2 * i + k], sums, block + 16 * k, x->scale[b]);
            }
        }
    }
    for (int i = 0; i < 2 * N; i++) _mm256_storeu_ps(y + 8 * i, out[i]);
}

/* ---- plain ggml rows ---- */

/* Products of a block of 32 values, as eight sums of four. */
INLINED __m256i block_products(const uint8_t *w, const int16_t *q, int format, add_pairs *add) {
    __m128i bytes = _mm_loadu_si128((const void *)(w + 2));
    __m256i w0, w1;
    if (format == PLM_Q8_0) {
        w0 = _mm256_cvtepi8_epi16(bytes);
        w1 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(w + 18)));
    } else {
        w1 = _mm256_cvtepu8_epi16(bytes);
        w0 = nibbles_low(w1);
        w1 = _mm256_srli_epi16(w1, 4);
    }
    return add(_mm256_madd_epi16(w0, load32(q)), w1, load32(q + 16));
}

/* y + blocks b .. blocks of a plain row that begins at w, one after the other. */
INLINED float pairs_rest(float y, const uint8_t *w, int32_t b, int32_t blocks, const plm_vectors *x, int format,
                         add_pairs *add) {
    const int bytes = plm_block_bytes(format);
    for (w += (int64_t)b * bytes; b < blocks; b++, w += bytes) {
        int32_t sum = sum8_int(block_products(w, x->q + b * PLM_BLOCK, format, add));
        if (format == PLM_Q4_0) sum -= 8 * x->sum[b];
        y += (float)sum * (scale_at(w) * x->scale[b]);
    }
    return y;
}

/* Blocks of a plain row, four a step; their results are added one after the other, as the scalar set does. */
INLINED float pairs_row(const uint8_t *w, int32_t cols, const plm_vectors *x, int format, add_pairs *add) {
    const int bytes = plm_block_bytes(format);
    const uint8_t *row = w;
    int32_t b = 0, blocks = cols / PLM_BLOCK;
    float y = 0.0f, part[4];
    for (; b + 4 <= blocks; b += 4, w += 4 * bytes) {
        ask_ahead(w, 4 * bytes);
        __m256i s[4];
        for (int i = 0; i < 4; i++) s[i] = block_products(w + i * bytes, x->q + (b + i) * PLM_BLOCK, format, add);
        __m256i halves = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
        __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
        if (format == PLM_Q4_0)
            sums = _mm_sub_epi32(sums, _mm_slli_epi32(_mm_loadu_si128((const void *)(x->sum + b)), 3));
        __m128 scales = _mm_setr_ps(scale_at(w), scale_at(w + bytes), scale_at(w + 2 * bytes), scale_at(w + 3 * bytes));
        scales = _mm_mul_ps(scales, _mm_loadu_ps(x->scale + b));
        _mm_storeu_ps(part, _mm_mul_ps(_mm_cvtepi32_ps(sums), scales));
        for (int i = 0; i < 4; i++) y += part[i];
    }
    return pairs_rest(y, row, b, blocks, x, format, add);
}

/* ---- panels: pair by pair of columns, 16 lanes of two values each, lanes 0..7 in the first register ---- */

/* Bytes of eight rows, four values each, as pairs of columns of 16 bits: values 0 and 1, then 2 and 3. */
static inline void store_pairs(__m256i v, int16_t *panel, int is_signed) {
    /* a byte into the high half of 16 bits, from where the shift takes it down with its sign */
    const __m256i pairs = _mm256_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13,
                                           -1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13);
    const __m256i next = _mm256_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15,
                                          -1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15);
    __m256i first = _mm256_srai_epi16(_mm256_shuffle_epi8(v, pairs), 8);
    __m256i second = _mm256_srai_epi16(_mm256_shuffle_epi8(v, next), 8);
    if (!is_signed) { /* 4 bits, raised by 8 */
        first = _mm256_sub_epi16(first, _mm256_set1_epi16(8));
        second = _mm256_sub_epi16(second, _mm256_set1_epi16(8));
    }
    _mm256_storeu_si256((void *)panel, first);
    _mm256_storeu_si256((void *)(panel + 2 * PLM_TILE), second);
}

/* The exact sums of one block for R rows of x at once. */
INLINED void block_sums(const int16_t *panel, const int16_t *x, int32_t x_stride, __m256i (*sum)[2], int R,
                        add_pairs *add) {
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int p = 0; p < PLM_BLOCK / 2; p++, panel += 2 * PLM_TILE) {
        __m256i low = load32(panel), high = load32(panel + PLM_TILE);
        for (int r = 0; r < R; r++) {
            int32_t two;
            memcpy(&two, x + (int64_t)r * x_stride + 2 * p, sizeof two);
            __m256i q = _mm256_set1_epi32(two);
            sum[r][0] = add(sum[r][0], low, q);
            sum[r][1] = add(sum[r][1], high, q);
        }
    }
}

INLINED void panel_rows(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                        const float *x_scale, int32_t x_blocks, float *y, int32_t stride, int R, add_pairs *add) {
    for (int32_t b = 0; b < blocks; b++, panel += PANEL_BLOCK, scales += PLM_TILE, x += PLM_BLOCK) {
        __m256i sum[4][2];
        block_sums(panel, x, x_stride, sum, R, add);
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 2; i++) {
                float *at = y + (int64_t)r * stride + 8 * i;
                __m256 x_factor = _mm256_set1_ps(x_scale[r * x_blocks + b]);
                __m256 factor = _mm256_mul_ps(_mm256_loadu_ps(scales + 8 * i), x_factor);
                __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[r][i]), factor);
                _mm256_storeu_ps(at, _mm256_add_ps(_mm256_loadu_ps(at), product));
            }
    }
}

INLINED void pairs_panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x,
                         int32_t x_stride, const float *x_scale, int32_t x_blocks, int32_t rows, float *y,
                         int32_t stride, add_pairs *add) {
    for (; rows >= 4; rows -= 4) {
        panel_rows(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 4, add);
        x += 4 * (int64_t)x_stride, x_scale += 4 * (int64_t)x_blocks, y += 4 * (int64_t)stride;
    }
    if (rows == 3) panel_rows(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 3, add);
    if (rows == 2) panel_rows(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 2, add);
    if (rows == 1) panel_rows(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 1, add);
}

/* ---- groups of units ---- */

/* Two units a step, so that a pair is what they have for one output. */
INLINED void pairs_units_q8_0(const uint8_t *w, int32_t width, const float *a, float *y, const plm_ahead *next,
                              add_pairs *add) {
    fired f;
    if (!find_fired_int(w + 2 * (int64_t)width, width, a, 2, &f)) return;
    for (int32_t o = 0; o < width; o += PLM_BLOCK) {
        plm_ask(next, o);
        __m256i sum[4]; /* 0: outputs 0..3 and 8..11, 1: 4..7 and 12..15; 2 and 3: the same of 16..31 */
        for (int i = 0; i < 4; i++) sum[i] = _mm256_setzero_si256();
        for (int32_t k = 0; k < f.count; k += 2) {
            __m256i q = four_bytes(f.q + k);
            for (int i = 0; i < 2; i++) {
                __m256i w0 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(f.row[k] + o + 16 * i)));
                __m256i w1 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(f.row[k + 1] + o + 16 * i)));
                sum[2 * i] = add(sum[2 * i], _mm256_unpacklo_epi16(w0, w1), q);
                sum[2 * i + 1] = add(sum[2 * i + 1], _mm256_unpackhi_epi16(w0, w1), q);
            }
        }
        for (int i = 0; i < 4; i++) {
            __m256i eight = i % 2 ? _mm256_permute2x128_si256(sum[i - 1], sum[i], 0x31)
                                  : _mm256_permute2x128_si256(sum[i], sum[i + 1], 0x20);
            add_sums(y + o + 8 * i, eight, w + 2 * (int64_t)(o + 8 * i), f.scale);
        }
    }
}

#endif
