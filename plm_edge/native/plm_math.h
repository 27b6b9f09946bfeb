/* Half precision and the exponential, the same bits on every CPU. */
#ifndef PLM_MATH_H
#define PLM_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float plm_from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t plm_to_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float plm_bf16(uint16_t h) { return plm_from_bits((uint32_t)h << 16); }

static inline float plm_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00) /* infinity, NaN */
        return plm_from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest < 0x400) { /* zero, subnormal: exact in float */
        float f = (float)rest * 0x1p-24f;
        return sign ? -f : f;
    }
    return plm_from_bits(sign | ((rest << 13) + (112u << 23)));
}

/* To the nearest, ties to even; NaN stays NaN, too large becomes infinity. */
static inline uint16_t plm_to_f16(float f) {
    uint32_t bits = plm_to_bits(f), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (rest < 0x38800000) { /* below the smallest normal half: let the float unit round at 2^-24 */
        float tiny = plm_from_bits(rest) + 0.5f;
        return (uint16_t)(sign | (plm_to_bits(tiny) - 0x3f000000));
    }
    return (uint16_t)(sign | ((rest + 0xfff + (rest >> 13 & 1) - (112u << 23)) >> 13));
}

/* e^x for x <= 0, as softmax needs it: relative error below 2.6e-7 (all floats of [-87, 0] tried); below
 * -87 it is 0. A NaN stays a NaN. Cody-Waite reduction, Taylor to the sixth power. */
static inline float plm_exp(float x) {
    if (!(x >= -87.0f)) return x < -87.0f ? 0.0f : x;
    float n = floorf(x * 1.44269504f + 0.5f);
    float r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * plm_from_bits((uint32_t)((int32_t)n + 127) << 23);
}

#endif
