/* AVX-512 VNNI: Q4_K and Q6_K. A register is 4 values of all 16 rows of a tile; activations are two bytes, which meet
 * 4- and 6-bit weights as they are. Same bits as the scalar set. */
#include "avx2_super.h"
#include "avx512.h"

/* y + float(sums) * (scale * x_scale). */
static inline __m512 add_part_512(__m512 y, __m512i sums, __m512 scale, float x_scale) {
    __m512 factor = _mm512_mul_ps(scale, _mm512_set1_ps(x_scale));
    return _mm512_add_ps(y, _mm512_mul_ps(_mm512_cvtepi32_ps(sums), factor));
}

static inline __m512i bits(__m512i v, int byte) { return _mm512_and_si512(v, _mm512_set1_epi8((char)byte)); }
static inline __m512i either(__m512i a, __m512i b) { return _mm512_or_si512(a, b); }

/* The bytes of a block of activations. */
static inline void split_512(const int16_t *q, uint8_t *top, uint8_t *bottom) {
    __m512i v = load64(q);
    _mm256_storeu_si256((void *)bottom, _mm512_cvtepi16_epi8(v));
    _mm256_storeu_si256((void *)top, _mm512_cvtepi16_epi8(_mm512_srai_epi16(v, 8)));
}

/* ---- tiles, one token ---- */

/* Scales and leasts of parts 0..3 as the four bytes of a lane, then of parts 4..7. */
typedef struct {
    __m512i scale[2], least[2];
    __m512 d, dmin;
} rows_q4_k;

static inline rows_q4_k rows_at(const uint8_t *w) {
    __m512i halves = load64(w), t0 = load64(w + 64), t1 = load64(w + 128), t2 = load64(w + 192);
    rows_q4_k s;
    s.d = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(halves));
    s.dmin = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(halves, 16)));
    s.scale[0] = bits(t0, 63), s.least[0] = bits(t1, 63);
    s.scale[1] = either(bits(t2, 15), bits(_mm512_srli_epi32(t0, 2), 0x30));
    s.least[1] = either(bits(_mm512_srli_epi32(t2, 4), 15), bits(_mm512_srli_epi32(t1, 2), 0x30));
    return s;
}

/* Byte i of each lane, as a float. */
static inline __m512 byte_of(__m512i v, int i) {
    return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(v, (unsigned)(8 * i)), _mm512_set1_epi32(255)));
}
static inline __m512 signed_byte_of(__m512i v, int i) {
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(v, (unsigned)(24 - 8 * i)), 24));
}

static void one_q4_k_512(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y) {
    __m512 out = _mm512_setzero_ps(), less = out;
    for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS, w += PLM_TILE_Q4_K) {
        const rows_q4_k rows = rows_at(w);
#pragma GCC unroll 4
        for (int p = 0; p < 4; p++) { /* parts 2 p in the low, 2 p + 1 in the high nibbles */
            uint8_t top[2 * PLM_BLOCK], bottom[2 * PLM_BLOCK];
            __m512i tops[2], bottoms[2];
            for (int k = 0; k < 2; k++) {
                split_512(x->q + (b + 2 * p + k) * PLM_BLOCK, top + PLM_BLOCK * k, bottom + PLM_BLOCK * k);
                tops[k] = bottoms[k] = _mm512_setzero_si512();
            }
            ask_ahead(w + 256 + 512 * p, p ? 512 : 768);
            for (int g = 0; g < 8; g++) {
                __m512i v = load64(w + 256 + 512 * p + 64 * g), low = low_of(v), high = high_of(v);
                tops[0] = add_bytes(tops[0], low, in_every(top + 4 * g));
                bottoms[0] = add_bytes(bottoms[0], in_every(bottom + 4 * g), low);
                tops[1] = add_bytes(tops[1], high, in_every(top + PLM_BLOCK + 4 * g));
                bottoms[1] = add_bytes(bottoms[1], in_every(bottom + PLM_BLOCK + 4 * g), high);
            }
            for (int k = 0; k < 2; k++) {
                const int j = 2 * p + k;
                __m512 scale = _mm512_mul_ps(rows.d, byte_of(rows.scale[j / 4], j % 4));
                __m512 least = _mm512_mul_ps(rows.dmin, byte_of(rows.least[j / 4], j % 4));
                float factor = (float)x->sum[b + j] * x->scale[b + j];
                out = add_part_512(out, join(tops[k], bottoms[k]), scale, x->scale[b + j]);
                less = _mm512_add_ps(less, _mm512_mul_ps(least, _mm512_set1_ps(factor)));
            }
        }
    }
    _mm512_storeu_ps(y, _mm512_sub_ps(out, less));
}

/* -32 times the sum of each 16 of a superblock's activations. */
static inline void sums_of_16(const int16_t *q, int32_t *start) {
    const __m256i factor = _mm256_set1_epi16(-32);
    for (int i = 0; i < 2; i++) {
        __m256i s[8];
        for (int k = 0; k < 8; k++) s[k] = _mm256_madd_epi16(load32(q + 128 * i + 16 * k), factor);
        _mm256_storeu_si256((void *)(start + 8 * i), eight_sums(s));
    }
}

/* The four six-bit quants whose bits share bytes, as they are. */
static inline void six_512(__m512i low, __m512i next, __m512i high, __m512i *v) {
    v[0] = either(low_of(low), bits(_mm512_slli_epi16(high, 4), 0x30));
    v[1] = either(low_of(next), bits(_mm512_slli_epi16(high, 2), 0x30));
    v[2] = either(high_of(low), bits(high, 0x30));
    v[3] = either(high_of(next), bits(_mm512_srli_epi16(high, 2), 0x30));
}

/* Columns 16 s .. 16 s + 15 of the four parts of a half. */
static inline __attribute__((always_inline)) void sums_q6_k(const uint8_t *low, const uint8_t *high,
                                                            const uint8_t *top, const uint8_t *bottom,
                                                            const int32_t *start, int s, __m512i (*sums)[2]) {
    __m512i tops[4], bottoms[4];
    for (int k = 0; k < 4; k++) tops[k] = _mm512_setzero_si512(), bottoms[k] = _mm512_set1_epi32(start[2 * k + s]);
    for (int g = 4 * s; g < 4 * (s + 1); g++) {
        __m512i v[4];
        six_512(load64(low + 64 * g), load64(low + 64 * (g + 8)), load64(high + 64 * g), v);
        for (int k = 0; k < 4; k++) {
            tops[k] = add_bytes(tops[k], v[k], in_every(top + PLM_BLOCK * k + 4 * g));
            bottoms[k] = add_bytes(bottoms[k], in_every(bottom + PLM_BLOCK * k + 4 * g), v[k]);
        }
    }
    for (int k = 0; k < 4; k++) sums[k][s] = join(tops[k], bottoms[k]);
}

static void one_q6_k_512(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y) {
    __m512 out = _mm512_setzero_ps();
    for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS, w += PLM_TILE_Q6_K) {
        const __m512 d = scales16(w);
        uint8_t top[PLM_SUPER], bottom[PLM_SUPER];
        int32_t start[2 * PLM_PARTS];
        for (int j = 0; j < PLM_PARTS; j++)
            split_512(x->q + (b + j) * PLM_BLOCK, top + PLM_BLOCK * j, bottom + PLM_BLOCK * j);
        sums_of_16(x->q + b * PLM_BLOCK, start);
        for (int h = 0; h < 2; h++) {
            const uint8_t *low = w + 288 + 1024 * h, *high = w + 2336 + 512 * h;
            const int at = 4 * PLM_BLOCK * h;
            __m512i sums[4][2];
            ask_ahead(low, 1024 + 288 * !h);
            ask_ahead(high, 512);
            sums_q6_k(low, high, top + at, bottom + at, start + 8 * h, 0, sums);
            sums_q6_k(low, high, top + at, bottom + at, start + 8 * h, 1, sums);
            for (int k = 0; k < 4; k++) {
                __m512i scales = load64(w + 32 + 64 * (2 * h + k / 2));
                for (int s = 0; s < 2; s++)
                    out = add_part_512(out, sums[k][s], _mm512_mul_ps(d, signed_byte_of(scales, k % 2 * 2 + s)),
                                       x->scale[b + 4 * h + k]);
            }
        }
    }
    _mm512_storeu_ps(y, out);
}

/* ---- panels ---- */

/* R <= 8 rows of x; blocks of `columns`, of which those in the same 32 share a scale of x. */
INLINED void rows_of_panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x,
                           int32_t x_stride, const float *x_scale, int32_t x_blocks, float *y, int32_t stride, int R,
                           int columns) {
    __m512 out[8];
    for (int r = 0; r < R; r++) out[r] = _mm512_loadu_ps(y + (int64_t)r * stride);
    for (int32_t b = 0; b < blocks; b++, scales += PLM_TILE, x += columns) {
        __m512i sum[8];
        for (int r = 0; r < R; r++) sum[r] = _mm512_setzero_si512();
        for (int p = 0; p < columns / 2; p++, panel += 2 * PLM_TILE) {
            __m512i v = load64(panel);
            for (int r = 0; r < R; r++) sum[r] = add_words(sum[r], v, in_every(x + (int64_t)r * x_stride + 2 * p));
        }
        __m512 of_block = _mm512_loadu_ps(scales);
        for (int r = 0; r < R; r++)
            out[r] = add_part_512(out[r], sum[r], of_block, x_scale[r * x_blocks + b * columns / PLM_BLOCK]);
    }
    for (int r = 0; r < R; r++) _mm512_storeu_ps(y + (int64_t)r * stride, out[r]);
}

INLINED void panel_512(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                       const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride, int columns) {
    for (; rows >= 8; rows -= 8) {
        rows_of_panel(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 8, columns);
        x += 8 * (int64_t)x_stride, x_scale += 8 * (int64_t)x_blocks, y += 8 * (int64_t)stride;
    }
    for (; rows >= 4; rows -= 4) {
        rows_of_panel(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 4, columns);
        x += 4 * (int64_t)x_stride, x_scale += 4 * (int64_t)x_blocks, y += 4 * (int64_t)stride;
    }
    for (; rows > 0; rows--) {
        rows_of_panel(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 1, columns);
        x += x_stride, x_scale += x_blocks, y += stride;
    }
}

static void panel_of_32(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                        const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) {
    panel_512(panel, scales, blocks, x, x_stride, x_scale, x_blocks, rows, y, stride, PLM_BLOCK);
}
static void panel_of_16(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                        const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) {
    panel_512(panel, scales, blocks, x, x_stride, x_scale, x_blocks, rows, y, stride, 16);
}

void avx512_tile_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        one_q4_k_512(w, cols, x, y);
    else
        avx2_several_q4_k(w, cols, x, tokens, y, stride, panel_of_32);
}

void avx512_tile_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        one_q6_k_512(w, cols, x, y);
    else
        avx2_several_q6_k(w, cols, x, tokens, y, stride, panel_of_16);
}

/* ---- plain rows ---- */

float avx512_row_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_of_q4_k(w, cols, x, add_in_one);
}

/* sum + scale times 16 quants. */
static inline __m512 add_16(__m512 sum, float scale, __m128i v, int is_signed) {
    __m512i wide = is_signed ? _mm512_cvtepi8_epi32(v) : _mm512_cvtepu8_epi32(v);
    return _mm512_add_ps(sum, _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_cvtepi32_ps(wide)));
}

/* A superblock's sums stay in registers while all rows pass. */
void avx512_add_q4_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    const int64_t bytes = plm_row_bytes(PLM_Q4_K, n);
    for (; n > 0; n -= PLM_SUPER, w += PLM_Q4_K_BYTES, y += PLM_SUPER) {
        const uint8_t *row = w;
        __m512 sum[16];
        __m256 less = _mm256_setzero_ps();
        float scale[8], least[8];
        for (int i = 0; i < 16; i++) sum[i] = _mm512_loadu_ps(y + 16 * i);
        for (int32_t r = 0; r < count; r++, row += bytes) {
            __m256 scales, leasts, factor = _mm256_set1_ps(a[r]);
            parts_q4_k(row, &scales, &leasts);
            _mm256_storeu_ps(scale, _mm256_mul_ps(factor, scales));
            less = _mm256_add_ps(less, _mm256_mul_ps(factor, leasts));
            for (int p = 0; p < 4; p++) {
                __m256i v = load32(row + 16 + 32 * p), low = nibbles_low(v), high = nibbles_high(v);
                __m512 *to = sum + 4 * p;
                to[0] = add_16(to[0], scale[2 * p], _mm256_castsi256_si128(low), 0);
                to[1] = add_16(to[1], scale[2 * p], _mm256_extracti128_si256(low, 1), 0);
                to[2] = add_16(to[2], scale[2 * p + 1], _mm256_castsi256_si128(high), 0);
                to[3] = add_16(to[3], scale[2 * p + 1], _mm256_extracti128_si256(high, 1), 0);
            }
        }
        _mm256_storeu_ps(least, less);
        for (int i = 0; i < 16; i++)
            _mm512_storeu_ps(y + 16 * i, _mm512_sub_ps(sum[i], _mm512_set1_ps(least[i / 2])));
    }
}

void avx512_add_q6_k(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    const int64_t bytes = plm_row_bytes(PLM_Q6_K, n);
    for (; n > 0; n -= PLM_SUPER, w += PLM_Q6_K_BYTES, y += PLM_SUPER) {
        const uint8_t *row = w;
        __m512 sum[16];
        float scale[16];
        for (int i = 0; i < 16; i++) sum[i] = _mm512_loadu_ps(y + 16 * i);
        for (int32_t r = 0; r < count; r++, row += bytes) {
            for (int i = 0; i < 16; i += 8)
                _mm256_storeu_ps(scale + i, _mm256_mul_ps(_mm256_set1_ps(a[r]), parts_q6_k(row, i)));
            for (int h = 0; h < 2; h++) {
                __m256i v[4];
                quants_q6_k(load32(row + 64 * h), load32(row + 64 * h + 32), load32(row + 128 + 32 * h), v);
                for (int k = 0; k < 4; k++) {
                    __m512 *to = sum + 8 * h + 2 * k;
                    to[0] = add_16(to[0], scale[8 * h + 2 * k], _mm256_castsi256_si128(v[k]), 1);
                    to[1] = add_16(to[1], scale[8 * h + 2 * k + 1], _mm256_extracti128_si256(v[k], 1), 1);
                }
            }
        }
        for (int i = 0; i < 16; i++) _mm512_storeu_ps(y + 16 * i, sum[i]);
    }
}
