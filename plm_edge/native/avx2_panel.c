/* AVX2: panels, and tiles of several tokens, which become panels. */
#include "avx2_pairs.h"

enum { CHUNK = 8 }; /* blocks of a tile unpacked at a time: 8 KB */

void avx2_panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) {
    pairs_panel(panel, scales, blocks, x, x_stride, x_scale, x_blocks, rows, y, stride, add_in_two);
}

/* Eight lanes of sixteen columns: 8 pairs, transposed as values of 32 bits. */
static inline void eight_lanes(const int16_t *x, int64_t lane, int16_t *panel) {
    __m256 v[8];
    for (int r = 0; r < 8; r++) v[r] = _mm256_castsi256_ps(load32(x + r * lane));
    transpose8(v);
    for (int p = 0; p < 8; p++) _mm256_storeu_si256((void *)(panel + p * 2 * PLM_TILE), _mm256_castps_si256(v[p]));
}

void avx2_weave(const int16_t *x, int32_t lane, int32_t column, int32_t lanes, int32_t columns, int16_t *panel) {
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
            eight_lanes(x + c, lane, panel);
            eight_lanes(x + 8 * (int64_t)lane + c, lane, panel + PLM_TILE);
        }
        return;
    }
    for (int64_t c = 0; c < columns; c += 2)
        for (int64_t r = 0; r < PLM_TILE; r++) {
            *panel++ = r < lanes ? x[r * lane + c * column] : 0;
            *panel++ = r < lanes ? x[r * lane + (c + 1) * column] : 0;
        }
}

void avx2_weigh(const int16_t *a, const int16_t *b, int32_t n, int16_t *y) {
    int32_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256((void *)(y + i), _mm256_mulhrs_epi16(load32(a + i), load32(b + i)));
    if (i < n) plm_scalar.weigh(a + i, b + i, n - i, y + i);
}

INLINED void unpack_block(const uint8_t *w, int16_t *panel, float *scales, int format) {
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

static void unpack_q8_0(const uint8_t *w, int16_t *panel, float *scales) { unpack_block(w, panel, scales, PLM_Q8_0); }
static void unpack_q4_0(const uint8_t *w, int16_t *panel, float *scales) { unpack_block(w, panel, scales, PLM_Q4_0); }

void avx2_several(const uint8_t *w, int format, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                  int32_t stride, avx2_unpack *unpack, avx2_product *product) {
    const int32_t blocks = cols / PLM_BLOCK, bytes = (int32_t)plm_tile_bytes(format, PLM_BLOCK);
    _Alignas(PLM_LINE) int16_t room[CHUNK * PANEL_BLOCK];
    _Alignas(PLM_LINE) float scales[CHUNK * PLM_TILE];
    for (int64_t t = 0; t < tokens; t++) memset(y + t * stride, 0, PLM_TILE * sizeof *y);
    for (int32_t b = 0; b < blocks; b += CHUNK) {
        int32_t n = blocks - b < CHUNK ? blocks - b : CHUNK;
        for (int32_t i = 0; i < n; i++, w += bytes) {
            ask_ahead(w, bytes);
            unpack(w, room + i * PANEL_BLOCK, scales + i * PLM_TILE);
        }
        product(room, scales, n, x->q + b * PLM_BLOCK, cols, x->scale + b, blocks, tokens, y, stride);
    }
}

void avx2_several_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride,
                       avx2_product *product) {
    avx2_several(w, PLM_Q8_0, cols, x, tokens, y, stride, unpack_q8_0, product);
}
void avx2_several_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride,
                       avx2_product *product) {
    avx2_several(w, PLM_Q4_0, cols, x, tokens, y, stride, unpack_q4_0, product);
}

/* ---- activations of 8 bits: bytes of 16 rows, four columns each, as a tile has them ---- */

enum { BYTES_CHUNK = 16, BYTES_BLOCK = PLM_BLOCK * PLM_TILE, TOKENS = 4 }; /* blocks unpacked at a time: 8 KB */

/* The exact sums of one block for R tokens. 16 products fit 16 bits: 16 * 15 * 127 = 30,480. The weights are raised
 * by 8, so 8 times the sum of q comes off, all of it in the second of each pair of sums: there each q counts at most 8
 * times at every step, 32 * 8 * 127 = 32,512. All has the other sign, which madd turns at no cost. */
INLINED void byte_sums(const uint8_t *bytes, const int8_t *q, int32_t cols, const int32_t *q_sum, __m256i (*whole)[2],
                       int R) {
    const int64_t x_blocks = cols / PLM_BLOCK;
    __m256i sum[TOKENS][2];
    for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm256_slli_epi32(four_bytes(q_sum + r * x_blocks), 16 + 3);
#pragma GCC unroll 8
    for (int g = 0; g < PLM_BLOCK / 4; g++) {
        __m256i low = load32(bytes + 64 * g), high = load32(bytes + 64 * g + 32);
        for (int r = 0; r < R; r++) {
            __m256i four = four_bytes(q + (int64_t)r * cols + 4 * g);
            sum[r][0] = in_place(_mm256_sub_epi16(sum[r][0], _mm256_maddubs_epi16(low, four)));
            sum[r][1] = in_place(_mm256_sub_epi16(sum[r][1], _mm256_maddubs_epi16(high, four)));
        }
    }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < 2; i++) whole[r][i] = _mm256_madd_epi16(sum[r][i], _mm256_set1_epi16(-1));
}

/* n blocks for R tokens: x begins with them. First the sums of all blocks, then what they come to: the results of both
 * at once would not fit the registers. */
INLINED void rows_of_bytes(const uint8_t *bytes, const float *scales, int32_t n, const plm_vectors *x, int32_t cols,
                           float *y, int32_t stride, int R) {
    const int64_t x_blocks = cols / PLM_BLOCK;
    __m256i sums[BYTES_CHUNK][TOKENS][2];
    __m256 out[TOKENS][2];
    for (int32_t b = 0; b < n; b++)
        byte_sums(bytes + b * BYTES_BLOCK, x->bytes + b * PLM_BLOCK, cols, x->sum + b, sums[b], R);
    for (int r = 0; r < R; r++)
        for (int i = 0; i < 2; i++) out[r][i] = _mm256_loadu_ps(y + (int64_t)r * stride + 8 * i);
    for (int32_t b = 0; b < n; b++, scales += PLM_TILE)
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 2; i++) {
                __m256 x_factor = _mm256_set1_ps(x->scale[r * x_blocks + b]);
                __m256 factor = _mm256_mul_ps(_mm256_loadu_ps(scales + 8 * i), x_factor);
                __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[b][r][i]), factor);
                out[r][i] = _mm256_add_ps(out[r][i], product);
            }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < 2; i++) _mm256_storeu_ps(y + (int64_t)r * stride + 8 * i, out[r][i]);
}

static void unpack_bytes(const uint8_t *w, uint8_t *bytes, float *scales) {
    _mm256_storeu_ps(scales, scales8(w));
    _mm256_storeu_ps(scales + 8, scales8(w + 16));
    for (int at = 0; at < 256; at += 32) {
        __m256i v = load32(w + 32 + at);
        _mm256_storeu_si256((void *)(bytes + at), nibbles_low(v));
        _mm256_storeu_si256((void *)(bytes + BYTES_BLOCK / 2 + at), nibbles_high(v));
    }
}

void avx2_several_of_bytes_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                                int32_t stride) {
    const int32_t blocks = cols / PLM_BLOCK;
    _Alignas(PLM_LINE) uint8_t bytes[BYTES_CHUNK * BYTES_BLOCK];
    _Alignas(PLM_LINE) float scales[BYTES_CHUNK * PLM_TILE];
    for (int64_t t = 0; t < tokens; t++) memset(y + t * stride, 0, PLM_TILE * sizeof *y);
    for (int32_t b = 0; b < blocks; b += BYTES_CHUNK) {
        int32_t n = blocks - b < BYTES_CHUNK ? blocks - b : BYTES_CHUNK;
        for (int32_t i = 0; i < n; i++, w += 288) {
            ask_ahead(w, 288);
            unpack_bytes(w, bytes + i * BYTES_BLOCK, scales + i * PLM_TILE);
        }
        for (int32_t t = 0; t < tokens;) {
            const int64_t first = (int64_t)t * blocks + b;
            const plm_vectors at = {
                .bytes = x->bytes + first * PLM_BLOCK, .scale = x->scale + first, .sum = x->sum + first};
            float *to = y + (int64_t)t * stride;
            const int32_t R = tokens - t < TOKENS ? 1 : TOKENS;
            if (R == TOKENS)
                rows_of_bytes(bytes, scales, n, &at, cols, to, stride, TOKENS);
            else
                rows_of_bytes(bytes, scales, n, &at, cols, to, stride, 1);
            t += R;
        }
    }
}
