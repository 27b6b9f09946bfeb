/* AVX2 with FMA and F16C. Integer formats and everything that works value by value give the bits of the scalar
 * set: the sums of a block are exact and the float steps are the same ones in the same order. Only `tile` and `row`
 * of float formats and `dot` add in another order, with fused steps. */
#include "kernels.h"

#include <immintrin.h>

enum { LINE = 64, AHEAD = 4096 }; /* bytes: a cache line; how far before their use weights are asked for */

/* Ask memory for as many bytes as are used now, AHEAD of them: the CPU's own prefetcher stops at every page. Past the
 * end of the weights this does nothing, but the address must not be made as a pointer. */
static inline void ask_ahead(const uint8_t *w, int bytes) {
    const uintptr_t first = (uintptr_t)w + AHEAD;
    for (int at = 0; at < bytes; at += LINE) _mm_prefetch((const void *)(first + (unsigned)at), _MM_HINT_T0);
}

static inline __m256i load32(const void *p) { return _mm256_loadu_si256(p); }
static inline __m256 scales8(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
static inline float scale_at(const uint8_t *p) { return _cvtsh_ss((uint16_t)(p[0] | p[1] << 8)); }
static inline __m256i nibbles_low(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
static inline __m256i nibbles_high(__m256i v) { return nibbles_low(_mm256_srli_epi16(v, 4)); }

/* ---- values of float formats, eight at a time ---- */

static inline int size_of(int format) { return format == PLM_F32 ? 4 : 2; }

static inline __m256 load8(const void *p, int format) {
    if (format == PLM_F32) return _mm256_loadu_ps(p);
    __m128i half = _mm_loadu_si128(p);
    if (format == PLM_F16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* The last n < 8 values of a row, then zeros: nothing is read past the end. */
static inline __m256 load_end(const void *p, int32_t n, int format) {
    uint8_t room[32] = {0};
    memcpy(room, p, (size_t)(n * size_of(format)));
    return load8(room, format);
}

static inline float sum8(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

static inline int32_t sum8_int(__m256i v) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

/* ---- tiles: 16 rows interleaved, 4 consecutive values each ---- */

/* Four registers of two rows by four columns -> the sums of eight rows. */
static inline void store_rows(const __m256 *sum, float *y) {
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(sum[0], sum[1]), _mm256_hadd_ps(sum[2], sum[3]));
    __m128 even = _mm256_castps256_ps128(s), odd = _mm256_extractf128_ps(s, 1);
    _mm_storeu_ps(y, _mm_unpacklo_ps(even, odd));
    _mm_storeu_ps(y + 4, _mm_unpackhi_ps(even, odd));
}

static inline void tile_float(const uint8_t *w, int32_t cols, const float *x, float *y, int format) {
    const int size = size_of(format);
    __m256 sum[8];
    for (int i = 0; i < 8; i++) sum[i] = _mm256_setzero_ps();
    for (int32_t c = 0; c < cols; c += 4, w += 64 * size) {
        __m128 four = cols - c >= 4 ? _mm_loadu_ps(x + c) : _mm256_castps256_ps128(load_end(x + c, cols - c, PLM_F32));
        __m256 twice = _mm256_set_m128(four, four);
        for (int i = 0; i < 8; i++) sum[i] = _mm256_fmadd_ps(load8(w + 8 * i * size, format), twice, sum[i]);
    }
    store_rows(sum, y);
    store_rows(sum + 4, y + 8);
}

static void tile_f32(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++) tile_float(w, cols, x->f + t * cols, y + t * stride, PLM_F32);
}
static void tile_f16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++) tile_float(w, cols, x->f + t * cols, y + t * stride, PLM_F16);
}
static void tile_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++) tile_float(w, cols, x->f + t * cols, y + t * stride, PLM_BF16);
}

/* y + the exact sums of a block times (scales of the weights times the scale of the activations). */
static inline __m256 add_scaled(__m256 y, __m256i sums, const uint8_t *scales, float scale) {
    __m256 factor = _mm256_mul_ps(scales8(scales), _mm256_set1_ps(scale));
    return _mm256_add_ps(y, _mm256_mul_ps(_mm256_cvtepi32_ps(sums), factor));
}

/* One register is 4 rows by 4 values as int16; madd leaves two sums a row, which the block's end adds. */
static void one_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y) {
    __m256 low = _mm256_setzero_ps(), high = low;
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 544) {
        ask_ahead(w, 544);
        __m256i sum[4];
        for (int i = 0; i < 4; i++) sum[i] = _mm256_setzero_si256();
        for (int g = 0; g < 8; g++) {
            int64_t four;
            memcpy(&four, x->q + b * PLM_BLOCK + 4 * g, sizeof four);
            __m256i q = _mm256_set1_epi64x(four);
            for (int i = 0; i < 4; i++) {
                __m256i values = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(w + 32 + 64 * g + 16 * i)));
                sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(values, q));
            }
        }
        __m256i first = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[0], sum[1]), 0xd8);
        __m256i second = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[2], sum[3]), 0xd8);
        low = add_scaled(low, first, w, x->scale[b]);
        high = add_scaled(high, second, w + 16, x->scale[b]);
    }
    _mm256_storeu_ps(y, low);
    _mm256_storeu_ps(y + 8, high);
}

/* 4-bit weights take the 16-bit activations as two bytes, q = 256 top + bottom, top signed, bottom not. Eight products
 * of each fit 16 bits: 8 * 2 * 15 * 128 = 30,720; 8 * 2 * 15 * 255 = 61,200, for which the sum starts at BOTTOM. */
enum { BOTTOM = -32768 };

static inline __m256i add_products(__m256i sum, __m256i bytes, __m256i signed_bytes) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(bytes, signed_bytes));
}

static inline __m256i four_bytes(const void *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}

static void one_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y) {
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 288) {
        ask_ahead(w, 288);
        __m256i q0 = load32(x->q + b * PLM_BLOCK), q1 = load32(x->q + b * PLM_BLOCK + 16);
        __m256i byte = _mm256_set1_epi16(255);
        __m256i packed = _mm256_packus_epi16(_mm256_and_si256(q0, byte), _mm256_and_si256(q1, byte));
        uint8_t top[PLM_BLOCK], bottom[PLM_BLOCK];
        _mm256_storeu_si256((void *)bottom, _mm256_permute4x64_epi64(packed, 0xd8));
        packed = _mm256_packs_epi16(_mm256_srai_epi16(q0, 8), _mm256_srai_epi16(q1, 8));
        _mm256_storeu_si256((void *)top, _mm256_permute4x64_epi64(packed, 0xd8));

        __m256i tops[2], bottoms[2]; /* of rows 0..7 and 8..15 */
        for (int i = 0; i < 2; i++) tops[i] = _mm256_setzero_si256(), bottoms[i] = _mm256_set1_epi16(BOTTOM);
#pragma GCC unroll 1 /* unrolled, the sums no longer fit into registers */
        for (int g = 0; g < 4; g++) {
            __m256i top_low = four_bytes(top + 4 * g), top_high = four_bytes(top + 16 + 4 * g);
            __m256i bottom_low = four_bytes(bottom + 4 * g), bottom_high = four_bytes(bottom + 16 + 4 * g);
            for (int i = 0; i < 2; i++) {
                __m256i v = load32(w + 32 + 64 * g + 32 * i), low = nibbles_low(v), high = nibbles_high(v);
                tops[i] = add_products(add_products(tops[i], low, top_low), high, top_high);
                bottoms[i] = add_products(add_products(bottoms[i], bottom_low, low), bottom_high, high);
            }
        }
        for (int i = 0; i < 2; i++) {
            __m256i sum = _mm256_set1_epi32(-8 * x->sum[b] - 2 * BOTTOM);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(tops[i], _mm256_set1_epi16(256)));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(bottoms[i], _mm256_set1_epi16(1)));
            sums[i] = add_scaled(sums[i], sum, w + 16 * i, x->scale[b]);
        }
    }
    _mm256_storeu_ps(y, sums[0]);
    _mm256_storeu_ps(y + 8, sums[1]);
}

/* ---- panels: pair by pair of columns, 16 lanes of two values each, lanes 0..7 in the first register ---- */

enum { PANEL_BLOCK = PLM_BLOCK * PLM_TILE, CHUNK = 8 }; /* integers of a block; blocks of a tile unpacked at a time: 8 KB */

/* The exact sums of one block for R rows of x at once. */
static inline __attribute__((always_inline)) void block_sums(const int16_t *panel, const int16_t *x, int32_t x_stride,
                                                             __m256i (*sum)[2], int R) {
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
    for (int p = 0; p < PLM_BLOCK / 2; p++, panel += 2 * PLM_TILE) {
        __m256i low = load32(panel), high = load32(panel + PLM_TILE);
        for (int r = 0; r < R; r++) {
            int32_t two;
            memcpy(&two, x + (int64_t)r * x_stride + 2 * p, sizeof two);
            __m256i q = _mm256_set1_epi32(two);
            sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(low, q));
            sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(high, q));
        }
    }
}

static inline __attribute__((always_inline)) void panel_rows(const int16_t *panel, const float *scales, int32_t blocks,
                                                             const int16_t *x, int32_t x_stride, const float *x_scale,
                                                             int32_t x_blocks, float *y, int32_t stride, int R) {
    for (int32_t b = 0; b < blocks; b++, panel += PANEL_BLOCK, scales += PLM_TILE, x += PLM_BLOCK) {
        __m256i sum[4][2];
        block_sums(panel, x, x_stride, sum, R);
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 2; i++) {
                float *at = y + (int64_t)r * stride + 8 * i;
                __m256 factor = _mm256_mul_ps(_mm256_loadu_ps(scales + 8 * i), _mm256_set1_ps(x_scale[r * x_blocks + b]));
                __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[r][i]), factor);
                _mm256_storeu_ps(at, _mm256_add_ps(_mm256_loadu_ps(at), product));
            }
    }
}

static void panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                  const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) {
    for (; rows >= 4; rows -= 4) {
        panel_rows(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 4);
        x += 4 * (int64_t)x_stride, x_scale += 4 * (int64_t)x_blocks, y += 4 * (int64_t)stride;
    }
    if (rows == 3) panel_rows(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 3);
    if (rows == 2) panel_rows(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 2);
    if (rows == 1) panel_rows(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 1);
}

/* Eight lanes of sixteen columns: 8 pairs, transposed as 32-bit values. */
static inline void eight_rows(const int16_t *x, int64_t lane, int16_t *panel) {
    __m256i a[8], b[8];
    for (int r = 0; r < 8; r++) a[r] = load32(x + r * lane);
    for (int r = 0; r < 8; r += 2) {
        b[r] = _mm256_unpacklo_epi32(a[r], a[r + 1]); /* pairs 0, 1 and 4, 5 of two rows */
        b[r + 1] = _mm256_unpackhi_epi32(a[r], a[r + 1]);
    }
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 2; k++) { /* pair 2 i + k, and 4 more of it */
            __m256i low = k ? _mm256_unpackhi_epi64(b[i], b[i + 2]) : _mm256_unpacklo_epi64(b[i], b[i + 2]);
            __m256i high = k ? _mm256_unpackhi_epi64(b[i + 4], b[i + 6]) : _mm256_unpacklo_epi64(b[i + 4], b[i + 6]);
            int16_t *to = panel + (2 * i + k) * 2 * PLM_TILE;
            _mm256_storeu_si256((void *)to, _mm256_permute2x128_si256(low, high, 0x20));
            _mm256_storeu_si256((void *)(to + 8 * PLM_TILE), _mm256_permute2x128_si256(low, high, 0x31));
        }
}

static void weave(const int16_t *x, int32_t lane, int32_t column, int32_t lanes, int32_t columns, int16_t *panel) {
    if (lane == 1 && lanes == PLM_TILE) { /* two columns, interleaved */
        for (int64_t c = 0; c < columns; c += 2, panel += 2 * PLM_TILE) {
            __m256i even = load32(x + c * column), odd = load32(x + (c + 1) * column);
            __m256i first = _mm256_unpacklo_epi16(even, odd), second = _mm256_unpackhi_epi16(even, odd);
            _mm256_storeu_si256((void *)panel, _mm256_permute2x128_si256(first, second, 0x20));
            _mm256_storeu_si256((void *)(panel + PLM_TILE), _mm256_permute2x128_si256(first, second, 0x31));
        }
        return;
    }
    if (column == 1 && lanes == PLM_TILE) {
        for (int64_t c = 0; c < columns; c += 16, panel += 16 * PLM_TILE) {
            eight_rows(x + c, lane, panel);
            eight_rows(x + 8 * (int64_t)lane + c, lane, panel + PLM_TILE);
        }
        return;
    }
    for (int64_t c = 0; c < columns; c += 2)
        for (int64_t r = 0; r < PLM_TILE; r++) {
            *panel++ = r < lanes ? x[r * lane + c * column] : 0;
            *panel++ = r < lanes ? x[r * lane + (c + 1) * column] : 0;
        }
}

static void weigh(const int16_t *a, const int16_t *b, int32_t n, int16_t *y) {
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) _mm256_storeu_si256((void *)(y + i), _mm256_mulhrs_epi16(load32(a + i), load32(b + i)));
    if (i < n) plm_scalar.weigh(a + i, b + i, n - i, y + i);
}

/* Bytes of eight rows, four values each, as pairs of columns of 16 bits: values 0 and 1, then 2 and 3. */
static inline void store_pairs(__m256i v, int16_t *panel, int is_signed) {
    const __m256i pairs = _mm256_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, /* into the high byte */
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

static void unpack_block(const uint8_t *w, int16_t *panel, float *scales, int format) {
    _mm256_storeu_ps(scales, scales8(w));
    _mm256_storeu_ps(scales + 8, scales8(w + 16));
    for (int g = 0; g < (format == PLM_Q8_0 ? 8 : 4); g++, panel += 4 * PLM_TILE)
        for (int i = 0; i < 2; i++) {
            __m256i v = load32(w + 32 + 64 * g + 32 * i);
            if (format == PLM_Q8_0) {
                store_pairs(v, panel + PLM_TILE * i, 1);
            } else {
                store_pairs(nibbles_low(v), panel + PLM_TILE * i, 0);
                store_pairs(nibbles_high(v), panel + PANEL_BLOCK / 2 + PLM_TILE * i, 0);
            }
        }
}

/* Several tokens: the tile becomes a panel, a chunk at a time, which all of them meet. */
static inline void tile_int(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride,
                            int format) {
    const int32_t blocks = cols / PLM_BLOCK, bytes = format == PLM_Q8_0 ? 544 : 288;
    int16_t room[CHUNK * PANEL_BLOCK];
    float scales[CHUNK * PLM_TILE];
    for (int64_t t = 0; t < tokens; t++) memset(y + t * stride, 0, PLM_TILE * sizeof *y);
    for (int32_t b = 0; b < blocks; b += CHUNK) {
        int32_t n = blocks - b < CHUNK ? blocks - b : CHUNK;
        for (int32_t i = 0; i < n; i++, w += bytes) {
            ask_ahead(w, bytes);
            unpack_block(w, room + i * PANEL_BLOCK, scales + i * PLM_TILE, format);
        }
        panel(room, scales, n, x->q + b * PLM_BLOCK, cols, x->scale + b, blocks, tokens, y, stride);
    }
}

static void tile_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        one_q8_0(w, cols, x, y);
    else
        tile_int(w, cols, x, tokens, y, stride, PLM_Q8_0);
}

static void tile_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        one_q4_0(w, cols, x, y);
    else
        tile_int(w, cols, x, tokens, y, stride, PLM_Q4_0);
}

/* ---- plain ggml rows ---- */

static inline float row_float(const uint8_t *w, int32_t cols, const float *x, int format) {
    const int size = size_of(format);
    __m256 sum[4];
    int32_t c = 0;
    for (int i = 0; i < 4; i++) sum[i] = _mm256_setzero_ps();
    for (; c + 32 <= cols; c += 32, w += 32 * size)
        for (int i = 0; i < 4; i++)
            sum[i] = _mm256_fmadd_ps(load8(w + 8 * i * size, format), _mm256_loadu_ps(x + c + 8 * i), sum[i]);
    for (; c + 8 <= cols; c += 8, w += 8 * size)
        sum[0] = _mm256_fmadd_ps(load8(w, format), _mm256_loadu_ps(x + c), sum[0]);
    if (c < cols)
        sum[1] = _mm256_fmadd_ps(load_end(w, cols - c, format), load_end(x + c, cols - c, PLM_F32), sum[1]);
    return sum8(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}

static float row_f32(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_float(w, cols, x->f, PLM_F32); }
static float row_f16(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_float(w, cols, x->f, PLM_F16); }
static float row_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_float(w, cols, x->f, PLM_BF16);
}
static float dot(const float *a, const float *b, int32_t n) { return row_float((const void *)a, n, b, PLM_F32); }

/* Products of a block of 32 values, as eight sums of four. */
static inline __m256i block_products(const uint8_t *w, const int16_t *q, int format) {
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
    return _mm256_add_epi32(_mm256_madd_epi16(w0, load32(q)), _mm256_madd_epi16(w1, load32(q + 16)));
}

/* Four blocks a step; their results are added one after the other, as the scalar set does. */
static inline float row_int(const uint8_t *w, int32_t cols, const plm_vectors *x, int format) {
    const int bytes = format == PLM_Q8_0 ? 34 : 18;
    int32_t b = 0, blocks = cols / PLM_BLOCK;
    float y = 0.0f, part[4];
    for (; b + 4 <= blocks; b += 4, w += 4 * bytes) {
        ask_ahead(w, 4 * bytes);
        __m256i s[4];
        for (int i = 0; i < 4; i++) s[i] = block_products(w + i * bytes, x->q + (b + i) * PLM_BLOCK, format);
        __m256i halves = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
        __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
        if (format == PLM_Q4_0)
            sums = _mm_sub_epi32(sums, _mm_slli_epi32(_mm_loadu_si128((const void *)(x->sum + b)), 3));
        __m128 scales = _mm_setr_ps(scale_at(w), scale_at(w + bytes), scale_at(w + 2 * bytes), scale_at(w + 3 * bytes));
        scales = _mm_mul_ps(scales, _mm_loadu_ps(x->scale + b));
        _mm_storeu_ps(part, _mm_mul_ps(_mm_cvtepi32_ps(sums), scales));
        for (int i = 0; i < 4; i++) y += part[i];
    }
    for (; b < blocks; b++, w += bytes) {
        int32_t sum = sum8_int(block_products(w, x->q + b * PLM_BLOCK, format));
        if (format == PLM_Q4_0) sum -= 8 * x->sum[b];
        y += (float)sum * (scale_at(w) * x->scale[b]);
    }
    return y;
}

static float row_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_int(w, cols, x, PLM_Q8_0); }
static float row_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_int(w, cols, x, PLM_Q4_0); }

/* y[0..8) += a * values. */
static inline void add8(float *y, __m256 a, __m256 values) {
    _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), _mm256_mul_ps(a, values)));
}

static inline void add_float(const uint8_t *w, int32_t n, float a, float *y, int format) {
    const int size = size_of(format);
    const __m256 factor = _mm256_set1_ps(a);
    int32_t c = 0;
    for (; c + 8 <= n; c += 8) add8(y + c, factor, load8(w + (int64_t)c * size, format));
    if (c == n) return;
    float end[8];
    _mm256_storeu_ps(end, load_end(y + c, n - c, PLM_F32));
    add8(end, factor, load_end(w + (int64_t)c * size, n - c, format));
    memcpy(y + c, end, (size_t)(n - c) * sizeof *y);
}

static inline void add_float_rows(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y, int format) {
    for (int32_t i = 0; i < count; i++) add_float(w + (int64_t)i * n * size_of(format), n, a[i], y, format);
}

static void add_f32(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_float_rows(w, n, a, count, y, PLM_F32);
}
static void add_f16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_float_rows(w, n, a, count, y, PLM_F16);
}
static void add_bf16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_float_rows(w, n, a, count, y, PLM_BF16);
}
static void add(float a, const float *x, int32_t n, float *y) { add_float((const void *)x, n, a, y, PLM_F32); }

/* y[0..16) += d * 16 signed bytes. */
static inline void add_bytes(__m256 *y, __m256 d, __m128i bytes) {
    y[0] = _mm256_add_ps(y[0], _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))));
    y[1] = _mm256_add_ps(y[1], _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))));
}

/* 32 quants of a plain row. */
static inline void add_block(__m256 *sum, const uint8_t *w, float a, int format) {
    __m256 d = _mm256_set1_ps(a * scale_at(w));
    __m128i v = _mm_loadu_si128((const void *)(w + 2));
    if (format == PLM_Q8_0) {
        add_bytes(sum, d, v);
        add_bytes(sum + 2, d, _mm_loadu_si128((const void *)(w + 18)));
    } else {
        const __m128i nibble = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
        add_bytes(sum, d, _mm_sub_epi8(_mm_and_si128(v, nibble), eight));
        add_bytes(sum + 2, d, _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(v, 4), nibble), eight));
    }
}

/* Four rows at a time, so that sums are loaded and stored once for them. */
static inline void add_int_rows(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y, int format) {
    const int64_t bytes = plm_row_bytes(format, n);
    for (int32_t i = 0; i < count; i += 4, w += 4 * bytes) {
        const int32_t rows = count - i < 4 ? count - i : 4;
        for (int32_t b = 0; b < n / PLM_BLOCK; b++) {
            const uint8_t *block = w + b * (format == PLM_Q8_0 ? 34 : 18);
            __m256 sum[4];
            for (int k = 0; k < 4; k++) sum[k] = _mm256_loadu_ps(y + b * PLM_BLOCK + 8 * k);
            for (int32_t r = 0; r < rows; r++) add_block(sum, block + r * bytes, a[i + r], format);
            for (int k = 0; k < 4; k++) _mm256_storeu_ps(y + b * PLM_BLOCK + 8 * k, sum[k]);
        }
    }
}

static void add_q8_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_int_rows(w, n, a, count, y, PLM_Q8_0);
}
static void add_q4_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_int_rows(w, n, a, count, y, PLM_Q4_0);
}

static void widen(const uint16_t *f16, int32_t n, float *y) {
    int32_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, load8(f16 + i, PLM_F16));
    for (; i < n; i++) y[i] = plm_f16(f16[i]);
}

/* plm_exp of eight, step by step the same. */
static inline __m256 exp8(__m256 x) {
    const __m256 least = _mm256_set1_ps(-87.0f);
    __m256 n = _mm256_floor_ps(_mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _mm256_set1_ps(0.5f)));
    __m256 r = _mm256_sub_ps(x, _mm256_mul_ps(n, _mm256_set1_ps(0.693359375f)));
    r = _mm256_sub_ps(r, _mm256_mul_ps(n, _mm256_set1_ps(-2.12194440e-4f)));
    static const float term[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    __m256 p = _mm256_set1_ps(1.0f / 720);
    for (int i = 0; i < 6; i++) p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(term[i]));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvttps_epi32(n), _mm256_set1_epi32(127)), 23);
    __m256 y = _mm256_mul_ps(p, _mm256_castsi256_ps(power));
    y = _mm256_andnot_ps(_mm256_cmp_ps(x, least, _CMP_LT_OQ), y); /* below: 0 */
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

static void exps(float *x, int32_t n) {
    int32_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, exp8(_mm256_loadu_ps(x + i)));
    for (; i < n; i++) x[i] = plm_exp(x[i]);
}

static inline __m256 round_to_q(__m256 x, __m256 inverse, __m256 most) {
    x = _mm256_max_ps(_mm256_mul_ps(x, inverse), _mm256_sub_ps(_mm256_setzero_ps(), most));
    return _mm256_min_ps(x, most);
}

static void pack(const float *x, int32_t cols, float most_q, int16_t *q, float *scale, int32_t *sum) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, x += PLM_BLOCK, q += PLM_BLOCK) {
        __m256 v[4], most8 = _mm256_setzero_ps(), whole8 = _mm256_setzero_ps();
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            most8 = _mm256_max_ps(_mm256_andnot_ps(sign, v[i]), most8);
            whole8 = _mm256_add_ps(whole8, _mm256_sub_ps(v[i], v[i]));
        }
        __m128 most4 = _mm_max_ps(_mm256_castps256_ps128(most8), _mm256_extractf128_ps(most8, 1));
        most4 = _mm_max_ps(most4, _mm_movehl_ps(most4, most4));
        float most = _mm_cvtss_f32(_mm_max_ss(most4, _mm_movehdup_ps(most4))), whole = sum8(whole8);
        scale[b] = most / most_q + whole;
        if (sum) sum[b] = 0;
        if (!(most > 1e-30f && whole == 0.0f)) {
            memset(q, 0, PLM_BLOCK * sizeof *q);
            continue;
        }
        __m256 inverse = _mm256_set1_ps(most_q / most);
        __m256i whole_numbers[4], total = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            whole_numbers[i] = _mm256_cvtps_epi32(round_to_q(v[i], inverse, _mm256_set1_ps(most_q)));
            total = _mm256_add_epi32(total, whole_numbers[i]);
        }
        for (int i = 0; i < 2; i++) {
            __m256i both = _mm256_packs_epi32(whole_numbers[2 * i], whole_numbers[2 * i + 1]);
            _mm256_storeu_si256((void *)(q + 16 * i), _mm256_permute4x64_epi64(both, 0xd8));
        }
        if (sum) sum[b] = sum8_int(total);
    }
}

/* Halves without their signs are ordered as integers are. */
static inline uint16_t largest_half(__m256i a, __m256i b) {
    const __m256i size = _mm256_set1_epi16(0x7fff);
    __m256i most = _mm256_max_epu16(_mm256_and_si256(a, size), _mm256_and_si256(b, size));
    __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    __m128i least = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));
    return (uint16_t)~_mm_cvtsi128_si32(least);
}

static void pack_halves(const uint16_t *x, int32_t cols, float most_q, int16_t *q, float *scale) {
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, x += PLM_BLOCK, q += PLM_BLOCK) {
        uint16_t bits = largest_half(load32(x), load32(x + 16));
        float most = _cvtsh_ss(bits);
        if (bits == 0 || bits >= 0x7c00) { /* zeros; or an infinity or a NaN, which the scale shows */
            scale[b] = bits ? NAN : 0.0f;
            memset(q, 0, PLM_BLOCK * sizeof *q);
            continue;
        }
        scale[b] = most / most_q;
        __m256 inverse = _mm256_set1_ps(most_q / most), limit = _mm256_set1_ps(most_q);
        for (int i = 0; i < PLM_BLOCK; i += 16) {
            __m256i low = _mm256_cvtps_epi32(round_to_q(load8(x + i, PLM_F16), inverse, limit));
            __m256i high = _mm256_cvtps_epi32(round_to_q(load8(x + i + 8, PLM_F16), inverse, limit));
            _mm256_storeu_si256((void *)(q + i), _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8));
        }
    }
}

/* ---- groups of 32 units ---- */

/* The rows of the units of a group that fired, an even number of them where they are integers. */
typedef struct {
    const uint8_t *row[PLM_BLOCK];
    float a[PLM_BLOCK];
    int16_t q[PLM_BLOCK];
    uint8_t top[PLM_BLOCK], bottom[PLM_BLOCK]; /* of q */
    int32_t count, sum;                        /* of q */
    float scale;
} fired;

static inline void find_fired(const uint8_t *rows, int64_t bytes, const float *a, int32_t units, fired *f) {
    f->count = 0;
    for (int32_t n = 0; n < units; n++) {
        if (a[n] == 0.0f) continue; /* a NaN is not 0: it flows on and shows */
        f->row[f->count] = rows + n * bytes;
        f->a[f->count++] = a[n];
    }
}

static inline void units_float(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, int format) {
    const int64_t size = size_of(format);
    fired f;
    int32_t o = 0;
    find_fired(w, width * size, a, units, &f);
    for (; o + 32 <= width; o += 32) {
        __m256 sum[4];
        for (int i = 0; i < 4; i++) sum[i] = _mm256_loadu_ps(y + o + 8 * i);
        for (int32_t k = 0; k < f.count; k++) {
            __m256 factor = _mm256_set1_ps(f.a[k]);
            for (int i = 0; i < 4; i++)
                sum[i] = _mm256_add_ps(sum[i], _mm256_mul_ps(factor, load8(f.row[k] + (o + 8 * i) * size, format)));
        }
        for (int i = 0; i < 4; i++) _mm256_storeu_ps(y + o + 8 * i, sum[i]);
    }
    for (int32_t k = 0; k < f.count; k++) add_float(f.row[k] + o * size, width - o, f.a[k], y + o, format);
}

static void units_f32(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    units_float(w, width, a, units, y, PLM_F32);
}
static void units_f16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    units_float(w, width, a, units, y, PLM_F16);
}
static void units_bf16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    units_float(w, width, a, units, y, PLM_BF16);
}

/* Integer groups: the scale belongs to the output, so the activations of the group share one. Two units a step; an odd
 * one gets a partner of coefficient 0. */
static inline int find_fired_int(const uint8_t *rows, int64_t bytes, const float *a, fired *f) {
    int16_t q[PLM_BLOCK];
    pack(a, PLM_BLOCK, PLM_LARGEST, q, &f->scale, &f->sum);
    find_fired(rows, bytes, a, PLM_BLOCK, f);
    for (int32_t n = 0, k = 0; n < PLM_BLOCK; n++) {
        if (a[n] == 0.0f) continue;
        f->top[k] = (uint8_t)(q[n] >> 8), f->bottom[k] = (uint8_t)q[n];
        f->q[k++] = q[n];
    }
    if (f->count % 2) {
        f->row[f->count] = f->row[f->count - 1];
        f->q[f->count] = f->top[f->count] = f->bottom[f->count] = 0;
        f->count++;
    }
    return f->count;
}

static inline __m256i two_bytes(const uint8_t *p) {
    int16_t two;
    memcpy(&two, p, sizeof two);
    return _mm256_set1_epi16(two);
}

/* y[0..8) += sums of outputs whose scales lie at `scales`. */
static inline void add_sums(float *y, __m256i sums, const uint8_t *scales, float scale) {
    _mm256_storeu_ps(y, add_scaled(_mm256_loadu_ps(y), sums, scales, scale));
}

static void units_q8_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    fired f;
    (void)units; /* integer groups are whole */
    if (!find_fired_int(w + 2 * (int64_t)width, width, a, &f)) return;
    for (int32_t o = 0; o < width; o += PLM_BLOCK) {
        __m256i sum[4]; /* 0: outputs 0..3 and 8..11, 1: 4..7 and 12..15; 2 and 3: the same of 16..31 */
        for (int i = 0; i < 4; i++) sum[i] = _mm256_setzero_si256();
        for (int32_t k = 0; k < f.count; k += 2) {
            __m256i q = four_bytes(f.q + k);
            for (int i = 0; i < 2; i++) {
                __m256i w0 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(f.row[k] + o + 16 * i)));
                __m256i w1 = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(f.row[k + 1] + o + 16 * i)));
                sum[2 * i] = _mm256_add_epi32(sum[2 * i], _mm256_madd_epi16(_mm256_unpacklo_epi16(w0, w1), q));
                sum[2 * i + 1] = _mm256_add_epi32(sum[2 * i + 1], _mm256_madd_epi16(_mm256_unpackhi_epi16(w0, w1), q));
            }
        }
        for (int i = 0; i < 4; i++) {
            __m256i eight = i % 2 ? _mm256_permute2x128_si256(sum[i - 1], sum[i], 0x31)
                                  : _mm256_permute2x128_si256(sum[i], sum[i + 1], 0x20);
            add_sums(y + o + 8 * i, eight, w + 2 * (int64_t)(o + 8 * i), f.scale);
        }
    }
}

/* Sums of the 64 outputs whose bytes lie at `at` in every row, or of 32 where that is all there is. Register i has
 * outputs 4 i .. 4 i + 3 of the first 32 below, of the second 32 above. */
static inline void sum_q4_0(const fired *f, int64_t at, int both, __m256i *sum) {
    for (int i = 0; i < 8; i++) sum[i] = _mm256_set1_epi32(-8 * f->sum - (f->count + 15) / 16 * BOTTOM);
    for (int32_t from = 0; from < f->count; from += 16) { /* as many as 16-bit sums can hold: see tile_q4_0 */
        int32_t to = f->count < from + 16 ? f->count : from + 16;
        __m256i top[4], bottom[4];
        for (int i = 0; i < 4; i++) top[i] = _mm256_setzero_si256(), bottom[i] = _mm256_set1_epi16(BOTTOM);
        for (int32_t k = from; k < to; k += 2) {
            const uint8_t *p0 = f->row[k] + at, *p1 = f->row[k + 1] + at;
            __m256i w0 = both ? load32(p0) : _mm256_castsi128_si256(_mm_loadu_si128((const void *)p0));
            __m256i w1 = both ? load32(p1) : _mm256_castsi128_si256(_mm_loadu_si128((const void *)p1));
            __m256i q_top = two_bytes(f->top + k), q_bottom = two_bytes(f->bottom + k);
            for (int i = 0; i < 2; i++) {
                __m256i v = i ? _mm256_unpackhi_epi8(w0, w1) : _mm256_unpacklo_epi8(w0, w1), part = nibbles_low(v);
                top[i] = add_products(top[i], part, q_top);
                bottom[i] = add_products(bottom[i], q_bottom, part);
                part = nibbles_high(v);
                top[2 + i] = add_products(top[2 + i], part, q_top);
                bottom[2 + i] = add_products(bottom[2 + i], q_bottom, part);
            }
        }
        for (int i = 0; i < 8; i++) {
            __m256i pairs = i % 2 ? _mm256_unpackhi_epi16(bottom[i / 2], top[i / 2])
                                  : _mm256_unpacklo_epi16(bottom[i / 2], top[i / 2]);
            sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs, _mm256_set1_epi32(256 << 16 | 1)));
        }
    }
}

static void units_q4_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    fired f;
    (void)units;
    if (!find_fired_int(w + 2 * (int64_t)width, width / 2, a, &f)) return;
    for (int32_t o = 0; o < width; o += 64) {
        __m256i sum[8];
        if (width - o >= 64)
            sum_q4_0(&f, o / 2, 1, sum);
        else
            sum_q4_0(&f, o / 2, 0, sum);
        for (int i = 0; i < 4; i++) {
            int32_t at = o + 8 * i;
            add_sums(y + at, _mm256_permute2x128_si256(sum[2 * i], sum[2 * i + 1], 0x20), w + 2 * (int64_t)at, f.scale);
            if (width - o < 64) continue;
            at += 32;
            add_sums(y + at, _mm256_permute2x128_si256(sum[2 * i], sum[2 * i + 1], 0x31), w + 2 * (int64_t)at, f.scale);
        }
    }
}

/* ---- units as floats, for many tokens ---- */

static inline void rows_float(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y, int format) {
    for (int32_t n = 0; n < units; n++)
        for (int32_t o = first; o < last; o += 8) {
            const uint8_t *at = w + ((int64_t)n * width + o) * size_of(format);
            float end[8];
            int32_t left = last - o < 8 ? last - o : 8;
            _mm256_storeu_ps(end, left == 8 ? load8(at, format) : load_end(at, left, format));
            memcpy(y, end, (size_t)left * sizeof *y);
            y += left;
        }
}

static void rows_f32(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    rows_float(w, width, first, last, units, y, PLM_F32);
}
static void rows_f16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    rows_float(w, width, first, last, units, y, PLM_F16);
}
static void rows_bf16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    rows_float(w, width, first, last, units, y, PLM_BF16);
}

/* y[0..16) = 16 bytes times the scales of their outputs. */
static inline void scaled_bytes(__m128i bytes, const uint8_t *scales, float *y) {
    _mm256_storeu_ps(y, _mm256_mul_ps(scales8(scales), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))));
    _mm256_storeu_ps(y + 8, _mm256_mul_ps(scales8(scales + 16), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))));
}

static void rows_q8_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    for (int64_t n = 0; n < units; n++)
        for (int32_t o = first; o < last; o += 16, y += 16)
            scaled_bytes(_mm_loadu_si128((const void *)(w + 2 * (int64_t)width + n * width + o)), w + 2 * o, y);
}

static void rows_q4_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    const __m128i nibble = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    for (int64_t n = 0; n < units; n++)
        for (int32_t o = first; o < last; o += PLM_BLOCK, y += PLM_BLOCK) {
            __m128i v = _mm_loadu_si128((const void *)(w + 2 * (int64_t)width + n * (width / 2) + o / 2));
            scaled_bytes(_mm_sub_epi8(_mm_and_si128(v, nibble), eight), w + 2 * o, y);
            scaled_bytes(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(v, 4), nibble), eight), w + 2 * (o + 16), y + 16);
        }
}

static void mix(const float *a, const uint8_t *which, int32_t count, const float *w, int32_t n, float *y) {
    int32_t o = 0;
    for (; o + 64 <= n; o += 64) {
        __m256 sum[8];
        for (int i = 0; i < 8; i++) sum[i] = _mm256_loadu_ps(y + o + 8 * i);
        for (int32_t k = 0; k < count; k++) {
            const float *row = w + which[k] * n + o;
            __m256 factor = _mm256_set1_ps(a[k]);
            for (int i = 0; i < 8; i++) sum[i] = _mm256_fmadd_ps(factor, _mm256_loadu_ps(row + 8 * i), sum[i]);
        }
        for (int i = 0; i < 8; i++) _mm256_storeu_ps(y + o + 8 * i, sum[i]);
    }
    for (int32_t k = 0; k < count && o < n; k++) add(a[k], w + which[k] * n + o, n - o, y + o);
}

const plm_isa plm_avx2 = {
    .name = "avx2",
    .tile = {tile_f32, tile_f16, tile_bf16, tile_q8_0, tile_q4_0},
    .row = {row_f32, row_f16, row_bf16, row_q8_0, row_q4_0},
    .add_rows = {add_f32, add_f16, add_bf16, add_q8_0, add_q4_0},
    .units = {units_f32, units_f16, units_bf16, units_q8_0, units_q4_0},
    .unit_rows = {rows_f32, rows_f16, rows_bf16, rows_q8_0, rows_q4_0},
    .mix = mix,
    .pack = pack,
    .pack_halves = pack_halves,
    .weave = weave,
    .panel = panel,
    .weigh = weigh,
    .exps = exps,
    .dot = dot,
    .add = add,
    .widen = widen,
};
