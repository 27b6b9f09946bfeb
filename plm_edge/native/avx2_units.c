/* AVX2: groups of units. */
#include "avx2_pairs.h"

static inline void units_float(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y,
                               const plm_ahead *next, int format) {
    const int64_t size = size_of(format);
    fired f;
    int32_t o = 0;
    find_fired(w, width * size, a, units, &f);
    for (; o + 32 <= width; o += 32) {
        plm_ask(next, o);
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

void avx2_units_f32(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    units_float(w, width, a, units, y, next, PLM_F32);
}
void avx2_units_f16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    units_float(w, width, a, units, y, next, PLM_F16);
}
void avx2_units_bf16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    units_float(w, width, a, units, y, next, PLM_BF16);
}

void avx2_units_q8_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    (void)units; /* integer groups are whole */
    pairs_units_q8_0(w, width, a, y, next, add_in_two);
}

/* Sums of the 64 outputs whose bytes lie at `at` in every row, or of 32 where that is all there is. Register i has
 * outputs 4 i .. 4 i + 3 of the first 32 below, of the second 32 above. Units first .. first + count - 1: at most 16,
 * as many as 16-bit sums can hold (see BOTTOM). */
INLINED void sum_q4_0(const fired *f, int first, int count, int64_t at, int both, __m256i *sum) {
    __m256i top[4], bottom[4];
    for (int i = 0; i < 4; i++) top[i] = _mm256_setzero_si256(), bottom[i] = _mm256_set1_epi16(BOTTOM);
    for (int k = first; k < first + count; k += 2) {
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

/* All outputs. `few` > 0: so many units fired, known to the compiler, since a short loop of unknown length costs more
 * than what it does. */
INLINED void outputs_q4_0(const fired *f, const uint8_t *w, int32_t width, float *y, const plm_ahead *next, int few) {
    const int32_t count = f->count;
    const __m256i start = _mm256_set1_epi32(-8 * f->sum - (count + 15) / 16 * BOTTOM);
    for (int32_t o = 0; o < width; o += 64) {
        plm_ask(next, o);
        const int both = width - o >= 64;
        __m256i sum[8];
        for (int i = 0; i < 8; i++) sum[i] = start;
        if (few && both)
            sum_q4_0(f, 0, few, o / 2, 1, sum);
        else
            for (int32_t k = 0; k < count; k += 16) sum_q4_0(f, k, count - k < 16 ? count - k : 16, o / 2, both, sum);
        for (int i = 0; i < 4; i++) {
            int32_t at = o + 8 * i;
            add_sums(y + at, _mm256_permute2x128_si256(sum[2 * i], sum[2 * i + 1], 0x20), w + 2 * (int64_t)at,
                     f->scale);
            if (!both) continue;
            at += 32;
            add_sums(y + at, _mm256_permute2x128_si256(sum[2 * i], sum[2 * i + 1], 0x31), w + 2 * (int64_t)at,
                     f->scale);
        }
    }
}

void avx2_units_q4_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    fired f;
    (void)units;
    switch (find_fired_int(w + 2 * (int64_t)width, width / 2, a, 2, &f)) {
    case 0: return;
    case 2: outputs_q4_0(&f, w, width, y, next, 2); return;
    case 4: outputs_q4_0(&f, w, width, y, next, 4); return;
    case 6: outputs_q4_0(&f, w, width, y, next, 6); return;
    case 8: outputs_q4_0(&f, w, width, y, next, 8); return;
    case 10: outputs_q4_0(&f, w, width, y, next, 10); return;
    case 12: outputs_q4_0(&f, w, width, y, next, 12); return;
    default: outputs_q4_0(&f, w, width, y, next, 0); return;
    }
}

/* ---- units as floats, for many tokens ---- */

static inline void rows_float(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y,
                              int format) {
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

void avx2_rows_f32(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    rows_float(w, width, first, last, units, y, PLM_F32);
}
void avx2_rows_f16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    rows_float(w, width, first, last, units, y, PLM_F16);
}
void avx2_rows_bf16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    rows_float(w, width, first, last, units, y, PLM_BF16);
}

/* y[0..16) = 16 bytes times the scales of their outputs. */
static inline void scaled_bytes(__m128i bytes, const uint8_t *scales, float *y) {
    __m256i first = _mm256_cvtepi8_epi32(bytes), second = _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8));
    _mm256_storeu_ps(y, _mm256_mul_ps(scales8(scales), _mm256_cvtepi32_ps(first)));
    _mm256_storeu_ps(y + 8, _mm256_mul_ps(scales8(scales + 16), _mm256_cvtepi32_ps(second)));
}

void avx2_rows_q8_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    for (int64_t n = 0; n < units; n++)
        for (int32_t o = first; o < last; o += 16, y += 16)
            scaled_bytes(_mm_loadu_si128((const void *)(w + 2 * (int64_t)width + n * width + o)), w + 2 * o, y);
}

void avx2_rows_q4_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    const __m128i nibble = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
    for (int64_t n = 0; n < units; n++)
        for (int32_t o = first; o < last; o += PLM_BLOCK, y += PLM_BLOCK) {
            __m128i v = _mm_loadu_si128((const void *)(w + 2 * (int64_t)width + n * (width / 2) + o / 2));
            scaled_bytes(_mm_sub_epi8(_mm_and_si128(v, nibble), eight), w + 2 * o, y);
            scaled_bytes(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(v, 4), nibble), eight), w + 2 * (o + 16), y + 16);
        }
}

void avx2_mix(const float *a, const uint8_t *which, int32_t count, const float *w, int32_t n, float *y) {
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
    for (int32_t k = 0; k < count && o < n; k++) avx2_add(a[k], w + which[k] * n + o, n - o, y + o);
}
