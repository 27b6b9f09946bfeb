/* AVX-512 VNNI: panels, and tiles of several tokens, which become panels. A register is four columns of eight lanes, so
 * that four values of a row are loaded at once for two products: docs/kernels.md. The bytes of a tile lie in this order
 * as they are. */
#include "avx512.h"

enum { FOUR_COLUMNS = 4 * PLM_TILE, HALF = FOUR_COLUMNS / 2 }; /* lanes 0..7, then 8..15 */

/* Rows of 32 columns: of eight lanes, 64 bits each, exchanged. */
static inline void weave_block(const int16_t *x, int64_t lane, int32_t lanes, int16_t *panel) {
    for (int h = 0; h < 2; h++) {
        __m512i even[4], odd[4];
        for (int k = 0; k < 4; k++) {
            __m512i row[2];
            for (int i = 0; i < 2; i++) {
                const int64_t l = 8 * h + 2 * k + i;
                row[i] = l < lanes ? load64(x + l * lane) : _mm512_setzero_si512();
            }
            even[k] = _mm512_unpacklo_epi64(row[0], row[1]), odd[k] = _mm512_unpackhi_epi64(row[0], row[1]);
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
    __m256i a = load32(x), b = load32(x + column), c = load32(x + 2 * column), d = load32(x + 3 * column);
    __m256i low = _mm256_unpacklo_epi16(a, b), low_more = _mm256_unpacklo_epi16(c, d);
    __m256i high = _mm256_unpackhi_epi16(a, b), high_more = _mm256_unpackhi_epi16(c, d);
    const __m256i two[4] = {_mm256_unpacklo_epi32(low, low_more), _mm256_unpackhi_epi32(low, low_more),
                            _mm256_unpacklo_epi32(high, high_more), _mm256_unpackhi_epi32(high, high_more)};
    for (int k = 0; k < 4; k++) { /* lanes 2 k and 2 k + 1, and those 8 further */
        _mm_storeu_si128((void *)(panel + 8 * k), _mm256_castsi256_si128(two[k]));
        _mm_storeu_si128((void *)(panel + HALF + 8 * k), _mm256_extracti128_si256(two[k], 1));
    }
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
        for (int64_t i = 0; i < FOUR_COLUMNS; i++)
            panel[i] = i / 4 < lanes ? x[i / 4 * lane + (c + i % 4) * column] : 0;
    }
}

/* R <= 8 rows of x. */
INLINED void rows_by_panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x,
                            int64_t x_stride, const float *x_scale, int64_t x_blocks, float *y, int64_t stride, int R) {
    for (int32_t b = 0; b < blocks; b++, scales += PLM_TILE, x += PLM_BLOCK) {
        __m512i low[8], high[8]; /* of each lane the sum of two columns and of the two others */
        for (int r = 0; r < R; r++) low[r] = high[r] = _mm512_setzero_si512();
        for (int c = 0; c < PLM_BLOCK; c += 4, panel += FOUR_COLUMNS) {
            __m512i v = load64(panel), w = load64(panel + HALF);
            for (int r = 0; r < R; r++) {
                __m512i q = four_in_every(x + r * x_stride + c);
                low[r] = add_words(low[r], v, q), high[r] = add_words(high[r], w, q);
            }
        }
        __m512 of_block = _mm512_loadu_ps(scales);
        for (int r = 0; r < R; r++) {
            __m512 before = _mm512_loadu_ps(y + r * stride);
            __m512 after = add_scaled16(before, sums_of_two(low[r], high[r]), of_block, x_scale[r * x_blocks + b]);
            _mm512_storeu_ps(y + r * stride, after);
        }
    }
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
    _mm512_storeu_si512(panel, _mm512_cvtepi8_epi16(lower(v)));
    _mm512_storeu_si512(panel + HALF, _mm512_cvtepi8_epi16(upper(v)));
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
