/* Q4_K and Q6_K in registers of 256 bits, with pairs of 16-bit integers as in avx2_pairs.h. superblocks.h says where
 * their bytes lie, superblocks.c which steps in floats all sets take. */
#ifndef PLM_AVX2_SUPER_H
#define PLM_AVX2_SUPER_H

#include "avx2_pairs.h"

enum { SUPER_TOKENS = 32 }; /* that meet an unpacked superblock of a tile */

/* ---- quants and scales ---- */

/* Scales and leasts of Q4_K: eight rows, of each the parts 0..3 as the four bytes of `first`, 4..7 of `last`. */
typedef struct {
    __m256i first, last;
} six_bits;

static inline __m256i mask_of(int byte) { return _mm256_set1_epi8((char)byte); }

/* From bytes 0..3, 4..7 and 8..11 of the twelve. */
static inline six_bits scales_q4_k(__m256i t0, __m256i t1, __m256i t2) {
    (void)t1;
    __m256i upper = _mm256_and_si256(_mm256_srli_epi32(t0, 2), mask_of(0x30));
    return (six_bits){_mm256_and_si256(t0, mask_of(63)),
                      _mm256_or_si256(_mm256_and_si256(t2, mask_of(15)), upper)};
}
static inline six_bits leasts_q4_k(__m256i t0, __m256i t1, __m256i t2) {
    (void)t0;
    __m256i upper = _mm256_and_si256(_mm256_srli_epi32(t1, 2), mask_of(0x30));
    __m256i lower = _mm256_and_si256(_mm256_srli_epi32(t2, 4), mask_of(15));
    return (six_bits){_mm256_and_si256(t1, mask_of(63)), _mm256_or_si256(lower, upper)};
}

/* Byte i of each four as a float, unsigned or signed. */
static inline __m256 unsigned_byte(__m256i v, int i) {
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(v, 8 * i), _mm256_set1_epi32(255)));
}
static inline __m256 signed_byte(__m256i v, int i) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * i), 24));
}

/* Six-bit quants less 32: their low bits are nibbles, their high ones bits 4 and 5 of `high`. */
static inline __m256i six(__m256i nibbles, __m256i high) {
    return _mm256_sub_epi8(_mm256_or_si256(nibbles, _mm256_and_si256(high, mask_of(0x30))), mask_of(32));
}

/* The four quants whose bits share bytes: v[k] is those of part k of a half. */
static inline void quants_q6_k(__m256i low, __m256i next, __m256i high, __m256i *v) {
    v[0] = six(nibbles_low(low), _mm256_slli_epi16(high, 4));
    v[1] = six(nibbles_low(next), _mm256_slli_epi16(high, 2));
    v[2] = six(nibbles_high(low), high);
    v[3] = six(nibbles_high(next), _mm256_srli_epi16(high, 2));
}

static inline __m256i wide_unsigned(__m256i v, int upper) {
    return _mm256_cvtepu8_epi16(upper ? _mm256_extracti128_si256(v, 1) : _mm256_castsi256_si128(v));
}
static inline __m256i wide_signed(__m256i v, int upper) {
    return _mm256_cvtepi8_epi16(upper ? _mm256_extracti128_si256(v, 1) : _mm256_castsi256_si128(v));
}

/* ---- tiles, one token ---- */

/* y + float(sums) * (scale * x_scale). */
static inline __m256 add_part(__m256 y, __m256i sums, __m256 scale, float x_scale) {
    return _mm256_add_ps(y, _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(scale, _mm256_set1_ps(x_scale))));
}

/* d and dmin of eight rows. */
static inline void halves_q4_k(const uint8_t *w, __m256 *d, __m256 *dmin) {
    __m256i v = load32(w), low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff)), high = _mm256_srli_epi32(v, 16);
    __m256i both = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    *d = _mm256_cvtph_ps(_mm256_castsi256_si128(both));
    *dmin = _mm256_cvtph_ps(_mm256_extracti128_si256(both, 1));
}

/* Two sums a row of four rows each -> one sum of eight rows. */
static inline __m256i rows_of_pairs(__m256i a, __m256i b) {
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8);
}

/* The sums of parts 2 p and 2 p + 1 for eight rows whose quants begin at w. */
INLINED void two_parts_q4_k(const uint8_t *w, const int16_t *q, __m256i *sums, add_pairs *add) {
    __m256i low[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, high[2] = {low[0], low[0]};
#pragma GCC unroll 4
    for (int g = 0; g < 8; g++) {
        int64_t first, second;
        memcpy(&first, q + 4 * g, sizeof first);
        memcpy(&second, q + PLM_BLOCK + 4 * g, sizeof second);
        __m256i v = load32(w + 64 * g), v_low = nibbles_low(v), v_high = nibbles_high(v);
        for (int i = 0; i < 2; i++) {
            low[i] = add(low[i], wide_unsigned(v_low, i), _mm256_set1_epi64x(first));
            high[i] = add(high[i], wide_unsigned(v_high, i), _mm256_set1_epi64x(second));
        }
    }
    sums[0] = rows_of_pairs(low[0], low[1]);
    sums[1] = rows_of_pairs(high[0], high[1]);
}

INLINED void one_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y, add_pairs *add) {
    __m256 sums[2], less[2];
    for (int i = 0; i < 2; i++) sums[i] = less[i] = _mm256_setzero_ps();
    for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS, w += PLM_TILE_Q4_K)
        for (int i = 0; i < 2; i++) { /* rows 0..7, then 8..15 */
            const uint8_t *at = w + 32 * i;
            __m256i t0 = load32(at + 64), t1 = load32(at + 128), t2 = load32(at + 192), part[2];
            six_bits scales = scales_q4_k(t0, t1, t2), leasts = leasts_q4_k(t0, t1, t2);
            __m256 d, dmin;
            halves_q4_k(at, &d, &dmin);
            for (int j = 0; j < PLM_PARTS; j++) {
                if (j % 2 == 0) {
                    ask_ahead(at + 256 + 256 * j, 512);
                    two_parts_q4_k(at + 256 + 256 * j, x->q + (b + j) * PLM_BLOCK, part, add);
                }
                __m256 scale = unsigned_byte(j < 4 ? scales.first : scales.last, j % 4);
                __m256 least = unsigned_byte(j < 4 ? leasts.first : leasts.last, j % 4);
                sums[i] = add_part(sums[i], part[j % 2], _mm256_mul_ps(d, scale), x->scale[b + j]);
                float factor = (float)x->sum[b + j] * x->scale[b + j];
                less[i] = _mm256_add_ps(less[i], _mm256_mul_ps(_mm256_mul_ps(dmin, least), _mm256_set1_ps(factor)));
            }
        }
    for (int i = 0; i < 2; i++) _mm256_storeu_ps(y + 8 * i, _mm256_sub_ps(sums[i], less[i]));
}

/* The sums of 16 columns each, 4 k + s: part k of a half (32 columns), columns 16 s .. 16 s + 15 of it. */
INLINED void half_q6_k(const uint8_t *low, const uint8_t *high, const int16_t *q, __m256i (*sums)[2], add_pairs *add) {
    for (int s = 0; s < 2; s++) {
        __m256i sum[4][2];
        for (int k = 0; k < 4; k++) sum[k][0] = sum[k][1] = _mm256_setzero_si256();
        for (int g = 4 * s; g < 4 * (s + 1); g++) {
            __m256i v[4];
            quants_q6_k(load32(low + 64 * g), load32(low + 64 * (g + 8)), load32(high + 64 * g), v);
            for (int k = 0; k < 4; k++) {
                int64_t four;
                memcpy(&four, q + PLM_BLOCK * k + 4 * g, sizeof four);
                for (int i = 0; i < 2; i++)
                    sum[k][i] = add(sum[k][i], wide_signed(v[k], i), _mm256_set1_epi64x(four));
            }
        }
        for (int k = 0; k < 4; k++) sums[k][s] = rows_of_pairs(sum[k][0], sum[k][1]);
    }
}

INLINED void one_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y, add_pairs *add) {
    __m256 out[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS, w += PLM_TILE_Q6_K)
        for (int h = 0; h < 2; h++)
            for (int i = 0; i < 2; i++) { /* rows 0..7, then 8..15 */
                const uint8_t *low = w + 288 + 1024 * h + 32 * i, *high = w + 2336 + 512 * h + 32 * i;
                __m256i sums[4][2];
                ask_ahead(low, 1024);
                if (i) ask_ahead(high, 512);
                half_q6_k(low, high, x->q + (b + 4 * h) * PLM_BLOCK, sums, add);
                __m256 d = scales8(w + 16 * i);
                for (int k = 0; k < 4; k++) {
                    __m256i scales = load32(w + 32 + 64 * (2 * h + k / 2) + 32 * i);
                    for (int s = 0; s < 2; s++)
                        out[i] = add_part(out[i], sums[k][s], _mm256_mul_ps(d, signed_byte(scales, k % 2 * 2 + s)),
                                          x->scale[b + 4 * h + k]);
                }
            }
    _mm256_storeu_ps(y, out[0]);
    _mm256_storeu_ps(y + 8, out[1]);
}

/* ---- plain rows ---- */

/* Eight registers of eight sums each -> eight sums. */
static inline __m256i eight_sums(const __m256i *s) {
    __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
    __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(s[4], s[5]), _mm256_hadd_epi32(s[6], s[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

/* y + the eight values, one after the other as the scalar set does it. */
static inline float add_in_order(float y, __m256 values) {
    float eight[8];
    _mm256_storeu_ps(eight, values);
    for (int i = 0; i < 8; i++) y += eight[i];
    return y;
}

/* Scales and leasts of the eight parts of a row. */
static inline void parts_q4_k(const uint8_t *w, __m256 *scales, __m256 *leasts) {
    uint32_t t[3];
    memcpy(t, w + 4, sizeof t);
    uint32_t scale[2] = {t[0] & 0x3f3f3f3f, (t[2] & 0x0f0f0f0f) | (t[0] >> 2 & 0x30303030)};
    uint32_t least[2] = {t[1] & 0x3f3f3f3f, (t[2] >> 4 & 0x0f0f0f0f) | (t[1] >> 2 & 0x30303030)};
    *scales = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)scale)));
    *leasts = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)least)));
    *scales = _mm256_mul_ps(_mm256_set1_ps(scale_at(w)), *scales);
    *leasts = _mm256_mul_ps(_mm256_set1_ps(scale_at(w + 2)), *leasts);
}

/* Scales of eight parts of 16 of a row of Q6_K. */
static inline __m256 parts_q6_k(const uint8_t *w, int first) {
    __m256i scales = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(w + 192 + first)));
    return _mm256_mul_ps(_mm256_set1_ps(scale_at(w + 208)), _mm256_cvtepi32_ps(scales));
}

INLINED float row_of_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, add_pairs *add) {
    float y = 0.0f, less = 0.0f;
    for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS, w += PLM_Q4_K_BYTES) {
        __m256i s[8];
        __m256 scales, leasts, x_scale = _mm256_loadu_ps(x->scale + b);
        ask_ahead(w, PLM_Q4_K_BYTES);
        for (int j = 0; j < PLM_PARTS; j++) {
            const int16_t *q = x->q + (b + j) * PLM_BLOCK;
            __m256i v = load32(w + 16 + j / 2 * 32), part = j % 2 ? nibbles_high(v) : nibbles_low(v);
            s[j] = add(_mm256_madd_epi16(wide_unsigned(part, 0), load32(q)), wide_unsigned(part, 1), load32(q + 16));
        }
        parts_q4_k(w, &scales, &leasts);
        y = add_in_order(y, _mm256_mul_ps(_mm256_cvtepi32_ps(eight_sums(s)), _mm256_mul_ps(scales, x_scale)));
        __m256 x_sum = _mm256_mul_ps(_mm256_cvtepi32_ps(load32(x->sum + b)), x_scale);
        less = add_in_order(less, _mm256_mul_ps(leasts, x_sum));
    }
    return y - less;
}

INLINED float row_of_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    float y = 0.0f;
    for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS, w += PLM_Q6_K_BYTES)
        for (int h = 0; h < 2; h++) {
            __m256i v[4], s[8];
            ask_ahead(w + 105 * h, 105);
            quants_q6_k(load32(w + 64 * h), load32(w + 64 * h + 32), load32(w + 128 + 32 * h), v);
            for (int k = 0; k < 8; k++)
                s[k] = _mm256_madd_epi16(wide_signed(v[k / 2], k % 2),
                                         load32(x->q + (b + 4 * h) * PLM_BLOCK + 16 * k));
            __m256 x_scale = _mm256_castps128_ps256(_mm_loadu_ps(x->scale + b + 4 * h));
            x_scale = _mm256_permutevar8x32_ps(x_scale, twice);
            __m256 factor = _mm256_mul_ps(parts_q6_k(w, 8 * h), x_scale);
            y = add_in_order(y, _mm256_mul_ps(_mm256_cvtepi32_ps(eight_sums(s)), factor));
        }
    return y;
}

/* ---- panels with scales for every 16 columns ---- */

INLINED void panel_rows_of_16(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x,
                              int32_t x_stride, const float *x_scale, int32_t x_blocks, float *y, int32_t stride,
                              int R, add_pairs *add) {
    for (int32_t b = 0; b < blocks; b++, scales += PLM_TILE, x += 16) {
        __m256i sum[4][2];
        for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int p = 0; p < 8; p++, panel += 2 * PLM_TILE)
            for (int r = 0; r < R; r++) {
                __m256i q = four_bytes(x + (int64_t)r * x_stride + 2 * p);
                sum[r][0] = add(sum[r][0], load32(panel), q);
                sum[r][1] = add(sum[r][1], load32(panel + PLM_TILE), q);
            }
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 2; i++) {
                float *at = y + (int64_t)r * stride + 8 * i;
                __m256 scale = _mm256_loadu_ps(scales + 8 * i);
                _mm256_storeu_ps(at, add_part(_mm256_loadu_ps(at), sum[r][i], scale, x_scale[r * x_blocks + b / 2]));
            }
    }
}

INLINED void pairs_panel_of_16(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x,
                               int32_t x_stride, const float *x_scale, int32_t x_blocks, int32_t rows, float *y,
                               int32_t stride, add_pairs *add) {
    for (; rows >= 4; rows -= 4) {
        panel_rows_of_16(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 4, add);
        x += 4 * (int64_t)x_stride, x_scale += 4 * (int64_t)x_blocks, y += 4 * (int64_t)stride;
    }
    for (; rows > 0; rows--) {
        panel_rows_of_16(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 1, add);
        x += x_stride, x_scale += x_blocks, y += stride;
    }
}

/* ---- functions of the set that the others take over (avx2_super.c) ---- */

/* Tiles of several tokens by way of panels, which `product` multiplies: of Q6_K blocks of 16 columns, two of which
 * share a scale of x. */
void avx2_several_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride,
                       avx2_product *product);
void avx2_several_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride,
                       avx2_product *product);

#endif
