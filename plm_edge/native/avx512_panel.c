/* AVX-512 VNNI: panels, and tiles of several tokens, which become panels. Four columns are two registers, and a load of
 * four values of a row serves a product with each: docs/kernels.md. The first register has two columns of even lanes
 * beside the two others of odd lanes, the second the rest in reverse. So the sums of a lane end where it is in the
 * first register, and in its neighbour in the second: one exchange of neighbours and an addition join them all. */
#include "avx512.h"

enum { FOUR_COLUMNS = 4 * PLM_TILE, HALF = FOUR_COLUMNS / 2 };
enum { ODD = 0xaaaa }; /* of 16 */

static inline __m512i neighbours(__m512i v) { return _mm512_shuffle_epi32(v, _MM_PERM_CDAB); }

static inline __m512i join_halves(__m256i low, __m256i high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* Rows of 32 columns: of each pair of lanes 64 bits, exchanged. */
static inline void weave_block(const int16_t *x, int64_t lane, int32_t lanes, int16_t *panel) {
    for (int h = 0; h < 2; h++) {
        __m512i even[4], odd[4];
        for (int k = 0; k < 4; k++) {
            __m512i pair[2];
            for (int i = 0; i < 2; i++) {
                const int64_t l = 4 * k + 2 * i;
                __m512i first = l < lanes ? load64(x + l * lane) : _mm512_setzero_si512();
                __m512i second = l + 1 < lanes ? load64(x + (l + 1) * lane) : _mm512_setzero_si512();
                pair[i] = h ? _mm512_mask_mov_epi32(second, ODD, first) : _mm512_mask_mov_epi32(first, ODD, second);
            }
            even[k] = _mm512_unpacklo_epi64(pair[0], pair[1]), odd[k] = _mm512_unpackhi_epi64(pair[0], pair[1]);
        }
        transpose(even);
        transpose(odd);
        for (int k = 0; k < 4; k++) {
            _mm512_storeu_si512(panel + 2 * k * FOUR_COLUMNS + h * HALF, even[k]);
            _mm512_storeu_si512(panel + (2 * k + 1) * FOUR_COLUMNS + h * HALF, odd[k]);
        }
    }
}

/* Four columns whose lanes lie side by side. */
static inline void weave_columns(const int16_t *x, int64_t column, int16_t *panel) {
    const __m512i lanes = _mm512_setr_epi64(0, 1, 4, 5, 2, 3, 6, 7); /* 0..3, 8..11, 4..7, 12..15 before */
    __m256i a = load32(x), b = load32(x + column), c = load32(x + 2 * column), d = load32(x + 3 * column);
    __m512i two = join_halves(_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
    __m512i more = join_halves(_mm256_unpacklo_epi16(c, d), _mm256_unpackhi_epi16(c, d));
    two = _mm512_permutexvar_epi64(lanes, two), more = _mm512_permutexvar_epi64(lanes, more);
    _mm512_storeu_si512(panel, _mm512_mask_mov_epi32(two, ODD, more));
    _mm512_storeu_si512(panel + HALF, neighbours(_mm512_mask_mov_epi32(more, ODD, two)));
}

void avx512_weave(const int16_t *x, int32_t lane, int32_t column, int32_t lanes, int32_t columns, int16_t *panel) {
    if (column == 1) {
        for (int32_t c = 0; c < columns; c += PLM_BLOCK)
            weave_block(x + c, lane, lanes, panel + (int64_t)c * PLM_TILE);
        return;
    }
    for (int64_t c = 0; c < columns; c += 4, panel += FOUR_COLUMNS) {
        if (lane == 1 && lanes == PLM_TILE) {
            weave_columns(x + c * column, column, panel);
            continue;
        }
        for (int64_t i = 0; i < FOUR_COLUMNS; i++) {
            const int64_t l = (i % HALF / 2) ^ (i / HALF), k = 2 * (i / 2 % 2) + i % 2;
            panel[i] = l < lanes ? x[l * lane + (c + k) * column] : 0;
        }
    }
}

/* R <= 8 rows of x. */
INLINED void rows_by_panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x,
                            int64_t x_stride, const float *x_scale, int64_t x_blocks, float *y, int64_t stride, int R) {
    __m512 out[8];
    for (int r = 0; r < R; r++) out[r] = _mm512_loadu_ps(y + r * stride);
    for (int32_t b = 0; b < blocks; b++, scales += PLM_TILE, x += PLM_BLOCK) {
        __m512i first[8], second[8];
        for (int r = 0; r < R; r++) first[r] = second[r] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int c = 0; c < PLM_BLOCK; c += 4, panel += FOUR_COLUMNS) {
            __m512i v = load64(panel), w = load64(panel + HALF);
            for (int r = 0; r < R; r++) {
                __m512i q = four_in_every(x + r * x_stride + c);
                first[r] = add_words(first[r], v, q), second[r] = add_words(second[r], w, q);
            }
        }
        __m512 of_block = _mm512_loadu_ps(scales);
        for (int r = 0; r < R; r++) {
            __m512i sums = _mm512_add_epi32(first[r], neighbours(second[r]));
            out[r] = add_scaled16(out[r], sums, of_block, x_scale[r * x_blocks + b]);
        }
    }
    for (int r = 0; r < R; r++) _mm512_storeu_ps(y + r * stride, out[r]);
}

void avx512_panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                  const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) {
#define ROWS(n)                                                                                        \
    for (; rows >= (n); rows -= (n)) {                                                                 \
        rows_by_panel(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, (n));         \
        x += (n) * (int64_t)x_stride, x_scale += (n) * (int64_t)x_blocks, y += (n) * (int64_t)stride; \
    }
    ROWS(8)
    ROWS(4)
    ROWS(2)
    ROWS(1)
#undef ROWS
}

/* 64 bytes of a tile, four columns of all rows, signed. */
static inline void widen_columns(__m512i v, int16_t *panel) {
    const __m512i even_lanes_first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    v = _mm512_permutexvar_epi32(even_lanes_first, v);
    __m512i even = _mm512_cvtepi8_epi16(lower(v)), odd = _mm512_cvtepi8_epi16(upper(v));
    _mm512_storeu_si512(panel, _mm512_mask_mov_epi32(even, ODD, odd));
    _mm512_storeu_si512(panel + HALF, _mm512_mask_mov_epi32(odd, ODD, even));
}

static void unpack_q8_0(const uint8_t *w, int16_t *panel, float *scales) {
    _mm512_storeu_ps(scales, scales16(w));
    for (int g = 0; g < PLM_BLOCK / 4; g++) widen_columns(load64(w + 32 + 64 * g), panel + g * FOUR_COLUMNS);
}

static void unpack_q4_0(const uint8_t *w, int16_t *panel, float *scales) {
    const __m512i raised = _mm512_set1_epi8(8);
    _mm512_storeu_ps(scales, scales16(w));
    for (int g = 0; g < PLM_BLOCK / 8; g++, panel += FOUR_COLUMNS) {
        __m512i v = load64(w + 32 + 64 * g);
        widen_columns(_mm512_sub_epi8(low_of(v), raised), panel);
        widen_columns(_mm512_sub_epi8(high_of(v), raised), panel + PANEL_BLOCK / 2);
    }
}

void avx512_several_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                         int32_t stride) {
    avx2_several(w, PLM_Q8_0, cols, x, tokens, y, stride, unpack_q8_0, avx512_panel);
}
void avx512_several_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                         int32_t stride) {
    avx2_several(w, PLM_Q4_0, cols, x, tokens, y, stride, unpack_q4_0, avx512_panel);
}
