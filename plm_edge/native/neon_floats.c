/* Float formats on NEON, four values a register, and the rows and units of integer formats that become floats. What
 * works value by value gives the bits of the scalar set; `tile` and `row` of float formats and `dot` add in another
 * order, with fused steps, and `mix` fuses its steps. */
#include "neon.h"

static inline int size_of(int format) { return format == PLM_F32 ? 4 : 2; }

static inline float32x4_t load4(const void *p, int format) {
    if (format == PLM_F32) return vreinterpretq_f32_u8(vld1q_u8(p));
    uint8x8_t half = vld1_u8(p);
    if (format == PLM_F16) return vcvt_f32_f16(vreinterpret_f16_u8(half));
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(half), 16));
}

/* The last n < 4 values of a row, then zeros: nothing is read past the end. */
static inline float32x4_t load_end(const void *p, int32_t n, int format) {
    uint8_t room[16] = {0};
    memcpy(room, p, (size_t)(n * size_of(format)));
    return load4(room, format);
}

/* ---- tiles and rows ---- */

/* R rows of a tile times T tokens; a register for each pair: four sums, which the end adds. */
static inline __attribute__((always_inline)) void tile_part(const uint8_t *w, int32_t cols, const float *x, float *y,
                                                            int32_t stride, int format, int R, int T) {
    const int size = size_of(format);
    float32x4_t sum[PLM_TILE];
    for (int i = 0; i < R * T; i++) sum[i] = vdupq_n_f32(0.0f);
    for (int32_t c = 0; c < cols; c += 4, w += 64 * size) {
        float32x4_t four[4];
        for (int64_t t = 0; t < T; t++)
            four[t] = cols - c >= 4 ? vld1q_f32(x + t * cols + c) : load_end(x + t * cols + c, cols - c, PLM_F32);
        for (int r = 0; r < R; r++) {
            float32x4_t v = load4(w + 4 * r * size, format);
            for (int t = 0; t < T; t++) sum[t * R + r] = vfmaq_f32(sum[t * R + r], v, four[t]);
        }
    }
    for (int i = 0; i < R * T; i += 4) {
        float32x4_t sums = vpaddq_f32(vpaddq_f32(sum[i], sum[i + 1]), vpaddq_f32(sum[i + 2], sum[i + 3]));
        vst1q_f32(y + (int64_t)(i / R) * stride + i % R, sums);
    }
}

/* Four tokens take a tile four rows at a time, one takes it whole: 16 sums either way. */
static inline void tile_float(const uint8_t *w, int32_t cols, const float *x, int32_t tokens, float *y, int32_t stride,
                              int format) {
    for (; tokens >= 4; tokens -= 4, x += 4 * (int64_t)cols, y += 4 * (int64_t)stride)
        for (int r = 0; r < PLM_TILE; r += 4)
            tile_part(w + 4 * r * size_of(format), cols, x, y + r, stride, format, 4, 4);
    for (; tokens > 0; tokens--, x += cols, y += stride) tile_part(w, cols, x, y, stride, format, PLM_TILE, 1);
}

static inline float row_float(const uint8_t *w, int32_t cols, const float *x, int format) {
    const int size = size_of(format);
    float32x4_t sum[4];
    int32_t c = 0;
    for (int i = 0; i < 4; i++) sum[i] = vdupq_n_f32(0.0f);
    for (; c + 16 <= cols; c += 16, w += 16 * size)
        for (int i = 0; i < 4; i++)
            sum[i] = vfmaq_f32(sum[i], load4(w + 4 * i * size, format), vld1q_f32(x + c + 4 * i));
    for (; c + 4 <= cols; c += 4, w += 4 * size) sum[0] = vfmaq_f32(sum[0], load4(w, format), vld1q_f32(x + c));
    if (c < cols) sum[1] = vfmaq_f32(sum[1], load_end(w, cols - c, format), load_end(x + c, cols - c, PLM_F32));
    return vaddvq_f32(vaddq_f32(vaddq_f32(sum[0], sum[1]), vaddq_f32(sum[2], sum[3])));
}

float neon_dot(const float *a, const float *b, int32_t n) { return row_float((const void *)a, n, b, PLM_F32); }

/* ---- rows added ---- */

/* y + a * values, in two steps. */
static inline float32x4_t plus(float32x4_t y, float a, float32x4_t values) {
    return vaddq_f32(y, vmulq_n_f32(values, a));
}

static inline void add_float(const uint8_t *w, int32_t n, float a, float *y, int format) {
    const int64_t size = size_of(format);
    int32_t c = 0;
    for (; c + 4 <= n; c += 4) vst1q_f32(y + c, plus(vld1q_f32(y + c), a, load4(w + c * size, format)));
    if (c == n) return;
    float end[4];
    vst1q_f32(end, plus(load_end(y + c, n - c, PLM_F32), a, load_end(w + c * size, n - c, format)));
    memcpy(y + c, end, (size_t)(n - c) * sizeof *y);
}

void neon_add(float a, const float *x, int32_t n, float *y) { add_float((const void *)x, n, a, y, PLM_F32); }

/* Rows from `o` on, 16 values of all rows at a time: sums are loaded and stored once. */
static inline void add_sixteens(const uint8_t *const *row, const float *a, int32_t count, int32_t n, float *y,
                                int format) {
    const int64_t size = size_of(format);
    int32_t o = 0;
    for (; o + 16 <= n; o += 16) {
        float32x4_t sum[4];
        for (int i = 0; i < 4; i++) sum[i] = vld1q_f32(y + o + 4 * i);
        for (int32_t k = 0; k < count; k++)
            for (int i = 0; i < 4; i++) sum[i] = plus(sum[i], a[k], load4(row[k] + (o + 4 * i) * size, format));
        for (int i = 0; i < 4; i++) vst1q_f32(y + o + 4 * i, sum[i]);
    }
    for (int32_t k = 0; k < count; k++) add_float(row[k] + o * size, n - o, a[k], y + o, format);
}

static inline void add_float_rows(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y, int format) {
    const uint8_t *row[4];
    for (int32_t i = 0; i < count; i += 4) {
        const int32_t rows = plm_min(4, count - i);
        for (int32_t k = 0; k < rows; k++) row[k] = w + (int64_t)(i + k) * n * size_of(format);
        add_sixteens(row, a + i, rows, n, y, format);
    }
}

static inline void units_float(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, int format) {
    const uint8_t *row[PLM_BLOCK];
    float factor[PLM_BLOCK];
    int32_t count = 0;
    for (int32_t n = 0; n < units; n++) {
        if (a[n] == 0.0f) continue; /* a NaN is not 0: it flows on and shows */
        row[count] = w + n * (width * (int64_t)size_of(format));
        factor[count++] = a[n];
    }
    add_sixteens(row, factor, count, width, y, format);
}

/* 16 signed bytes as floats. */
static inline void floats_of(int8x16_t bytes, float32x4_t *v) {
    int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    v[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
    v[1] = vcvtq_f32_s32(vmovl_high_s16(low));
    v[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
    v[3] = vcvtq_f32_s32(vmovl_high_s16(high));
}

/* 32 quants without their scale. */
static inline void floats_of_block(const uint8_t *quants, float32x4_t *v, int format) {
    uint8x16_t bytes = vld1q_u8(quants);
    if (format == PLM_Q8_0) {
        floats_of(as_signed(bytes), v);
        floats_of(as_signed(vld1q_u8(quants + 16)), v + 4);
    } else {
        floats_of(vsubq_s8(as_signed(nibbles_low(bytes)), vdupq_n_s8(8)), v);
        floats_of(vsubq_s8(as_signed(nibbles_high(bytes)), vdupq_n_s8(8)), v + 4);
    }
}

/* Four rows at a time, so that sums are loaded and stored once for them. */
static inline void add_int_rows(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y, int format) {
    const int64_t bytes = plm_row_bytes(format, n);
    for (int32_t i = 0; i < count; i += 4, w += 4 * bytes) {
        const int32_t rows = plm_min(4, count - i);
        for (int32_t b = 0; b < n / PLM_BLOCK; b++) {
            const uint8_t *block = w + b * plm_block_bytes(format);
            float32x4_t sum[8], v[8];
            for (int k = 0; k < 8; k++) sum[k] = vld1q_f32(y + b * PLM_BLOCK + 4 * k);
            for (int32_t r = 0; r < rows; r++) {
                const float d = a[i + r] * scale_at(block + r * bytes);
                floats_of_block(block + r * bytes + 2, v, format);
                for (int k = 0; k < 8; k++) sum[k] = plus(sum[k], d, v[k]);
            }
            for (int k = 0; k < 8; k++) vst1q_f32(y + b * PLM_BLOCK + 4 * k, sum[k]);
        }
    }
}

void neon_add_q8_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_int_rows(w, n, a, count, y, PLM_Q8_0);
}
void neon_add_q4_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    add_int_rows(w, n, a, count, y, PLM_Q4_0);
}

/* ---- units as floats, for many tokens ---- */

static inline void widen_row(const uint8_t *w, int32_t n, float *y, int format) {
    const int64_t size = size_of(format);
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, load4(w + i * size, format));
    if (i == n) return;
    float end[4];
    vst1q_f32(end, load_end(w + i * size, n - i, format));
    memcpy(y + i, end, (size_t)(n - i) * sizeof *y);
}

void neon_widen(const uint16_t *f16, int32_t n, float *y) { widen_row((const void *)f16, n, y, PLM_F16); }

static inline void unit_rows_float(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units,
                                   float *y, int format) {
    for (int64_t n = 0; n < units; n++, y += last - first)
        widen_row(w + (n * width + first) * size_of(format), last - first, y, format);
}

/* 32 outputs of all units at a time: their scales are read once. */
static inline void unit_rows_int(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y,
                                 int format) {
    const int64_t bytes = format == PLM_Q8_0 ? width : width / 2;
    for (int32_t o = first; o < last; o += PLM_BLOCK) {
        const uint8_t *row = w + 2 * (int64_t)width + (format == PLM_Q8_0 ? o : o / 2);
        float32x4_t scale[8], v[8];
        for (int k = 0; k < 8; k++) scale[k] = scales4(w + 2 * (int64_t)(o + 4 * k));
        for (int64_t n = 0; n < units; n++, row += bytes) {
            floats_of_block(row, v, format);
            float *to = y + n * (last - first) + o - first;
            for (int k = 0; k < 8; k++) vst1q_f32(to + 4 * k, vmulq_f32(scale[k], v[k]));
        }
    }
}

void neon_unit_rows_q8_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    unit_rows_int(w, width, first, last, units, y, PLM_Q8_0);
}
void neon_unit_rows_q4_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) {
    unit_rows_int(w, width, first, last, units, y, PLM_Q4_0);
}

/* 64 outputs at a time, with fused steps; sixteen values a load, or gcc computes the address of every four anew. */
void neon_mix(const float *a, const uint8_t *which, int32_t count, const float *w, int32_t n, float *y) {
    int32_t o = 0;
    for (; o + 64 <= n; o += 64) {
        float32x4x4_t sum[4];
        for (int i = 0; i < 4; i++) sum[i] = vld1q_f32_x4(y + o + 16 * i);
        for (int32_t k = 0; k < count; k++)
            for (int i = 0; i < 4; i++) {
                float32x4x4_t row = vld1q_f32_x4(w + (int64_t)which[k] * n + o + 16 * i);
                for (int j = 0; j < 4; j++) sum[i].val[j] = vfmaq_n_f32(sum[i].val[j], row.val[j], a[k]);
            }
        for (int i = 0; i < 4; i++) vst1q_f32_x4(y + o + 16 * i, sum[i]);
    }
    for (int32_t k = 0; k < count && o < n; k++) neon_add(a[k], w + (int64_t)which[k] * n + o, n - o, y + o);
}

/* ---- the functions of each format ---- */

#define FLOAT_FORMAT(name, format)                                                                          \
    void neon_tile_##name(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,   \
                          int32_t stride) {                                                                 \
        tile_float(w, cols, x->f, tokens, y, stride, format);                                               \
    }                                                                                                       \
    float neon_row_##name(const uint8_t *w, int32_t cols, const plm_vectors *x) {                           \
        return row_float(w, cols, x->f, format);                                                            \
    }                                                                                                       \
    void neon_add_##name(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {            \
        add_float_rows(w, n, a, count, y, format);                                                          \
    }                                                                                                       \
    void neon_units_##name(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y,        \
                           const plm_ahead *next) {                                                         \
        (void)next;                                                                                         \
        units_float(w, width, a, units, y, format);                                                         \
    }                                                                                                       \
    void neon_unit_rows_##name(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, \
                               float *y) {                                                                  \
        unit_rows_float(w, width, first, last, units, y, format);                                           \
    }
FLOAT_FORMAT(f32, PLM_F32)
FLOAT_FORMAT(f16, PLM_F16)
FLOAT_FORMAT(bf16, PLM_BF16)
#undef FLOAT_FORMAT
