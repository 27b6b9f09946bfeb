/* AVX2: vectors, added rows, packing. */
#include "avx2.h"

#include <float.h>

static inline void add_float_rows(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y, int format) {
    for (int32_t i = 0; i < count; i++) add_float(w + (int64_t)i * n * size_of(format), n, a[i], y, format);
}

void avx2_add_f32(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_float_rows(w, n, a, count, y, PLM_F32);
}
void avx2_add_f16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_float_rows(w, n, a, count, y, PLM_F16);
}
void avx2_add_bf16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_float_rows(w, n, a, count, y, PLM_BF16);
}
void avx2_add(float a, const float *x, int32_t n, float *y) { add_float((const void *)x, n, a, y, PLM_F32); }

/* Of 32 values register k has 4 k .. 4 k + 3 below and those 16 further above: so Q4_0 has its quants. */
static inline __m256 load_halves(const float *y, int k) {
    return _mm256_set_m128(_mm_loadu_ps(y + 16 + 4 * k), _mm_loadu_ps(y + 4 * k));
}
static inline void store_halves(float *y, int k, __m256 v) {
    _mm_storeu_ps(y + 4 * k, _mm256_castps256_ps128(v));
    _mm_storeu_ps(y + 16 + 4 * k, _mm256_extractf128_ps(v, 1));
}

/* The quants of a block as floats. As floats -8 .. 7 end in 16 zeros, so table lookups find the two bytes before them:
 * cheaper than to subtract and to convert. */
static inline void quants_q4_0(const uint8_t *p, __m256 *v) {
    static const uint8_t first[16] = {0xc1, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xc0, 0xbf,
                                      0x00, 0x3f, 0x40, 0x40, 0x40, 0x40, 0x40, 0x40};
    static const uint8_t second[16] = {0x00, 0xe0, 0xc0, 0xa0, 0x80, 0x40, 0x00, 0x80,
                                       0x00, 0x80, 0x00, 0x40, 0x80, 0xa0, 0xc0, 0xe0};
    const __m256i shift = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4), zero = _mm256_setzero_si256();
    __m256i nibbles = nibbles_low(_mm256_srlv_epi32(twice16(p), shift));
    __m256i high = _mm256_shuffle_epi8(twice16(first), nibbles), low = _mm256_shuffle_epi8(twice16(second), nibbles);
    __m256i words[2] = {_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)};
    for (int i = 0; i < 2; i++) {
        v[2 * i] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, words[i]));
        v[2 * i + 1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, words[i]));
    }
}

static inline void quants_q8_0(const uint8_t *p, __m256 *v) {
    for (int k = 0; k < 4; k++)
        v[k] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(p + 8 * k))));
}

/* y (32 n) += `rows` rows, `bytes` apart, of n blocks, factors (rows, 8) of them: sums are loaded and stored once. */
INLINED void add_blocks(const uint8_t *w, int64_t bytes, int rows, int n, const float *factors, float *y, int format,
                        const uint8_t *ask) {
    const int size = plm_block_bytes(format);
    for (int b = 0; b < n; b++, w += size, y += PLM_BLOCK) {
        __m256 sum[4], v[4];
        ask_ahead(ask + rows * b * size, rows * size);
        for (int k = 0; k < 4; k++) sum[k] = format == PLM_Q8_0 ? _mm256_loadu_ps(y + 8 * k) : load_halves(y, k);
#pragma GCC unroll 1 /* eight times as long the loop is slower */
        for (int r = 0; r < rows; r++) {
            const __m256 factor = _mm256_broadcast_ss(factors + 8 * r + b);
            if (format == PLM_Q8_0)
                quants_q8_0(w + 2 + r * bytes, v);
            else
                quants_q4_0(w + 2 + r * bytes, v);
            for (int k = 0; k < 4; k++) sum[k] = _mm256_add_ps(sum[k], _mm256_mul_ps(factor, v[k]));
        }
        for (int k = 0; k < 4; k++) {
            if (format == PLM_Q8_0)
                _mm256_storeu_ps(y + 8 * k, sum[k]);
            else
                store_halves(y, k, sum[k]);
        }
    }
}

/* y += `rows` <= 8 rows, with the scales of eight blocks at a time. */
INLINED void add_some_rows(const uint8_t *w, int32_t n, const float *a, int rows, float *y, int format) {
    const int64_t bytes = plm_row_bytes(format, n);
    const int32_t size = plm_block_bytes(format), blocks = n / PLM_BLOCK;
    float factors[8 * 8];
    int32_t b = 0;
    for (; b + 8 <= blocks; b += 8) {
        const uint8_t *at = w + b * size;
        for (int r = 0; r < rows; r++) {
            __m256 scales = eight_scales(at + r * bytes, format);
            _mm256_storeu_ps(factors + 8 * r, _mm256_mul_ps(_mm256_set1_ps(a[r]), scales));
        }
        add_blocks(at, bytes, rows, 8, factors, y + b * PLM_BLOCK, format, w + rows * b * size);
    }
    for (; b < blocks; b++) {
        const uint8_t *at = w + b * size;
        for (int r = 0; r < rows; r++) factors[8 * r] = a[r] * scale_at(at + r * bytes);
        add_blocks(at, bytes, rows, 1, factors, y + b * PLM_BLOCK, format, w + rows * b * size);
    }
}

static inline void add_int_rows(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y, int format) {
    const int64_t bytes = plm_row_bytes(format, n);
    for (; count >= 8; count -= 8, w += 8 * bytes, a += 8) add_some_rows(w, n, a, 8, y, format);
    for (; count > 0; count--, w += bytes, a++) add_some_rows(w, n, a, 1, y, format);
}

void avx2_add_q8_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_int_rows(w, n, a, count, y, PLM_Q8_0);
}
void avx2_add_q4_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_int_rows(w, n, a, count, y, PLM_Q4_0);
}

void avx2_widen(const uint16_t *f16, int32_t n, float *y) {
    int32_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, load8(f16 + i, PLM_F16));
    for (; i < n; i++) y[i] = plm_f16(f16[i]);
}

void avx2_words(const int8_t *q, int32_t n, int16_t *y) {
    int32_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm256_storeu_si256((void *)(y + i), _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(q + i))));
    for (; i < n; i++) y[i] = q[i];
}

void avx2_exps(float *x, int32_t n) {
    int32_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, exp8(_mm256_loadu_ps(x + i)));
    for (; i < n; i++) x[i] = plm_exp(x[i]);
}

/* x is at most what `inverse` was made of, so nothing rounds to more than PLM_LARGEST. */
static inline __m256i whole_of(__m256 x, __m256 inverse) { return _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)); }

static inline void store_words(__m256i low, __m256i high, int16_t *q) {
    _mm256_storeu_si256((void *)q, _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8));
}

/* The largest size in a block. Floats without their signs are ordered as integers are, infinity and NaN above all. */
static inline float largest_float(const __m256 *v) {
    const __m256i size = _mm256_set1_epi32(0x7fffffff);
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) most = _mm256_max_epi32(most, _mm256_and_si256(size, _mm256_castps_si256(v[i])));
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1))));
}

void avx2_pack(const float *x, int32_t cols, float most_q, int16_t *q, float *scale, int32_t *sum) {
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, x += PLM_BLOCK, q += PLM_BLOCK) {
        __m256 v[4];
        for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(x + 8 * i);
        const float most = largest_float(v);
        const int finite = most <= FLT_MAX;
        scale[b] = finite ? most / most_q : NAN;
        if (sum) sum[b] = 0;
        if (!(finite && most > 1e-30f)) {
            memset(q, 0, PLM_BLOCK * sizeof *q);
            continue;
        }
        __m256 inverse = _mm256_set1_ps(most_q / most);
        __m256i whole_numbers[4], total = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            whole_numbers[i] = whole_of(v[i], inverse);
            total = _mm256_add_epi32(total, whole_numbers[i]);
        }
        for (int i = 0; i < 2; i++) store_words(whole_numbers[2 * i], whole_numbers[2 * i + 1], q + 16 * i);
        if (sum) sum[b] = sum8_int(total);
    }
}

static inline void round_halves(const uint16_t *x, __m256 inverse, int16_t *q) {
    for (int i = 0; i < PLM_BLOCK; i += 16)
        store_words(whole_of(load8(x + i, PLM_F16), inverse), whole_of(load8(x + i + 8, PLM_F16), inverse), q + i);
}

static void pack_block_of_halves(const uint16_t *x, float most_q, int16_t *q, float *scale) {
    uint16_t bits = largest_half(load32(x), load32(x + 16));
    float most = _cvtsh_ss(bits);
    if (bits == 0 || bits >= 0x7c00) { /* zeros; or an infinity or a NaN, which the scale shows */
        *scale = bits ? NAN : 0.0f;
        memset(q, 0, PLM_BLOCK * sizeof *q);
        return;
    }
    *scale = most / most_q;
    round_halves(x, _mm256_set1_ps(most_q / most), q);
}

/* The largest of each of eight blocks. */
static inline __m128i largest_of_blocks(const uint16_t *x) {
    __m128i a[8], b[8];
    for (int k = 0; k < 8; k++) a[k] = eight_largest(load32(x + k * PLM_BLOCK), load32(x + k * PLM_BLOCK + 16));
    for (int k = 0; k < 4; k++)
        b[k] = _mm_max_epu16(_mm_unpacklo_epi16(a[2 * k], a[2 * k + 1]), _mm_unpackhi_epi16(a[2 * k], a[2 * k + 1]));
    for (int k = 0; k < 2; k++)
        a[k] = _mm_max_epu16(_mm_unpacklo_epi32(b[2 * k], b[2 * k + 1]), _mm_unpackhi_epi32(b[2 * k], b[2 * k + 1]));
    return _mm_max_epu16(_mm_unpacklo_epi64(a[0], a[1]), _mm_unpackhi_epi64(a[0], a[1]));
}

/* Eight blocks at a time, so that they share two divisions. */
void avx2_pack_halves(const uint16_t *x, int32_t cols, float most_q, int16_t *q, float *scale) {
    const int32_t blocks = cols / PLM_BLOCK;
    int32_t b = 0;
    for (; b + 8 <= blocks; b += 8) {
        __m128i bits = largest_of_blocks(x + b * PLM_BLOCK);
        /* less 1, a 0 is the largest of all */
        __m128i less = _mm_sub_epi16(bits, _mm_set1_epi16(1)), limit = _mm_set1_epi16(0x7c00 - 1);
        if (_mm_movemask_epi8(_mm_cmpeq_epi16(_mm_max_epu16(less, limit), less))) {
            for (int k = 0; k < 8; k++)
                pack_block_of_halves(x + (b + k) * PLM_BLOCK, most_q, q + (b + k) * PLM_BLOCK, scale + b + k);
            continue;
        }
        float inverse[8];
        __m256 most = _mm256_cvtph_ps(bits), most_q8 = _mm256_set1_ps(most_q);
        _mm256_storeu_ps(scale + b, _mm256_div_ps(most, most_q8));
        _mm256_storeu_ps(inverse, _mm256_div_ps(most_q8, most));
        for (int k = 0; k < 8; k++)
            round_halves(x + (b + k) * PLM_BLOCK, _mm256_broadcast_ss(inverse + k), q + (b + k) * PLM_BLOCK);
    }
    for (; b < blocks; b++) pack_block_of_halves(x + b * PLM_BLOCK, most_q, q + b * PLM_BLOCK, scale + b);
}
