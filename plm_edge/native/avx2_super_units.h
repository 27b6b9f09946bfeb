/* Groups of units of Q4_K and Q6_K in registers of 256 bits: bytes of two units beside each other, so that a pair is
 * what they have for one output. superblocks.h says where their bytes lie. */
#ifndef PLM_AVX2_SUPER_UNITS_H
#define PLM_AVX2_SUPER_UNITS_H

#include "avx2_super.h"

/* 16 bytes of two units, byte by byte beside each other. */
static inline __m256i beside(__m128i a, __m128i b) {
    return _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
}

/* The quants less 32 of 32 outputs of a unit's row: outputs 0..15, then 16..31. */
static inline void unit_of_q6_k(const uint8_t *nibbles, const uint8_t *high, __m128i *v) {
    const __m128i fifteen = _mm_set1_epi8(15), upper = _mm_set1_epi8(0x30), half = _mm_set1_epi8(32);
    __m128i bytes = _mm_loadu_si128((const void *)nibbles), bits = _mm_loadl_epi64((const void *)high);
    bits = _mm_unpacklo_epi64(bits, _mm_srli_epi16(bits, 2));
    __m128i low = _mm_or_si128(_mm_and_si128(bytes, fifteen), _mm_and_si128(_mm_slli_epi16(bits, 4), upper));
    __m128i rest = _mm_and_si128(_mm_srli_epi16(bytes, 4), fifteen);
    v[0] = _mm_sub_epi8(low, half);
    v[1] = _mm_sub_epi8(_mm_or_si128(rest, _mm_and_si128(bits, upper)), half);
}

/* sums of 32 outputs from output o on, eight a register, over the units that fired (an even number). */
INLINED void sum_units_q4_k(const fired *f, int32_t o, __m256i *sums, add_pairs *add) {
    for (int i = 0; i < 4; i++) sums[i] = _mm256_setzero_si256();
    for (int32_t k = 0; k < f->count; k += 2) {
        __m256i q = four_bytes(f->q + k);
        __m256i v = beside(_mm_loadu_si128((const void *)(f->row[k] + o / 2)),
                           _mm_loadu_si128((const void *)(f->row[k + 1] + o / 2)));
        __m256i low = nibbles_low(v), high = nibbles_high(v);
        for (int i = 0; i < 2; i++) {
            sums[i] = add(sums[i], wide_unsigned(low, i), q);
            sums[2 + i] = add(sums[2 + i], wide_unsigned(high, i), q);
        }
    }
}

INLINED void sum_units_q6_k(const fired *f, int32_t width, int32_t o, __m256i *sums, add_pairs *add) {
    for (int i = 0; i < 4; i++) sums[i] = _mm256_setzero_si256();
    for (int32_t k = 0; k < f->count; k += 2) {
        __m256i q = four_bytes(f->q + k);
        __m128i a[2], b[2];
        unit_of_q6_k(f->row[k] + o / 2, f->row[k] + width / 2 + o / 4, a);
        unit_of_q6_k(f->row[k + 1] + o / 2, f->row[k + 1] + width / 2 + o / 4, b);
        for (int i = 0; i < 4; i++) sums[i] = add(sums[i], wide_signed(beside(a[i / 2], b[i / 2]), i % 2), q);
    }
}

/* Scales or leasts of part `part` for eight outputs, from the rows of the twelve bytes. */
static inline __m256 bytes8(__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)); }
static inline __m128i eight_at(const uint8_t *p) { return _mm_loadl_epi64((const void *)p); }
static inline __m256 outputs_scale_q4_k(const uint8_t *twelve, int32_t width, int32_t part) {
    if (part < 4) return bytes8(_mm_and_si128(eight_at(twelve + (int64_t)part * width), _mm_set1_epi8(63)));
    __m128i low = _mm_and_si128(eight_at(twelve + (int64_t)(part + 4) * width), _mm_set1_epi8(15));
    __m128i high = _mm_srli_epi16(eight_at(twelve + (int64_t)(part - 4) * width), 2);
    return bytes8(_mm_or_si128(low, _mm_and_si128(high, _mm_set1_epi8(0x30))));
}
static inline __m256 outputs_least_q4_k(const uint8_t *twelve, int32_t width, int32_t part) {
    if (part < 4) return bytes8(_mm_and_si128(eight_at(twelve + (int64_t)(part + 4) * width), _mm_set1_epi8(63)));
    __m128i low = _mm_srli_epi16(eight_at(twelve + (int64_t)(part + 4) * width), 4);
    __m128i high = _mm_srli_epi16(eight_at(twelve + (int64_t)part * width), 2);
    low = _mm_and_si128(low, _mm_set1_epi8(15));
    return bytes8(_mm_or_si128(low, _mm_and_si128(high, _mm_set1_epi8(0x30))));
}

/* y[0..8) += what the sums of a part give, less its leasts times `less`. */
static inline void add_outputs_q4_k(float *y, __m256i sums, const uint8_t *super, int32_t width, int32_t o,
                                    int32_t part, float scale, float less) {
    const uint8_t *twelve = super + 4 * (int64_t)width + o;
    __m256 d = scales8(super + 2 * (int64_t)o), dmin = scales8(super + 2 * ((int64_t)width + o));
    __m256 value = add_part(_mm256_loadu_ps(y), sums, _mm256_mul_ps(d, outputs_scale_q4_k(twelve, width, part)), scale);
    __m256 least = _mm256_mul_ps(dmin, outputs_least_q4_k(twelve, width, part));
    _mm256_storeu_ps(y, _mm256_sub_ps(value, _mm256_mul_ps(least, _mm256_set1_ps(less))));
}

static inline void add_outputs_q6_k(float *y, __m256i sums, const uint8_t *super, int32_t width, int32_t o,
                                    int32_t sixteen, float scale) {
    __m256i bytes = _mm256_cvtepi8_epi32(eight_at(super + (int64_t)(2 + sixteen) * width + o));
    __m256 factor = _mm256_mul_ps(scales8(super + 2 * (int64_t)o), _mm256_cvtepi32_ps(bytes));
    _mm256_storeu_ps(y, add_part(_mm256_loadu_ps(y), sums, factor, scale));
}

INLINED void part_of_q4_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y,
                          add_pairs *add) {
    fired f;
    if (!find_fired_int(plm_part_rows_at(super, PLM_Q4_K, width, part), width / 2, a, 2, &f)) return;
    const float less = (float)f.sum * f.scale;
    for (int32_t o = 0; o < width; o += PLM_BLOCK) {
        __m256i sums[4];
        sum_units_q4_k(&f, o, sums, add);
        for (int i = 0; i < 4; i++)
            add_outputs_q4_k(y + o + 8 * i, sums[i], super, width, o + 8 * i, part, f.scale, less);
    }
}

/* The units 16 h .. 16 h + 15 of those that fired, filled up to a multiple of `step`. */
static inline void half_of_fired(const fired *all, const uint8_t *rows, int64_t bytes, int h, int step, fired *f) {
    f->count = 0;
    for (int32_t k = 0; k < all->count; k++) {
        if ((all->row[k] >= rows + 16 * bytes) != h) continue;
        f->row[f->count] = all->row[k];
        f->q[f->count] = all->q[k], f->top[f->count] = all->top[k], f->bottom[f->count++] = all->bottom[k];
    }
    for (; f->count % step; f->count++) {
        f->row[f->count] = f->row[f->count - 1];
        f->q[f->count] = f->top[f->count] = f->bottom[f->count] = 0;
    }
}

INLINED void part_of_q6_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y,
                          add_pairs *add) {
    const uint8_t *rows = plm_part_rows_at(super, PLM_Q6_K, width, part);
    const int64_t bytes = plm_unit_bytes_super(PLM_Q6_K, width);
    fired all, f[2];
    if (!find_fired_int(rows, bytes, a, 1, &all)) return;
    for (int h = 0; h < 2; h++) half_of_fired(&all, rows, bytes, h, 2, &f[h]);
    for (int32_t o = 0; o < width; o += PLM_BLOCK)
        for (int h = 0; h < 2; h++) {
            __m256i sums[4];
            sum_units_q6_k(&f[h], width, o, sums, add);
            for (int i = 0; i < 4; i++)
                add_outputs_q6_k(y + o + 8 * i, sums[i], super, width, o + 8 * i, 2 * part + h, all.scale);
        }
}

#endif
