#include "quantize.h"

#include "quantize_k.h"

#include <string.h>

enum { BLOCK = 32, INFINITE = 0x7f800000, FIRST_F16_INFINITY = 0x477ff000 /* 65520 */ };

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Nearest f16, ties to even; |x| below 65520. Both ways are computed and one is chosen, so that loops vectorize. */
static inline uint16_t to_f16(float x) {
    const uint32_t bits = bits_of(x), size = bits & 0x7fffffffu;
    /* 0.5 has the step 2^-24 of f16's subnormals, so this addition rounds to them */
    const uint32_t subnormal = bits_of(float_of(size) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (size + 0xfffu + ((size >> 13) & 1u) - (112u << 23)) >> 13;
    return (uint16_t)((bits >> 16 & 0x8000u) | (size < 0x38800000u ? subnormal : normal));
}

/* Exact. Infinities and NaN (exponent 31) are the caller's to refuse. */
static inline float from_f16(uint16_t half) {
    const uint32_t size = half & 0x7fffu;
    const uint32_t subnormal = bits_of((float)(int32_t)size * 0x1p-24f);
    const uint32_t normal = (size << 13) + (112u << 23);
    return float_of((uint32_t)(half & 0x8000u) << 16 | (size < 0x400u ? subnormal : normal));
}

static inline uint16_t load16(const uint8_t *from) {
    uint16_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store16(uint8_t *to, uint16_t value) { memcpy(to, &value, sizeof value); }

/* Bits of the largest |x|. As integers, because gcc vectorizes no float maximum that minds NaN. */
static inline int32_t largest(const float *x, size_t n) {
    int32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        const int32_t size = (int32_t)(bits_of(x[i]) & 0x7fffffffu);
        most = size > most ? size : most;
    }
    return most;
}

/* 1 / scale, and 0 where that overflows: the f16 scale is 0 there, and all values are read as 0. */
static inline float inverse(float scale) {
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    return (bits_of(inverse) & 0x7fffffffu) < INFINITE ? inverse : 0.0f;
}

static int block_to_q8_0(const float *x, uint8_t *out) {
    const int32_t most = largest(x, BLOCK);
    if (most >= INFINITE) return 0;
    const float scale = float_of((uint32_t)most) / 127.0f, factor = inverse(scale);
    if (bits_of(scale) >= FIRST_F16_INFINITY) return 0;
    store16(out, to_f16(scale));
    for (int i = 0; i < BLOCK; i++) {
        const float scaled = x[i] * factor;
        const int32_t whole = (int32_t)scaled; /* towards zero; the rest is exact */
        const float rest = scaled - (float)whole;
        out[2 + i] = (uint8_t)(whole + (rest >= 0.5f) - (rest <= -0.5f));
    }
    return 1;
}

static inline uint8_t nibble(float x, float factor) {
    const int32_t q = (int32_t)(x * factor + 8.5f);
    return (uint8_t)(q < 15 ? q : 15);
}

static int block_to_q4_0(const float *x, uint8_t *out) {
    const int32_t most = largest(x, BLOCK);
    if (most >= INFINITE) return 0;
    int first = 0;
    while ((int32_t)(bits_of(x[first]) & 0x7fffffffu) != most) first++;
    const float scale = x[first] / -8.0f, factor = inverse(scale);
    if ((bits_of(scale) & 0x7fffffffu) >= FIRST_F16_INFINITY) return 0;
    store16(out, to_f16(scale));
    for (int i = 0; i < 16; i++) {
        out[2 + i] = (uint8_t)(nibble(x[i], factor) | nibble(x[i + 16], factor) << 4);
    }
    return 1;
}

static int row_to_f16(const float *x, size_t cols, uint8_t *out) {
    if (largest(x, cols) >= FIRST_F16_INFINITY) return 0;
    for (size_t i = 0; i < cols; i++) store16(out + 2 * i, to_f16(x[i]));
    return 1;
}

static int row_to_bf16(const float *x, size_t cols, uint8_t *out) {
    if (largest(x, cols) >= 0x7f7f8000) return 0; /* would be rounded up to infinity */
    for (size_t i = 0; i < cols; i++) {
        const uint32_t bits = bits_of(x[i]);
        store16(out + 2 * i, (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16));
    }
    return 1;
}

static int row_to_f32(const float *x, size_t cols, uint8_t *out) {
    if (largest(x, cols) >= INFINITE) return 0;
    memcpy(out, x, cols * sizeof *x);
    return 1;
}

static int row_to_q8_0(const float *x, size_t cols, uint8_t *out) {
    int good = 1;
    for (size_t b = 0; good && b < cols / BLOCK; b++) good = block_to_q8_0(x + b * BLOCK, out + b * 34);
    return good;
}

static int row_to_q4_0(const float *x, size_t cols, uint8_t *out) {
    int good = 1;
    for (size_t b = 0; good && b < cols / BLOCK; b++) good = block_to_q4_0(x + b * BLOCK, out + b * 18);
    return good;
}

static int row_from_f32(const uint8_t *packed, size_t cols, float *x) {
    memcpy(x, packed, cols * sizeof *x);
    return largest(x, cols) < INFINITE;
}

static int row_from_f16(const uint8_t *packed, size_t cols, float *x) {
    int good = 1;
    for (size_t i = 0; i < cols; i++) {
        const uint16_t half = load16(packed + 2 * i);
        good &= (half & 0x7c00u) != 0x7c00u;
        x[i] = from_f16(half);
    }
    return good;
}

static int row_from_bf16(const uint8_t *packed, size_t cols, float *x) {
    for (size_t i = 0; i < cols; i++) x[i] = float_of((uint32_t)load16(packed + 2 * i) << 16);
    return largest(x, cols) < INFINITE;
}

static int row_from_q8_0(const uint8_t *packed, size_t cols, float *x) {
    int good = 1;
    for (size_t b = 0; b < cols / BLOCK; b++) {
        const uint8_t *block = packed + b * 34;
        const float scale = from_f16(load16(block));
        good &= (load16(block) & 0x7c00u) != 0x7c00u;
        for (int i = 0; i < BLOCK; i++) x[b * BLOCK + i] = scale * (float)(int8_t)block[2 + i];
    }
    return good;
}

static int row_from_q4_0(const uint8_t *packed, size_t cols, float *x) {
    int good = 1;
    for (size_t b = 0; b < cols / BLOCK; b++) {
        const uint8_t *block = packed + b * 18;
        const float scale = from_f16(load16(block));
        good &= (load16(block) & 0x7c00u) != 0x7c00u;
        for (int i = 0; i < 16; i++) {
            x[b * BLOCK + i] = scale * (float)((block[2 + i] & 15) - 8);
            x[b * BLOCK + i + 16] = scale * (float)((block[2 + i] >> 4) - 8);
        }
    }
    return good;
}

struct format {
    size_t values, bytes; /* of one block */
    int (*to)(const float *, size_t, uint8_t *);
    int (*from)(const uint8_t *, size_t, float *);
};

static const struct format F32 = {1, 4, row_to_f32, row_from_f32};
static const struct format F16 = {1, 2, row_to_f16, row_from_f16};
static const struct format BF16 = {1, 2, row_to_bf16, row_from_bf16};
static const struct format Q8_0 = {BLOCK, 34, row_to_q8_0, row_from_q8_0};
static const struct format Q4_0 = {BLOCK, 18, row_to_q4_0, row_from_q4_0};

static const struct format Q4_K = {PLM_SUPER, PLM_Q4_K_BYTES, NULL, plm_row_from_q4_k};
static const struct format Q6_K = {PLM_SUPER, PLM_Q6_K_BYTES, NULL, plm_row_from_q6_k};

static const struct format *format_of(int number) {
    switch (number) {
        case GGML_F32: return &F32;
        case GGML_F16: return &F16;
        case GGML_BF16: return &BF16;
        case GGML_Q8_0: return &Q8_0;
        case GGML_Q4_0: return &Q4_0;
        case GGML_Q4_K: return &Q4_K;
        case GGML_Q6_K: return &Q6_K;
        default: return NULL;
    }
}

size_t plm_quantize(int format, const float *x, size_t rows, size_t cols, uint8_t *packed) {
    const struct format *f = format_of(format);
    if (!f || !f->to) return PLM_FORMAT_UNKNOWN;
    const size_t row_bytes = cols / f->values * f->bytes;
    for (size_t r = 0; r < rows; r++) {
        if (!f->to(x + r * cols, cols, packed + r * row_bytes)) return r;
    }
    return rows;
}

size_t plm_dequantize(int format, const uint8_t *packed, size_t rows, size_t cols, float *x) {
    const struct format *f = format_of(format);
    if (!f) return PLM_FORMAT_UNKNOWN;
    const size_t row_bytes = cols / f->values * f->bytes;
    for (size_t r = 0; r < rows; r++) {
        if (!f->from(packed + r * row_bytes, cols, x + r * cols)) return r;
    }
    return rows;
}
