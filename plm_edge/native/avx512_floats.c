/* AVX-512: what works on floats, 16 at a time; the end of a row is read and written under a mask. */
#include "avx512.h"

/* ---- tiles: 16 rows interleaved, 4 consecutive values each ---- */

static inline float sum16(__m512 v) {
    return sum8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}

/* Register i has rows 4 i .. 4 i + 3, four sums each. */
static inline void store_rows(const __m512 *sum, float *y) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(sum[0], sum[1]), _mm512_unpackhi_ps(sum[0], sum[1]));
    __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(sum[2], sum[3]), _mm512_unpackhi_ps(sum[2], sum[3]));
    __m512d a2 = _mm512_castps_pd(a), b2 = _mm512_castps_pd(b);
    __m512 low = _mm512_castpd_ps(_mm512_unpacklo_pd(a2, b2)), high = _mm512_castpd_ps(_mm512_unpackhi_pd(a2, b2));
    _mm512_storeu_ps(y, _mm512_permutexvar_ps(order, _mm512_add_ps(low, high)));
}

static inline void tile_float(const uint8_t *w, int32_t cols, const float *x, float *y, int format) {
    const int size = size_of(format);
    __m512 sum[4];
    for (int i = 0; i < 4; i++) sum[i] = _mm512_setzero_ps();
    for (int32_t c = 0; c < cols; c += 4, w += 64 * size) {
        __m128 four = cols - c >= 4 ? _mm_loadu_ps(x + c) : _mm256_castps256_ps128(load_end(x + c, cols - c, PLM_F32));
        __m512 in_all = _mm512_broadcast_f32x4(four);
        for (int i = 0; i < 4; i++) sum[i] = _mm512_fmadd_ps(load16(w + 16 * i * size, format), in_all, sum[i]);
    }
    store_rows(sum, y);
}

void avx512_tile_f32(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++) tile_float(w, cols, x->f + t * cols, y + t * stride, PLM_F32);
}
void avx512_tile_f16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++) tile_float(w, cols, x->f + t * cols, y + t * stride, PLM_F16);
}
void avx512_tile_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++) tile_float(w, cols, x->f + t * cols, y + t * stride, PLM_BF16);
}

/* ---- plain rows ---- */

static inline float row_float(const uint8_t *w, int32_t cols, const float *x, int format) {
    const int size = size_of(format);
    __m512 sum[4];
    int32_t c = 0;
    for (int i = 0; i < 4; i++) sum[i] = _mm512_setzero_ps();
    for (; c + 64 <= cols; c += 64, w += 64 * size)
        for (int i = 0; i < 4; i++)
            sum[i] = _mm512_fmadd_ps(load16(w + 16 * i * size, format), _mm512_loadu_ps(x + c + 16 * i), sum[i]);
    for (; c < cols; c += 16, w += 16 * size) {
        __mmask16 first = first_of(cols - c);
        sum[0] = _mm512_fmadd_ps(load_first(first, w, format), _mm512_maskz_loadu_ps(first, x + c), sum[0]);
    }
    return sum16(_mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

float avx512_row_f32(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_float(w, cols, x->f, PLM_F32); }
float avx512_row_f16(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_float(w, cols, x->f, PLM_F16); }
float avx512_row_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_float(w, cols, x->f, PLM_BF16);
}
float avx512_dot(const float *a, const float *b, int32_t n) { return row_float((const void *)a, n, b, PLM_F32); }

/* ---- added rows ---- */

static inline void add_row_float(const uint8_t *w, int32_t n, float a, float *y, int format) {
    const __m512 factor = _mm512_set1_ps(a);
    for (int32_t c = 0; c < n; c += 16) {
        __mmask16 first = first_of(n - c);
        __m512 values = load_first(first, w + (int64_t)c * size_of(format), format);
        __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(first, y + c), _mm512_mul_ps(factor, values));
        _mm512_mask_storeu_ps(y + c, first, sum);
    }
}

static inline void add_float_rows(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y, int format) {
    for (int32_t i = 0; i < count; i++) add_row_float(w + (int64_t)i * n * size_of(format), n, a[i], y, format);
}

void avx512_add_f32(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_float_rows(w, n, a, count, y, PLM_F32);
}
void avx512_add_f16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_float_rows(w, n, a, count, y, PLM_F16);
}
void avx512_add_bf16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_float_rows(w, n, a, count, y, PLM_BF16);
}
void avx512_add(float a, const float *x, int32_t n, float *y) { add_row_float((const void *)x, n, a, y, PLM_F32); }

/* The values of 16 signed bytes, of the low or the high nibbles of 16 bytes. */
static inline __m512 bytes16(__m128i v) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v)); }
static inline __m512 nibbles16(__m128i v, int high) {
    __m128i four = _mm_and_si128(high ? _mm_srli_epi16(v, 4) : v, _mm_set1_epi8(15));
    return bytes16(_mm_sub_epi8(four, _mm_set1_epi8(8)));
}

/* 32 quants at p as floats. */
static inline void quants32(const uint8_t *p, int format, __m512 *v) {
    __m128i bytes = _mm_loadu_si128((const void *)p);
    v[0] = format == PLM_Q8_0 ? bytes16(bytes) : nibbles16(bytes, 0);
    v[1] = format == PLM_Q8_0 ? bytes16(_mm_loadu_si128((const void *)(p + 16))) : nibbles16(bytes, 1);
}

/* Factors times the 16 values that four bits can have. */
static inline __m512 times_nibbles(float factor) {
    const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_mul_ps(_mm512_set1_ps(factor), values);
}

/* sum[0] + factor times the first 16 quants of a block, sum[1] + those of the others. */
static inline void add_block(const uint8_t *quants, int format, float factor, __m512 *sum) {
    if (format == PLM_Q4_0) { /* a table lookup is the product: it takes the low four bits of each index */
        __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)quants));
        __m512 products = times_nibbles(factor);
        sum[0] = _mm512_add_ps(sum[0], _mm512_permutexvar_ps(bytes, products));
        sum[1] = _mm512_add_ps(sum[1], _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), products));
        return;
    }
    __m512 v[2];
    quants32(quants, format, v);
    for (int k = 0; k < 2; k++) sum[k] = _mm512_add_ps(sum[k], _mm512_mul_ps(_mm512_set1_ps(factor), v[k]));
}

/* How many blocks of a row have their scales in its next 128 bytes, and are longer than these, so nothing is read past
 * them. */
static inline int scales_at_once(int format) { return format == PLM_Q8_0 ? 4 : 8; }

/* Those scales; the lanes behind mean nothing. One by one they would take as long as the products. */
static inline __m256 first_scales(const uint8_t *w, int format) {
    const __m128i words = format == PLM_Q8_0 ? _mm_setr_epi16(0, 17, 34, 51, 0, 0, 0, 0)
                                             : _mm_setr_epi16(0, 9, 18, 27, 36, 45, 54, 63);
    __m512i found = _mm512_permutex2var_epi16(load64(w), _mm512_castsi128_si512(words), load64(w + 64));
    return _mm256_cvtph_ps(_mm512_castsi512_si128(found));
}

/* y (32 n) += `rows` rows, `bytes` apart, of n blocks, factors (rows, 8) of them: sums are loaded and stored once. */
INLINED void add_blocks(const uint8_t *w, int64_t bytes, int32_t rows, int n, const float *factors, float *y, int format,
                        const uint8_t *ask) {
    const int size = plm_block_bytes(format);
    for (int b = 0; b < n; b++, w += size) {
        if (rows == 8) ask_ahead(ask + 8 * b * size, 8 * size); /* fewer are the last ones */
        float *to = y + b * PLM_BLOCK;
        __m512 sum[2] = {_mm512_loadu_ps(to), _mm512_loadu_ps(to + 16)};
        for (int32_t r = 0; r < rows; r++) add_block(w + 2 + r * bytes, format, factors[8 * r + b], sum);
        for (int k = 0; k < 2; k++) _mm512_storeu_ps(to + 16 * k, sum[k]);
    }
}

/* Eight rows at a time. */
INLINED void add_int_rows(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y, int format) {
    const int64_t bytes = plm_row_bytes(format, n);
    const int size = plm_block_bytes(format), step = scales_at_once(format);
    float factors[8 * 8];
    for (int32_t i = 0; i < count; i += 8, w += 8 * bytes) {
        const int32_t rows = count - i < 8 ? count - i : 8, blocks = n / PLM_BLOCK;
        int32_t b = 0;
        for (; b + step <= blocks; b += step) {
            const uint8_t *at = w + b * size;
            for (int32_t r = 0; r < rows; r++)
                _mm256_storeu_ps(factors + 8 * r,
                                 _mm256_mul_ps(first_scales(at + r * bytes, format), _mm256_set1_ps(a[i + r])));
            add_blocks(at, bytes, rows, step, factors, y + b * PLM_BLOCK, format, w + 8 * b * size);
        }
        for (; b < blocks; b++) {
            const uint8_t *at = w + b * size;
            for (int32_t r = 0; r < rows; r++) factors[8 * r] = a[i + r] * scale_at(at + r * bytes);
            add_blocks(at, bytes, rows, 1, factors, y + b * PLM_BLOCK, format, w + 8 * b * size);
        }
    }
}

void avx512_add_q8_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_int_rows(w, n, a, count, y, PLM_Q8_0);
}
void avx512_add_q4_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_int_rows(w, n, a, count, y, PLM_Q4_0);
}

/* ---- groups of units ---- */

static inline void units_float(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y,
                               const plm_ahead *next, int format) {
    const int64_t size = size_of(format);
    fired f;
    int32_t o = 0;
    find_fired(w, width * size, a, units, &f);
    for (; o + 64 <= width; o += 64) {
        plm_ask(next, o);
        __m512 sum[4];
        for (int i = 0; i < 4; i++) sum[i] = _mm512_loadu_ps(y + o + 16 * i);
        for (int32_t k = 0; k < f.count; k++) {
            __m512 factor = _mm512_set1_ps(f.a[k]);
            for (int i = 0; i < 4; i++)
                sum[i] = _mm512_add_ps(sum[i], _mm512_mul_ps(factor, load16(f.row[k] + (o + 16 * i) * size, format)));
        }
        for (int i = 0; i < 4; i++) _mm512_storeu_ps(y + o + 16 * i, sum[i]);
    }
    for (int32_t k = 0; k < f.count; k++) add_row_float(f.row[k] + o * size, width - o, f.a[k], y + o, format);
}

void avx512_units_f32(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    units_float(w, width, a, units, y, next, PLM_F32);
}
void avx512_units_f16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    units_float(w, width, a, units, y, next, PLM_F16);
}
void avx512_units_bf16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    units_float(w, width, a, units, y, next, PLM_BF16);
}

static inline void rows_float(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y,
                              int format) {
    for (int32_t n = 0; n < units; n++, y += last - first)
        for (int32_t o = first; o < last; o += 16) {
            const uint8_t *at = w + ((int64_t)n * width + o) * size_of(format);
            __mmask16 some = first_of(last - o);
            _mm512_mask_storeu_ps(y + (o - first), some, load_first(some, at, format));
        }
}

void avx512_rows_f32(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    rows_float(w, width, first, last, units, y, PLM_F32);
}
void avx512_rows_f16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    rows_float(w, width, first, last, units, y, PLM_F16);
}
void avx512_rows_bf16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    rows_float(w, width, first, last, units, y, PLM_BF16);
}

static inline void rows_int(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y,
                            int format) {
    const int64_t quants = format == PLM_Q8_0 ? PLM_BLOCK : PLM_BLOCK / 2; /* bytes of a block */
    for (int64_t n = 0; n < units; n++)
        for (int32_t o = first; o < last; o += PLM_BLOCK, y += PLM_BLOCK) {
            __m512 v[2];
            quants32(w + 2 * (int64_t)width + (n * width + o) / PLM_BLOCK * quants, format, v);
            for (int i = 0; i < 2; i++)
                _mm512_storeu_ps(y + 16 * i, _mm512_mul_ps(scales16(w + 2 * (o + 16 * i)), v[i]));
        }
}

void avx512_rows_q8_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    rows_int(w, width, first, last, units, y, PLM_Q8_0);
}
void avx512_rows_q4_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    rows_int(w, width, first, last, units, y, PLM_Q4_0);
}

void avx512_mix(const float *a, const uint8_t *which, int32_t count, const float *w, int32_t n, float *y) {
    int32_t o = 0;
    for (; o + 128 <= n; o += 128) {
        __m512 sum[8];
        for (int i = 0; i < 8; i++) sum[i] = _mm512_loadu_ps(y + o + 16 * i);
        for (int32_t k = 0; k < count; k++) {
            const float *row = w + which[k] * n + o;
            __m512 factor = _mm512_set1_ps(a[k]);
            for (int i = 0; i < 8; i++) sum[i] = _mm512_fmadd_ps(factor, _mm512_loadu_ps(row + 16 * i), sum[i]);
        }
        for (int i = 0; i < 8; i++) _mm512_storeu_ps(y + o + 16 * i, sum[i]);
    }
    for (int32_t k = 0; k < count && o < n; k++) avx512_add(a[k], w + which[k] * n + o, n - o, y + o);
}
