/* AVX-VNNI and AVX-512 on a CPU that has AVX2 alone: included before the files of those sets (-include), this puts SIMDe
 * (Debian: libsimde-dev, tried with 0.7.4) in the place of the compiler's intrinsics. What SIMDe lacks is here, half by
 * half or value by value. */
#ifndef SIMDE_VNNI_H
#define SIMDE_VNNI_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <string.h>

#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32
#define _mm256_dpwssd_avx_epi32 simde_mm256_dpwssd_epi32

/* What a half of those below takes. */
static inline __m256i own_eight_bytes(double v) {
    return _mm256_cvtepu8_epi32(_mm_castpd_si128(_mm_set_sd(v)));
}
static inline __m256i own_srai_24_256(__m256i v) { return _mm256_srai_epi32(v, 24); }
static inline __m256i own_neighbours_256(__m256i v) { return _mm256_shuffle_epi32(v, 0xb1); }

/* name(v): two halves in, two out. */
#define BY_HALVES(name, from, of, to, half_of, operation)     \
    static inline to name(from v) {                           \
        of in[2];                                             \
        half_of out[2];                                       \
        to y;                                                 \
        memcpy(in, &v, sizeof in);                            \
        out[0] = operation(in[0]), out[1] = operation(in[1]); \
        memcpy(&y, out, sizeof y);                            \
        return y;                                             \
    }
BY_HALVES(own_cvtph_ps, __m256i, __m128i, __m512, __m256, _mm256_cvtph_ps)
BY_HALVES(own_cvtps_epi32, __m512, __m256, __m512i, __m256i, _mm256_cvtps_epi32)
BY_HALVES(own_cvttps_epi32, __m512, __m256, __m512i, __m256i, _mm256_cvttps_epi32)
BY_HALVES(own_cvtepi32_ps, __m512i, __m256i, __m512, __m256, _mm256_cvtepi32_ps)
BY_HALVES(own_cvtepu16_epi32, __m256i, __m128i, __m512i, __m256i, _mm256_cvtepu16_epi32)
BY_HALVES(own_cvtepu8_epi32, __m128i, double, __m512i, __m256i, own_eight_bytes)
BY_HALVES(own_neighbours, __m512i, __m256i, __m512i, __m256i, own_neighbours_256)
BY_HALVES(own_srai_24, __m512i, __m256i, __m512i, __m256i, own_srai_24_256)
#undef BY_HALVES

static inline __m512i own_cvtepi8_epi32(__m128i v) {
    int8_t in[16];
    int32_t out[16];
    __m512i y;
    memcpy(in, &v, sizeof in);
    for (int i = 0; i < 16; i++) out[i] = in[i];
    memcpy(&y, out, sizeof y);
    return y;
}

static inline __m256i own_cvtepi32_epi16(__m512i v) {
    int32_t in[16];
    uint16_t out[16];
    __m256i y;
    memcpy(in, &v, sizeof in);
    for (int i = 0; i < 16; i++) out[i] = (uint16_t)in[i];
    memcpy(&y, out, sizeof y);
    return y;
}

/* Nothing outside the mask is touched. */
static inline void own_masked(uint16_t mask, const void *from, void *to, size_t size) {
    for (size_t i = 0; i < 16; i++)
        if (mask >> i & 1) memcpy((char *)to + i * size, (const char *)from + i * size, size);
}
static inline __m512 own_maskz_loadu_ps(uint16_t mask, const void *p) {
    __m512 v = _mm512_setzero_ps();
    own_masked(mask, p, &v, 4);
    return v;
}
static inline __m512i own_maskz_loadu_epi32(uint16_t mask, const void *p) {
    __m512i v = _mm512_setzero_si512();
    own_masked(mask, p, &v, 4);
    return v;
}
static inline __m256i own_maskz_loadu_epi16(uint16_t mask, const void *p) {
    __m256i v = _mm256_setzero_si256();
    own_masked(mask, p, &v, 2);
    return v;
}
static inline void own_mask_storeu_ps(void *p, uint16_t mask, __m512 v) { own_masked(mask, &v, p, 4); }

static inline __m256 own_extractf32x8_ps(__m512 v, int upper) {
    __m256 y;
    memcpy(&y, (const char *)&v + 32 * upper, sizeof y);
    return y;
}

#define _mm512_cvtph_ps own_cvtph_ps
#define _mm512_cvtps_epi32 own_cvtps_epi32
#define _mm512_cvttps_epi32 own_cvttps_epi32
#define _mm512_cvtepi32_ps own_cvtepi32_ps
#define _mm512_cvtepu16_epi32 own_cvtepu16_epi32
#define _mm512_cvtepu8_epi32 own_cvtepu8_epi32
#undef _mm512_srai_epi32
#define _mm512_srai_epi32(v, count) own_srai_24(v) /* by 24 wherever it is used */
#undef _mm512_shuffle_epi32
#define _mm512_shuffle_epi32(v, order) own_neighbours(v) /* CDAB wherever it is used */
#define _mm512_cvtepi8_epi32 own_cvtepi8_epi32
#define _mm512_cvtepi32_epi16 own_cvtepi32_epi16
#define _mm512_maskz_loadu_ps own_maskz_loadu_ps
#define _mm512_maskz_loadu_epi32 own_maskz_loadu_epi32
#define _mm256_maskz_loadu_epi16 own_maskz_loadu_epi16
#define _mm512_mask_storeu_ps own_mask_storeu_ps
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps own_extractf32x8_ps

#endif
