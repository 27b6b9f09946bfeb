/* AVX-512 VNNI: groups of units of Q4_K and Q6_K. Four units a step, byte by byte beside each other: a lane is what
 * they have for one output. */
#include "avx2_super_units.h"
#include "avx512.h"

/* 16 bytes of 32 outputs each, of four rows: register i has outputs 4 i .. 4 i + 3 of each 16. */
static inline void four_beside(const __m512i *w, __m512i *v) {
    __m512i low01 = _mm512_unpacklo_epi8(w[0], w[1]), low23 = _mm512_unpacklo_epi8(w[2], w[3]);
    __m512i high01 = _mm512_unpackhi_epi8(w[0], w[1]), high23 = _mm512_unpackhi_epi8(w[2], w[3]);
    v[0] = _mm512_unpacklo_epi16(low01, low23), v[1] = _mm512_unpackhi_epi16(low01, low23);
    v[2] = _mm512_unpacklo_epi16(high01, high23), v[3] = _mm512_unpackhi_epi16(high01, high23);
}

/* Four registers with the 128-bit lanes of four chunks -> a register for each chunk. */
static inline void chunk_by_chunk(__m512i *s) {
    __m512i a = _mm512_shuffle_i32x4(s[0], s[1], 0x44), b = _mm512_shuffle_i32x4(s[2], s[3], 0x44);
    __m512i c = _mm512_shuffle_i32x4(s[0], s[1], 0xee), d = _mm512_shuffle_i32x4(s[2], s[3], 0xee);
    s[0] = _mm512_shuffle_i32x4(a, b, 0x88), s[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    s[2] = _mm512_shuffle_i32x4(c, d, 0x88), s[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

/* Bytes of `chunks` chunks of a row, four of them 64. */
static inline __m512i chunks_at(const uint8_t *p, int chunks) {
    return chunks == 4 ? load64(p) : _mm512_maskz_loadu_epi32(first_of(4 * chunks), p);
}

/* Bits 4 and 5 of the quants of the low nibbles (shifted up by 4) and, unshifted, of the high ones. */
static inline __m512i high_bits(const uint8_t *p, int chunks) {
    const __m512i twice = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3), shift = _mm512_setr_epi64(0, 2, 0, 2, 0, 2, 0, 2);
    __m512i v = _mm512_maskz_loadu_epi32(first_of(2 * chunks), p);
    return _mm512_srlv_epi64(_mm512_permutexvar_epi64(twice, v), shift);
}

static inline __m512i upper_two(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(0x30)); }

/* Sums of the outputs of `chunks` chunks from output o on: low[c] of outputs 0..15 of chunk c, high[c] of the others.
 * six: Q6_K, whose quants are less 32. */
INLINED void sum_units(const fired *f, int32_t width, int32_t o, int chunks, int six, __m512i *low, __m512i *high) {
    __m512i top[8], bottom[8];
    int32_t sum = 0;
    for (int32_t k = 0; six && k < f->count; k++) sum += f->q[k];
    for (int i = 0; i < 8; i++) top[i] = _mm512_setzero_si512(), bottom[i] = _mm512_set1_epi32(-32 * sum);
    for (int32_t k = 0; k < f->count; k += 4) {
        __m512i nibbles[2][4], v[4], q_top = in_every(f->top + k), q_bottom = in_every(f->bottom + k);
        for (int i = 0; i < 4; i++) {
            __m512i bytes = chunks_at(f->row[k + i] + o / 2, chunks);
            nibbles[0][i] = low_of(bytes), nibbles[1][i] = high_of(bytes);
            if (!six) continue;
            __m512i rest = high_bits(f->row[k + i] + width / 2 + o / 4, chunks);
            nibbles[0][i] = _mm512_or_si512(nibbles[0][i], upper_two(_mm512_slli_epi16(rest, 4)));
            nibbles[1][i] = _mm512_or_si512(nibbles[1][i], upper_two(rest));
        }
        for (int n = 0; n < 2; n++) {
            four_beside(nibbles[n], v);
            for (int i = 0; i < 4; i++) {
                top[4 * n + i] = add_bytes(top[4 * n + i], v[i], q_top);
                bottom[4 * n + i] = add_bytes(bottom[4 * n + i], q_bottom, v[i]);
            }
        }
    }
    for (int i = 0; i < 4; i++) low[i] = join(top[i], bottom[i]), high[i] = join(top[4 + i], bottom[4 + i]);
    chunk_by_chunk(low);
    chunk_by_chunk(high);
}

static inline __m512 sixteen_bytes(__m128i v) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(v)); }
static inline __m128i sixteen_at(const uint8_t *p) { return _mm_loadu_si128((const void *)p); }
static inline __m128i of_each(__m128i v, int byte) { return _mm_and_si128(v, _mm_set1_epi8((char)byte)); }

/* y[0..16) += what the sums of a part give, less its leasts times `less`. */
static inline void add_16_q4_k(float *y, __m512i sums, const uint8_t *super, int32_t width, int32_t o, int32_t part,
                               float scale, float less) {
    const uint8_t *twelve = super + 4 * (int64_t)width + o;
    const int64_t row = width;
    __m128i s, m;
    if (part < 4) {
        s = of_each(sixteen_at(twelve + part * row), 63);
        m = of_each(sixteen_at(twelve + (part + 4) * row), 63);
    } else {
        __m128i both = sixteen_at(twelve + (part + 4) * row);
        __m128i upper = _mm_srli_epi16(sixteen_at(twelve + (part - 4) * row), 2);
        s = _mm_or_si128(of_each(both, 15), of_each(upper, 0x30));
        upper = _mm_srli_epi16(sixteen_at(twelve + part * row), 2);
        m = _mm_or_si128(of_each(_mm_srli_epi16(both, 4), 15), of_each(upper, 0x30));
    }
    __m512 factor = _mm512_mul_ps(scales16(super + 2 * (int64_t)o), sixteen_bytes(s));
    __m512 least = _mm512_mul_ps(scales16(super + 2 * ((int64_t)width + o)), sixteen_bytes(m));
    factor = _mm512_mul_ps(factor, _mm512_set1_ps(scale));
    __m512 value = _mm512_add_ps(_mm512_loadu_ps(y), _mm512_mul_ps(_mm512_cvtepi32_ps(sums), factor));
    _mm512_storeu_ps(y, _mm512_sub_ps(value, _mm512_mul_ps(least, _mm512_set1_ps(less))));
}

static inline void add_16_q6_k(float *y, __m512i sums, const uint8_t *super, int32_t width, int32_t o,
                               int32_t sixteen, float scale) {
    __m512i bytes = _mm512_cvtepi8_epi32(sixteen_at(super + (int64_t)(2 + sixteen) * width + o));
    __m512 factor = _mm512_mul_ps(scales16(super + 2 * (int64_t)o), _mm512_cvtepi32_ps(bytes));
    factor = _mm512_mul_ps(factor, _mm512_set1_ps(scale));
    _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), _mm512_mul_ps(_mm512_cvtepi32_ps(sums), factor)));
}

INLINED void outputs_q4_k(const fired *f, const uint8_t *super, int32_t width, int32_t o, int chunks, int32_t part,
                          float *y) {
    const float less = (float)f->sum * f->scale;
    __m512i low[4], high[4];
    sum_units(f, width, o, chunks, 0, low, high);
    for (int c = 0; c < chunks; c++, o += PLM_BLOCK) {
        add_16_q4_k(y + o, low[c], super, width, o, part, f->scale, less);
        add_16_q4_k(y + o + 16, high[c], super, width, o + 16, part, f->scale, less);
    }
}

INLINED void outputs_q6_k(const fired *f, const uint8_t *super, int32_t width, int32_t o, int chunks, int32_t sixteen,
                          float scale, float *y) {
    __m512i low[4], high[4];
    sum_units(f, width, o, chunks, 1, low, high);
    for (int c = 0; c < chunks; c++, o += PLM_BLOCK) {
        add_16_q6_k(y + o, low[c], super, width, o, sixteen, scale);
        add_16_q6_k(y + o + 16, high[c], super, width, o + 16, sixteen, scale);
    }
}

void avx512_part_q4_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y) {
    fired f;
    int32_t o = 0;
    if (!find_fired_int(plm_part_rows_at(super, PLM_Q4_K, width, part), width / 2, a, 4, &f)) return;
    for (; o + 128 <= width; o += 128) outputs_q4_k(&f, super, width, o, 4, part, y);
    if (o < width) outputs_q4_k(&f, super, width, o, (width - o) / PLM_BLOCK, part, y);
}

void avx512_part_q6_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y) {
    const uint8_t *rows = plm_part_rows_at(super, PLM_Q6_K, width, part);
    const int64_t bytes = plm_unit_bytes_super(PLM_Q6_K, width);
    fired all, f[2];
    int32_t o = 0;
    if (!find_fired_int(rows, bytes, a, 1, &all)) return;
    for (int h = 0; h < 2; h++) half_of_fired(&all, rows, bytes, h, 4, &f[h]);
    for (; o + 128 <= width; o += 128)
        for (int h = 0; h < 2; h++) outputs_q6_k(&f[h], super, width, o, 4, 2 * part + h, all.scale, y);
    for (int h = 0; o < width && h < 2; h++)
        outputs_q6_k(&f[h], super, width, o, (width - o) / PLM_BLOCK, 2 * part + h, all.scale, y);
}
