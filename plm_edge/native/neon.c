/* ARMv8.0 NEON, which every 64-bit ARM CPU has (Raspberry Pi 4). Integer formats and everything that works value by
 * value give the bits of the scalar set: the sums of a block are exact and the float steps are the same ones in the
 * same order. Only `tile` and `row` of float formats and `dot` add in another order, with fused steps. */
#include "neon.h"

/* ---- values of float formats, four at a time ---- */

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

/* ---- tiles: 16 rows interleaved, 4 consecutive values each ---- */

static inline void tile_float(const uint8_t *w, int32_t cols, const float *x, float *y, int format) {
    const int size = size_of(format);
    float32x4_t sum[PLM_TILE];
    for (int r = 0; r < PLM_TILE; r++) sum[r] = vdupq_n_f32(0.0f);
    for (int32_t c = 0; c < cols; c += 4, w += 64 * size) {
        float32x4_t four = cols - c >= 4 ? vld1q_f32(x + c) : load_end(x + c, cols - c, PLM_F32);
        for (int r = 0; r < PLM_TILE; r++) sum[r] = vfmaq_f32(sum[r], load4(w + 4 * r * size, format), four);
    }
    for (int r = 0; r < PLM_TILE; r += 4)
        vst1q_f32(y + r, vpaddq_f32(vpaddq_f32(sum[r], sum[r + 1]), vpaddq_f32(sum[r + 2], sum[r + 3])));
}

void neon_tile_f32(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++) tile_float(w, cols, x->f + t * cols, y + t * stride, PLM_F32);
}
void neon_tile_f16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++) tile_float(w, cols, x->f + t * cols, y + t * stride, PLM_F16);
}
void neon_tile_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int64_t t = 0; t < tokens; t++) tile_float(w, cols, x->f + t * cols, y + t * stride, PLM_BF16);
}

/* A register for each row: four sums, which the block's end adds. */
static void one_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y) {
    float32x4_t sums[4];
    for (int r = 0; r < 4; r++) sums[r] = vdupq_n_f32(0.0f);
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 544) {
        int32x4_t sum[PLM_TILE];
        for (int r = 0; r < PLM_TILE; r++) sum[r] = vdupq_n_s32(0);
        for (int g = 0; g < 8; g++) {
            int16x4_t q = vld1_s16(x->q + b * PLM_BLOCK + 4 * g);
            for (int r = 0; r < PLM_TILE; r += 4) {
                int8x16_t v = as_signed(vld1q_u8(w + 32 + 64 * g + 4 * r));
                int16x8_t v0 = vmovl_s8(vget_low_s8(v)), v1 = vmovl_high_s8(v);
                sum[r] = vmlal_s16(sum[r], vget_low_s16(v0), q);
                sum[r + 1] = vmlal_high_s16(sum[r + 1], v0, vcombine_s16(q, q));
                sum[r + 2] = vmlal_s16(sum[r + 2], vget_low_s16(v1), q);
                sum[r + 3] = vmlal_high_s16(sum[r + 3], v1, vcombine_s16(q, q));
            }
        }
        for (int r = 0; r < 4; r++) {
            const int32x4_t *s = sum + 4 * r;
            sums[r] = add_scaled(sums[r], sums_of_four(s[0], s[1], s[2], s[3]), w + 8 * r, x->scale[b]);
        }
    }
    for (int r = 0; r < 4; r++) vst1q_f32(y + 4 * r, sums[r]);
}

static void tile_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    each_token(one_q8_0, w, cols, x, tokens, y, stride);
}

/* Products of two bytes fit 16 bits: sixteen of each limb can be added, 16 * 15 * 128 = 30,720 and
 * 16 * 15 * 255 = 61,200. */
typedef struct {
    int16x8_t top[2];
    uint16x8_t bottom[2];
} short_sums;

static inline short_sums no_sums(void) {
    return (short_sums){{vdupq_n_s16(0), vdupq_n_s16(0)}, {vdupq_n_u16(0), vdupq_n_u16(0)}};
}

static inline short_sums add_products(short_sums sum, uint8x16_t v, int8x16_t top, uint8x16_t bottom) {
    int8x16_t s = as_signed(v);
    sum.top[0] = vmlal_s8(sum.top[0], vget_low_s8(s), vget_low_s8(top));
    sum.top[1] = vmlal_high_s8(sum.top[1], s, top);
    sum.bottom[0] = vmlal_u8(sum.bottom[0], vget_low_u8(v), vget_low_u8(bottom));
    sum.bottom[1] = vmlal_high_u8(sum.bottom[1], v, bottom);
    return sum;
}

static void one_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y) {
    float32x4_t sums[4];
    for (int r = 0; r < 4; r++) sums[r] = vdupq_n_f32(0.0f);
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 288) {
        uint8_t top[PLM_BLOCK], bottom[PLM_BLOCK];
        for (int i = 0; i < PLM_BLOCK; i += 16) {
            limbs q = split(x->q + b * PLM_BLOCK + i);
            vst1q_u8(top + i, vreinterpretq_u8_s8(q.top));
            vst1q_u8(bottom + i, q.bottom);
        }
        short_sums sum[4]; /* of four rows each: eight products a lane */
        for (int r = 0; r < 4; r++) sum[r] = no_sums();
#pragma GCC unroll 1 /* unrolled, the sums no longer fit into registers */
        for (int g = 0; g < 4; g++) {
            int8x16_t top_low = as_signed(four_bytes(top + 4 * g)), top_high = as_signed(four_bytes(top + 16 + 4 * g));
            uint8x16_t bottom_low = four_bytes(bottom + 4 * g), bottom_high = four_bytes(bottom + 16 + 4 * g);
            for (int r = 0; r < 4; r++) {
                uint8x16_t v = vld1q_u8(w + 32 + 64 * g + 16 * r);
                sum[r] = add_products(sum[r], nibbles_low(v), top_low, bottom_low);
                sum[r] = add_products(sum[r], nibbles_high(v), top_high, bottom_high);
            }
        }
        uint32x4_t start = vdupq_n_u32((uint32_t)(-8 * x->sum[b]));
        for (int r = 0; r < 4; r++) { /* sixteen products a lane, then thirty-two */
            int32x4_t tops = vpaddlq_s16(vpaddq_s16(sum[r].top[0], sum[r].top[1]));
            uint32x4_t bottoms = vpadalq_u16(start, vpaddq_u16(sum[r].bottom[0], sum[r].bottom[1]));
            sums[r] = add_scaled(sums[r], join(tops, bottoms), w + 8 * r, x->scale[b]);
        }
    }
    for (int r = 0; r < 4; r++) vst1q_f32(y + 4 * r, sums[r]);
}

static void tile_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    each_token(one_q4_0, w, cols, x, tokens, y, stride);
}

/* ---- plain ggml rows ---- */

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

float neon_row_f32(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_float(w, cols, x->f, PLM_F32); }
float neon_row_f16(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_float(w, cols, x->f, PLM_F16); }
float neon_row_bf16(const uint8_t *w, int32_t cols, const plm_vectors *x) { return row_float(w, cols, x->f, PLM_BF16); }
float neon_dot(const float *a, const float *b, int32_t n) { return row_float((const void *)a, n, b, PLM_F32); }

static inline int32x4_t products_q8_0(const uint8_t *w, const int16_t *q) {
    int32x4_t even = vdupq_n_s32(0), odd = even;
    for (int i = 0; i < PLM_BLOCK; i += 8) {
        int16x8_t v = vmovl_s8(vreinterpret_s8_u8(vld1_u8(w + 2 + i))), x = vld1q_s16(q + i);
        even = vmlal_s16(even, vget_low_s16(v), vget_low_s16(x));
        odd = vmlal_high_s16(odd, v, x);
    }
    return vaddq_s32(even, odd);
}

static inline int32x4_t products_q4_0(const uint8_t *w, const int16_t *q) {
    uint8x16_t v = vld1q_u8(w + 2);
    limbs first = split(q), second = split(q + 16);
    short_sums sum = add_products(no_sums(), nibbles_low(v), first.top, first.bottom);
    sum = add_products(sum, nibbles_high(v), second.top, second.bottom);
    return join(vpaddlq_s16(vaddq_s16(sum.top[0], sum.top[1])), vpaddlq_u16(vaddq_u16(sum.bottom[0], sum.bottom[1])));
}

float neon_row_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_int(w, cols, x, PLM_Q8_0, products_q8_0);
}
static float row_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_int(w, cols, x, PLM_Q4_0, products_q4_0);
}

/* y[0..4) += a * values. */
static inline void add4(float *y, float a, float32x4_t values) {
    vst1q_f32(y, vaddq_f32(vld1q_f32(y), vmulq_n_f32(values, a)));
}

static inline void add_float(const uint8_t *w, int32_t n, float a, float *y, int format) {
    const int size = size_of(format);
    int32_t c = 0;
    for (; c + 4 <= n; c += 4) add4(y + c, a, load4(w + (int64_t)c * size, format));
    if (c == n) return;
    float end[4];
    vst1q_f32(end, load_end(y + c, n - c, PLM_F32));
    add4(end, a, load_end(w + (int64_t)c * size, n - c, format));
    memcpy(y + c, end, (size_t)(n - c) * sizeof *y);
}

void neon_add_f32(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    for (int32_t i = 0; i < count; i++) add_float(w + i * plm_row_bytes(PLM_F32, n), n, a[i], y, PLM_F32);
}
void neon_add_f16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    for (int32_t i = 0; i < count; i++) add_float(w + i * plm_row_bytes(PLM_F16, n), n, a[i], y, PLM_F16);
}
void neon_add_bf16(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    for (int32_t i = 0; i < count; i++) add_float(w + i * plm_row_bytes(PLM_BF16, n), n, a[i], y, PLM_BF16);
}
void neon_add(float a, const float *x, int32_t n, float *y) { add_float((const void *)x, n, a, y, PLM_F32); }

/* y[0..16) += d * 16 signed bytes. */
static inline void add_bytes(float *y, float d, int8x16_t bytes) {
    int16x8_t v0 = vmovl_s8(vget_low_s8(bytes)), v1 = vmovl_high_s8(bytes);
    add4(y, d, vcvtq_f32_s32(vmovl_s16(vget_low_s16(v0))));
    add4(y + 4, d, vcvtq_f32_s32(vmovl_high_s16(v0)));
    add4(y + 8, d, vcvtq_f32_s32(vmovl_s16(vget_low_s16(v1))));
    add4(y + 12, d, vcvtq_f32_s32(vmovl_high_s16(v1)));
}

static void add_q8_0(const uint8_t *w, int32_t n, float a, float *y) {
    for (; n > 0; n -= PLM_BLOCK, w += 34, y += PLM_BLOCK) {
        float d = a * scale_at(w);
        for (int i = 0; i < PLM_BLOCK; i += 16) add_bytes(y + i, d, as_signed(vld1q_u8(w + 2 + i)));
    }
}

static void add_q4_0(const uint8_t *w, int32_t n, float a, float *y) {
    const int8x16_t eight = vdupq_n_s8(8);
    for (; n > 0; n -= PLM_BLOCK, w += 18, y += PLM_BLOCK) {
        float d = a * scale_at(w);
        uint8x16_t bytes = vld1q_u8(w + 2);
        add_bytes(y, d, vsubq_s8(as_signed(nibbles_low(bytes)), eight));
        add_bytes(y + 16, d, vsubq_s8(as_signed(nibbles_high(bytes)), eight));
    }
}

void neon_add_q8_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    for (int32_t i = 0; i < count; i++) add_q8_0(w + i * plm_row_bytes(PLM_Q8_0, n), n, a[i], y);
}
void neon_add_q4_0(const uint8_t *w, int32_t n, const float *a, int32_t count, float *y) {
    for (int32_t i = 0; i < count; i++) add_q4_0(w + i * plm_row_bytes(PLM_Q4_0, n), n, a[i], y);
}

void neon_widen(const uint16_t *f16, int32_t n, float *y) {
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, load4(f16 + i, PLM_F16));
    for (; i < n; i++) y[i] = plm_f16(f16[i]);
}

void neon_pack(const float *x, int32_t cols, float most_q, int16_t *q, float *scale, int32_t *sum) {
    const float32x4_t limit = vdupq_n_f32(most_q);
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, x += PLM_BLOCK, q += PLM_BLOCK) {
        float32x4_t v[8], most4 = vdupq_n_f32(0.0f), whole4 = most4;
        for (int i = 0; i < 8; i++) {
            v[i] = vld1q_f32(x + 4 * i);
            most4 = vmaxq_f32(most4, vabsq_f32(v[i]));
            whole4 = vaddq_f32(whole4, vsubq_f32(v[i], v[i])); /* 0, or NaN where a value is NaN or infinite */
        }
        float most = vmaxvq_f32(most4), whole = vaddvq_f32(whole4);
        scale[b] = most / most_q + whole;
        if (sum) sum[b] = 0;
        if (!(most > 1e-30f && whole == 0.0f)) {
            memset(q, 0, PLM_BLOCK * sizeof *q);
            continue;
        }
        float inverse = most_q / most;
        int32x4_t total = vdupq_n_s32(0);
        for (int i = 0; i < 8; i++) {
            float32x4_t scaled = vmaxq_f32(vmulq_n_f32(v[i], inverse), vnegq_f32(limit));
            int32x4_t whole_numbers = vcvtnq_s32_f32(vminq_f32(scaled, limit));
            vst1_s16(q + 4 * i, vmovn_s32(whole_numbers));
            total = vaddq_s32(total, whole_numbers);
        }
        if (sum) sum[b] = vaddvq_s32(total);
    }
}

/* ---- groups of 32 units ---- */

static inline void units_float(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, int format) {
    const int64_t size = size_of(format);
    const uint8_t *row[PLM_BLOCK];
    float factor[PLM_BLOCK];
    int32_t count = 0, o = 0;
    for (int32_t n = 0; n < units; n++) {
        if (a[n] == 0.0f) continue; /* a NaN is not 0: it flows on and shows */
        row[count] = w + n * (width * size);
        factor[count++] = a[n];
    }
    for (; o + 16 <= width; o += 16) {
        float32x4_t sum[4];
        for (int i = 0; i < 4; i++) sum[i] = vld1q_f32(y + o + 4 * i);
        for (int32_t k = 0; k < count; k++)
            for (int i = 0; i < 4; i++)
                sum[i] = vaddq_f32(sum[i], vmulq_n_f32(load4(row[k] + (o + 4 * i) * size, format), factor[k]));
        for (int i = 0; i < 4; i++) vst1q_f32(y + o + 4 * i, sum[i]);
    }
    for (int32_t k = 0; k < count; k++) add_float(row[k] + o * size, width - o, factor[k], y + o, format);
}

void neon_units_f32(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    units_float(w, width, a, units, y, PLM_F32);
}
void neon_units_f16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    units_float(w, width, a, units, y, PLM_F16);
}
void neon_units_bf16(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    units_float(w, width, a, units, y, PLM_BF16);
}

int32_t neon_find_fired(const uint8_t *rows, int64_t bytes, const float *a, fired *f) {
    int16_t q[PLM_BLOCK];
    neon_pack(a, PLM_BLOCK, PLM_LARGEST, q, &f->scale, &f->sum);
    f->count = f->sum_bottom = 0;
    for (int32_t n = 0; n < PLM_BLOCK; n++) {
        if (a[n] == 0.0f) continue;
        f->row[f->count] = rows + n * bytes;
        f->q[f->count] = q[n];
        f->top[f->count] = (uint8_t)(q[n] >> 8);
        f->sum_bottom += f->bottom[f->count++] = (uint8_t)q[n];
    }
    if (!f->count) return 0;
    for (int32_t k = f->count; k % 4; k++) {
        f->row[k] = f->row[f->count - 1];
        f->q[k] = f->top[k] = f->bottom[k] = 0;
    }
    return f->count;
}

static void units_q8_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    fired f;
    (void)units; /* integer groups are whole */
    if (!neon_find_fired(w + 2 * (int64_t)width, width, a, &f)) return;
    for (int32_t o = 0; o < width; o += PLM_BLOCK) {
        int32x4_t sum[8];
        for (int i = 0; i < 8; i++) sum[i] = vdupq_n_s32(0);
        for (int32_t k = 0; k < f.count; k++) {
            int16x8_t q = vdupq_n_s16(f.q[k]);
            for (int i = 0; i < 8; i += 4) {
                int8x16_t v = as_signed(vld1q_u8(f.row[k] + o + 4 * i));
                int16x8_t v0 = vmovl_s8(vget_low_s8(v)), v1 = vmovl_high_s8(v);
                sum[i] = vmlal_s16(sum[i], vget_low_s16(v0), vget_low_s16(q));
                sum[i + 1] = vmlal_high_s16(sum[i + 1], v0, q);
                sum[i + 2] = vmlal_s16(sum[i + 2], vget_low_s16(v1), vget_low_s16(q));
                sum[i + 3] = vmlal_high_s16(sum[i + 3], v1, q);
            }
        }
        for (int i = 0; i < 8; i++) add_sums(y + o + 4 * i, sum[i], w + 2 * (int64_t)(o + 4 * i), f.scale);
    }
}

/* sum[i] + the sums of outputs 8 i .. 8 i + 7, four a register. */
static inline void add_short_sums(int32x4_t *sum, const short_sums *s) {
    for (int i = 0; i < 2; i++) {
        sum[2 * i] = vaddq_s32(sum[2 * i], vshll_n_s16(vget_low_s16(s->top[i]), 8));
        sum[2 * i + 1] = vaddq_s32(sum[2 * i + 1], vshll_n_s16(vget_high_s16(s->top[i]), 8));
        uint32x4_t first = vmovl_u16(vget_low_u16(s->bottom[i])), second = vmovl_high_u16(s->bottom[i]);
        sum[2 * i] = vaddq_s32(sum[2 * i], vreinterpretq_s32_u32(first));
        sum[2 * i + 1] = vaddq_s32(sum[2 * i + 1], vreinterpretq_s32_u32(second));
    }
}

static void units_q4_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    fired f;
    (void)units;
    if (!neon_find_fired(w + 2 * (int64_t)width, width / 2, a, &f)) return;
    for (int32_t o = 0; o < width; o += PLM_BLOCK) {
        int32x4_t sum[8];
        for (int i = 0; i < 8; i++) sum[i] = vdupq_n_s32(-8 * f.sum);
        for (int32_t from = 0; from < f.count; from += 16) { /* as many as 16-bit sums can hold */
            int32_t to = f.count < from + 16 ? f.count : from + 16;
            short_sums low = no_sums(), high = low;
            for (int32_t k = from; k < to; k++) {
                uint8x16_t v = vld1q_u8(f.row[k] + o / 2), bottom = vdupq_n_u8(f.bottom[k]);
                int8x16_t top = as_signed(vdupq_n_u8(f.top[k]));
                low = add_products(low, nibbles_low(v), top, bottom);
                high = add_products(high, nibbles_high(v), top, bottom);
            }
            add_short_sums(sum, &low);
            add_short_sums(sum + 4, &high);
        }
        for (int i = 0; i < 8; i++) add_sums(y + o + 4 * i, sum[i], w + 2 * (int64_t)(o + 4 * i), f.scale);
    }
}

void neon_unit_rows_f32(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) { plm_scalar.unit_rows[PLM_F32](w, width, first, last, units, y); }
void neon_unit_rows_f16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) { plm_scalar.unit_rows[PLM_F16](w, width, first, last, units, y); }
void neon_unit_rows_bf16(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) { plm_scalar.unit_rows[PLM_BF16](w, width, first, last, units, y); }
void neon_unit_rows_q8_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) { plm_scalar.unit_rows[PLM_Q8_0](w, width, first, last, units, y); }
void neon_unit_rows_q4_0(const uint8_t *w, int32_t width, int32_t first, int32_t last, int32_t units, float *y) { plm_scalar.unit_rows[PLM_Q4_0](w, width, first, last, units, y); }
void neon_mix(const float *a, const uint8_t *which, int32_t count, const float *w, int32_t n, float *y) { plm_scalar.mix(a, which, count, w, n, y); }
void neon_pack_halves(const uint16_t *x, int32_t cols, float most, int16_t *q, float *scale) { plm_scalar.pack_halves(x, cols, most, q, scale); }
void neon_weave(const int16_t *x, int32_t lane, int32_t column, int32_t lanes, int32_t columns, int16_t *panel) { plm_scalar.weave(x, lane, column, lanes, columns, panel); }
void neon_panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride, const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) { plm_scalar.panel(panel, scales, blocks, x, x_stride, x_scale, x_blocks, rows, y, stride); }
void neon_weigh(const int16_t *a, const int16_t *b, int32_t n, int16_t *y) { plm_scalar.weigh(a, b, n, y); }
void neon_exps(float *x, int32_t n) { plm_scalar.exps(x, n); }

const plm_isa plm_neon = {
    .name = "neon",
    .tile = {neon_tile_f32, neon_tile_f16, neon_tile_bf16, tile_q8_0, tile_q4_0},
    .row = {neon_row_f32, neon_row_f16, neon_row_bf16, neon_row_q8_0, row_q4_0},
    .add_rows = {neon_add_f32, neon_add_f16, neon_add_bf16, neon_add_q8_0, neon_add_q4_0},
    .units = {neon_units_f32, neon_units_f16, neon_units_bf16, units_q8_0, units_q4_0},
    .unit_rows = {neon_unit_rows_f32, neon_unit_rows_f16, neon_unit_rows_bf16, neon_unit_rows_q8_0, neon_unit_rows_q4_0},
    .mix = neon_mix,
    .pack = neon_pack,
    .pack_halves = neon_pack_halves,
    .weave = neon_weave,
    .panel = neon_panel,
    .weigh = neon_weigh,
    .exps = neon_exps,
    .dot = neon_dot,
    .add = neon_add,
    .widen = neon_widen,
};
