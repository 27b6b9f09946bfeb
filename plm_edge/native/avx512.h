/* What the files of the AVX-512 VNNI set share: the small steps of 512 bits, and what avx512_vnni.c takes from the
 * others. */
#ifndef PLM_AVX512_H
#define PLM_AVX512_H

#include "avx2_pairs.h"

static inline __m512i load64(const void *p) { return _mm512_loadu_si512(p); }
static inline __m512 scales16(const uint8_t *p) { return _mm512_cvtph_ps(load32(p)); }
static inline __m256i lower(__m512i v) { return _mm512_castsi512_si256(v); }
static inline __m256i upper(__m512i v) { return _mm512_extracti64x4_epi64(v, 1); }

/* Left to itself gcc 12 copies a sum to another register before and after every step of a loop. */
static inline __m512i in_place16(__m512i sum) {
#if defined(__AVX512F__) /* not where the instructions are simulated */
    __asm__("" : "+v"(sum));
#endif
    return sum;
}

/* sum + the four products of unsigned and signed bytes of each 32 bits. */
static inline __m512i add_bytes(__m512i sum, __m512i bytes, __m512i signed_bytes) {
    return in_place16(_mm512_dpbusd_epi32(sum, bytes, signed_bytes));
}

/* sum + the two products of 16-bit integers of each 32 bits. */
static inline __m512i add_words(__m512i sum, __m512i a, __m512i b) {
    return in_place16(_mm512_dpwssd_epi32(sum, a, b));
}

static inline __m256i add_in_one(__m256i sum, __m256i a, __m256i b) { return _mm256_dpwssd_epi32(sum, a, b); }

/* A 16-bit q is two bytes, q = 256 top + bottom, top signed, bottom not; a 4-bit weight is both, so it meets either. */
static inline __m512i join(__m512i top, __m512i bottom) { return _mm512_add_epi32(_mm512_slli_epi32(top, 8), bottom); }

static inline __m512i low_of(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
static inline __m512i high_of(__m512i v) { return low_of(_mm512_srli_epi16(v, 4)); }

/* Four registers of four times 128 bits, rows and columns exchanged. */
static inline void transpose(__m512i *v) {
    __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x88), b = _mm512_shuffle_i32x4(v[2], v[3], 0x88);
    __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xdd), d = _mm512_shuffle_i32x4(v[2], v[3], 0xdd);
    v[0] = _mm512_shuffle_i32x4(a, b, 0x88), v[2] = _mm512_shuffle_i32x4(a, b, 0xdd);
    v[1] = _mm512_shuffle_i32x4(c, d, 0x88), v[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

/* 32 bits at p in every lane. */
static inline __m512i in_every(const void *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
}

/* Four 16-bit values at p in every 64 bits. */
static inline __m512i four_in_every(const int16_t *p) {
    int64_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_set1_epi64(four);
}

/* The first n of 16 values, n >= 0. */
static inline __mmask16 first_of(int64_t n) { return (__mmask16)(n < 16 ? (1u << n) - 1 : 0xffffu); }

/* Values of a float format: 16 of them, or the first ones and zeros, nothing read past them. */
static inline __m512 load16(const void *p, int format) {
    if (format == PLM_F32) return _mm512_loadu_ps(p);
    if (format == PLM_F16) return _mm512_cvtph_ps(load32(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load32(p)), 16));
}
static inline __m512 load_first(__mmask16 first, const void *p, int format) {
    if (format == PLM_F32) return _mm512_maskz_loadu_ps(first, p);
    __m256i half = _mm256_maskz_loadu_epi16(first, p);
    if (format == PLM_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* y + the exact sums of a block times (scales of the weights times the scale of the activations). */
static inline __m512 add_scaled16(__m512 y, __m512i sums, __m512 scales, float scale) {
    __m512 factor = _mm512_mul_ps(scales, _mm512_set1_ps(scale));
    return _mm512_add_ps(y, _mm512_mul_ps(_mm512_cvtepi32_ps(sums), factor));
}

/* plm_exp of sixteen, step by step the same. */
static inline __m512 exp16(__m512 x) {
    __m512 n = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _mm512_set1_ps(0.5f));
    n = _mm512_roundscale_ps(n, (_MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC));
    __m512 r = _mm512_sub_ps(x, _mm512_mul_ps(n, _mm512_set1_ps(0.693359375f)));
    r = _mm512_sub_ps(r, _mm512_mul_ps(n, _mm512_set1_ps(-2.12194440e-4f)));
    static const float term[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    __m512 p = _mm512_set1_ps(1.0f / 720);
    for (int i = 0; i < 6; i++) p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(term[i]));
    __m512i power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvttps_epi32(n), _mm512_set1_epi32(127)), 23);
    __m512 y = _mm512_mul_ps(p, _mm512_castsi512_ps(power));
    __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
    y = _mm512_mask_mov_ps(y, below, _mm512_setzero_ps());
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

/* How `rows` values of each lane become integers of at most `largest`: with the scale that `pack` would give them. */
typedef struct {
    __m512 inverse, scale;
    __mmask16 good; /* lanes without NaN and infinity that are not all 0 */
} packing16;

/* most: the largest size in each lane; numbers: the lanes without NaN and infinity. */
static inline packing16 packing_for16(__m512 most, __mmask16 numbers, float largest) {
    const __m512 most_q = _mm512_set1_ps(largest);
    __mmask16 good = numbers & _mm512_cmp_ps_mask(most, _mm512_set1_ps(1e-30f), _CMP_GT_OQ);
    __m512 scale = _mm512_mask_div_ps(_mm512_set1_ps(NAN), numbers, most, most_q);
    return (packing16){_mm512_div_ps(most_q, most), scale, good};
}

static inline packing16 packing_of16(const float *x, int64_t stride, __mmask16 lanes, int32_t rows, float largest) {
    const __m512 size = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff));
    __m512 most = _mm512_setzero_ps(), whole = most;
    for (int32_t r = 0; r < rows; r++) {
        __m512 v = _mm512_maskz_loadu_ps(lanes, x + r * stride);
        most = _mm512_max_ps(_mm512_and_ps(size, v), most);
        whole = _mm512_add_ps(whole, _mm512_sub_ps(v, v)); /* NaN where a value is NaN or infinite */
    }
    return packing_for16(most, _mm512_cmp_ps_mask(whole, whole, _CMP_ORD_Q), largest);
}

static inline __m512i packed16(packing16 p, __m512 v) {
    return _mm512_maskz_mov_epi32(p.good, _mm512_cvtps_epi32(_mm512_mul_ps(v, p.inverse)));
}

/* y (16) = y * shrink + sums * factor. */
static inline void blend_into16(float *y, __m512i sums, float factor, float shrink) {
    __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(factor));
    __m512 before = _mm512_mul_ps(_mm512_loadu_ps(y), _mm512_set1_ps(shrink));
    _mm512_storeu_ps(y, _mm512_add_ps(before, product));
}

void avx512_tile_f32(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
void avx512_tile_f16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
void avx512_tile_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride);
void avx512_tile_of_bytes_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                               int32_t stride);
void avx512_tile_of_bytes_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                               int32_t stride);
void avx512_two_of_bytes_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                              int32_t stride);
void avx512_two_of_bytes_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                              int32_t stride);
void avx512_weave(const int16_t *x, int32_t lane, int32_t column, int32_t lanes, int32_t columns, int16_t *panel);
void avx512_panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                  const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride);
void avx512_several_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                         int32_t stride);
void avx512_several_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                         int32_t stride);
float avx512_row_f32(const uint8_t *w, int32_t cols, const plm_vectors *x);
float avx512_row_f16(const uint8_t *w, int32_t cols, const plm_vectors *x);
float avx512_row_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x);
void avx512_several_rows_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t count, float *y,
                              const uint8_t *next);
void avx512_several_rows_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t count, float *y,
                              const uint8_t *next);
void avx512_add_f32(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx512_add_f16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx512_add_bf16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx512_add_q8_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx512_add_q4_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y);
void avx512_units_f32(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next);
void avx512_units_f16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next);
void avx512_units_bf16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next);
void avx512_rows_f32(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y);
void avx512_rows_f16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y);
void avx512_rows_bf16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y);
void avx512_rows_q8_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y);
void avx512_rows_q4_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y);
void avx512_mix(const float *a, const uint8_t *which, int32_t count, const float *w, int32_t n, float *y);
void avx512_pack(const float *x, int32_t cols, float most, int16_t *q, float *scale, int32_t *sum);
int32_t avx512_keep_words(const float *x, int16_t *words, uint8_t *which, float *scale);
void avx512_pack_halves(const uint16_t *x, int32_t cols, float most, int16_t *q, float *scale);
void avx512_words(const int8_t *q, int32_t n, int16_t *y);
void avx512_exps(float *x, int32_t n);
float avx512_dot(const float *a, const float *b, int32_t n);
void avx512_add(float a, const float *x, int32_t n, float *y);
void avx512_widen(const uint16_t *f16, int32_t n, float *y);
void avx512_lanes(const float *x, int32_t stride, int32_t n_lanes, int32_t n, float *y);
void avx512_scores(const float *q, const float *x, int32_t stride, int32_t rows, int32_t n, float scale, float *y,
                   const uint8_t *next);
void avx512_softmax(float *x, int32_t rows, float *most, float *sum, float *shrink);
void avx512_blend(const float *weights, const float *x, int32_t stride, int32_t rows, int32_t n, const float *shrink,
                  int32_t lanes, float *y, int32_t y_stride);
void avx512_blend_words(const float *weights, const int16_t *x, const float *scales, int32_t stride, int32_t rows,
                        int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride, const uint8_t *next);
void avx512_blend_rows(const float *weights, const int16_t *x, const float *scales, int32_t n, const float *shrink,
                       int32_t lanes, float *y, int32_t y_stride);
void avx512_lay_bytes(const int8_t *x, int64_t stride, int32_t rows, int32_t n, uint8_t *row, int8_t *four);
void avx512_score_bytes(const int8_t *panel, const int32_t *start, const float *scales, const uint8_t *row, int32_t n,
                        const float *x_scale, int32_t x_stride, int32_t rows, float *y);
void avx512_blend_bytes(const float *weights, const int8_t *four, const float *x_scale, int32_t x_stride, int32_t rows,
                        int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride, const uint8_t *next,
                        int32_t ahead);

#endif
