/* AVX-512: vectors, packing. */
#include "avx512.h"

void avx512_widen(const uint16_t *f16, int32_t n, float *y) {
    int32_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int k = 0; k < 64; k += 16) _mm512_storeu_ps(y + i + k, load16(f16 + i + k, PLM_F16));
    for (; i < n; i += 16) {
        __mmask16 first = first_of(n - i);
        _mm512_mask_storeu_ps(y + i, first, load_first(first, f16 + i, PLM_F16));
    }
}

void avx512_words(const int8_t *q, int32_t n, int16_t *y) {
    int32_t i = 0;
    for (; i + 64 <= n; i += 64) {
        ask_ahead((const uint8_t *)q + i, 64);
        for (int k = 0; k < 64; k += 32) _mm512_storeu_si512(y + i + k, _mm512_cvtepi8_epi16(load32(q + i + k)));
    }
    avx2_words(q + i, n - i, y + i);
}

void avx512_exps(float *x, int32_t n) {
    for (int32_t i = 0; i < n; i += 16) {
        __mmask16 first = first_of(n - i);
        _mm512_mask_storeu_ps(x + i, first, exp16(_mm512_maskz_loadu_ps(first, x + i)));
    }
}

static inline __m512i round_to_q16(__m512 x, float inverse, float most) {
    x = _mm512_max_ps(_mm512_mul_ps(x, _mm512_set1_ps(inverse)), _mm512_set1_ps(-most));
    return _mm512_cvtps_epi32(_mm512_min_ps(x, _mm512_set1_ps(most)));
}

static inline void store_words(int16_t *q, __m512i v) { _mm256_storeu_si256((void *)q, _mm512_cvtepi32_epi16(v)); }

/* 32 values as integers of 32 bits, and their scale. Returns 0 where all are 0. */
static inline int round_block(const __m512 *v, float most_q, __m512i *q, float *scale) {
    const __m512 size = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fffffff));
    __m512 whole = _mm512_add_ps(_mm512_sub_ps(v[0], v[0]), _mm512_sub_ps(v[1], v[1]));
    __m512 most16 = _mm512_max_ps(_mm512_and_ps(size, v[0]), _mm512_and_ps(size, v[1]));
    __m256 most8 = _mm256_max_ps(_mm512_castps512_ps256(most16), _mm512_extractf32x8_ps(most16, 1));
    __m128 most4 = _mm_max_ps(_mm256_castps256_ps128(most8), _mm256_extractf128_ps(most8, 1));
    most4 = _mm_max_ps(most4, _mm_movehl_ps(most4, most4));
    float most = _mm_cvtss_f32(_mm_max_ss(most4, _mm_movehdup_ps(most4)));
    int numbers = !_mm512_cmp_ps_mask(whole, whole, _CMP_UNORD_Q); /* no NaN, no infinity */
    *scale = numbers ? most / most_q : NAN;
    q[0] = q[1] = _mm512_setzero_si512();
    if (!(numbers && most > 1e-30f)) return 0;
    float inverse = most_q / most;
    q[0] = round_to_q16(v[0], inverse, most_q), q[1] = round_to_q16(v[1], inverse, most_q);
    return 1;
}

void avx512_pack(const float *x, int32_t cols, float most_q, int16_t *q, float *scale, int32_t *sum) {
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, x += PLM_BLOCK, q += PLM_BLOCK) {
        __m512 v[2] = {_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)};
        __m512i whole[2];
        int any = round_block(v, most_q, whole, scale + b);
        store_words(q, whole[0]);
        store_words(q + 16, whole[1]);
        if (!sum) continue;
        __m512i total = _mm512_add_epi32(whole[0], whole[1]);
        sum[b] = any ? sum8_int(_mm256_add_epi32(lower(total), upper(total))) : 0;
    }
}

int32_t avx512_keep_words(const float *x, int16_t *words, uint8_t *which, float *scale) {
    const __m512i units = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 zero = _mm512_setzero_ps();
    __m512 square[2];
    __m512i q[2];
    int32_t count = 0;
    for (int i = 0; i < 2; i++) { /* a NaN is not <= 0: it flows on and shows */
        __m512 v = _mm512_loadu_ps(x + 16 * i);
        square[i] = _mm512_maskz_mul_ps(_mm512_cmp_ps_mask(v, zero, _CMP_NLE_UQ), v, v);
    }
    round_block(square, PLM_LARGEST, q, scale);
    for (int i = 0; i < 2; i++) {
        __mmask16 fired = _mm512_cmp_ps_mask(square[i], zero, _CMP_NEQ_UQ);
        __m512i numbers = _mm512_add_epi32(units, _mm512_set1_epi32(16 * i));
        store_words(words + count, _mm512_maskz_compress_epi32(fired, q[i]));
        __m256i kept = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(fired, numbers));
        __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
        _mm_storeu_si128((void *)(which + count), bytes);
        count += __builtin_popcount(fired);
    }
    if (count % 2) words[count] = 0, which[count++] = 0;
    return count;
}

/* The larger ones of 16 bits of two registers, side by side in units of `bits`. */
INLINED __m512i larger(__m512i a, __m512i b, int bits) {
    if (bits == 16) return _mm512_max_epu16(_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
    if (bits == 32) return _mm512_max_epu16(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    return _mm512_max_epu16(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* The largest half of each of N = 1, 2 or 16 blocks, and of the same ones again up to 16. Halves without their signs
 * are ordered as integers are. */
INLINED __m256i largest_halves(const uint16_t *x, int N) {
    __m512i most[16];
    for (int i = 0; i < N; i++) most[i] = _mm512_and_si512(load64(x + i * PLM_BLOCK), _mm512_set1_epi16(0x7fff));
    for (int i = N; i < 16; i++) most[i] = most[i % N];
    for (int i = 0; i < 8; i++) most[i] = larger(most[2 * i], most[2 * i + 1], 16);
    for (int i = 0; i < 4; i++) most[i] = larger(most[2 * i], most[2 * i + 1], 32);
    for (int i = 0; i < 2; i++) most[i] = larger(most[2 * i], most[2 * i + 1], 64);
    __m512i both = _mm512_max_epu16(_mm512_shuffle_i32x4(most[0], most[1], 0x44),
                                    _mm512_shuffle_i32x4(most[0], most[1], 0xee));
    both = _mm512_max_epu16(both, _mm512_shuffle_i32x4(both, both, 0xb1));
    return lower(_mm512_shuffle_i32x4(both, both, 0x88));
}

/* The scales of N blocks, and in the lanes what their halves are multiplied by: 0 where one is an infinity or a NaN. */
INLINED __m512 scales_of_halves(const uint16_t *x, float most_q, float *scale, int N) {
    const __m512 largest = _mm512_set1_ps(most_q);
    __m512 most = _mm512_cvtph_ps(largest_halves(x, N));
    __mmask16 good = _mm512_cmp_ps_mask(most, _mm512_set1_ps(INFINITY), _CMP_LT_OQ); /* no NaN either */
    __mmask16 some = _mm512_cmp_ps_mask(most, _mm512_setzero_ps(), _CMP_GT_OQ);
    __m512 scales = _mm512_mask_mov_ps(_mm512_set1_ps(NAN), good, _mm512_div_ps(most, largest));
    _mm512_mask_storeu_ps(scale, first_of(N), scales);
    return _mm512_maskz_div_ps(good & some, largest, most);
}

/* Halves of N blocks times what lies in the lanes. An infinity times 0 becomes a number whose low half is 0. Memory is
 * asked for halves twice as far ahead as for weights: they are used up faster. */
INLINED void round_halves(const uint16_t *x, __m512 inverse, int16_t *q, int N) {
    const __m512i words = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                                           24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    float of_block[16];
    _mm512_storeu_ps(of_block, inverse);
    for (int i = 0; i < N; i++, x += PLM_BLOCK, q += PLM_BLOCK) {
        const __m512 times = _mm512_set1_ps(of_block[i]);
        _mm_prefetch((const void *)((uintptr_t)x + 2 * AHEAD), _MM_HINT_T0); /* may lie past the end: no pointer */
        __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(load16(x, PLM_F16), times));
        __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(load16(x + 16, PLM_F16), times));
        _mm512_storeu_si512(q, _mm512_permutex2var_epi16(low, words, high));
    }
}

void avx512_pack_halves(const uint16_t *x, int32_t cols, float most_q, int16_t *q, float *scale) {
    int32_t b = 0, blocks = cols / PLM_BLOCK;
    if (blocks >= 16) {
        __m512 inverse = scales_of_halves(x, most_q, scale, 16);
        for (; b + 32 <= blocks; b += 16) { /* the next 16 are divided while these are multiplied */
            __m512 next = scales_of_halves(x + (b + 16) * PLM_BLOCK, most_q, scale + b + 16, 16);
            round_halves(x + b * PLM_BLOCK, inverse, q + b * PLM_BLOCK, 16);
            inverse = next;
        }
        round_halves(x + b * PLM_BLOCK, inverse, q + b * PLM_BLOCK, 16);
        b += 16;
    }
#define BLOCKS(n)                                                                                                    \
    for (; b + (n) <= blocks; b += (n))                                                                              \
        round_halves(x + b * PLM_BLOCK, scales_of_halves(x + b * PLM_BLOCK, most_q, scale + b, (n)),                 \
                     q + b * PLM_BLOCK, (n));
    BLOCKS(2)
    BLOCKS(1)
#undef BLOCKS
}
