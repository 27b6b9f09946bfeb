/* Q4_K and Q6_K in registers of NEON. A set gives the products of four bytes a lane: `top` of signed bytes, `bottom` of
 * unsigned ones; a weight of 4 or 6 bits is both. superblocks.h says where the bytes lie, superblocks.c which steps in
 * floats all sets take. */
#ifndef PLM_NEON_SUPER_H
#define PLM_NEON_SUPER_H

#include "neon.h"

#define INLINED static inline __attribute__((always_inline)) /* so that `top` and `bottom` are no calls */

typedef int32x4_t top_of(int32x4_t sum, int8x16_t w, int8x16_t q);
typedef uint32x4_t bottom_of(uint32x4_t sum, uint8x16_t w, uint8x16_t q);

static inline uint8x16_t and_byte(uint8x16_t v, int byte) { return vandq_u8(v, vdupq_n_u8((uint8_t)byte)); }

/* The four quants whose bits share bytes: v[k] is those of part k of a half. */
static inline void quants_q6_k(uint8x16_t low, uint8x16_t next, uint8x16_t high, uint8x16_t *v) {
    v[0] = vorrq_u8(nibbles_low(low), and_byte(vshlq_n_u8(high, 4), 0x30));
    v[1] = vorrq_u8(nibbles_low(next), and_byte(vshlq_n_u8(high, 2), 0x30));
    v[2] = vorrq_u8(nibbles_high(low), and_byte(high, 0x30));
    v[3] = vorrq_u8(nibbles_high(next), and_byte(vshrq_n_u8(high, 2), 0x30));
}

/* The bytes of `n` activations. */
static inline void split_to(const int16_t *q, int n, uint8_t *top, uint8_t *bottom) {
    for (int i = 0; i < n; i += 16) {
        limbs l = split(q + i);
        vst1q_u8(top + i, vreinterpretq_u8_s8(l.top));
        vst1q_u8(bottom + i, l.bottom);
    }
}

/* Byte i of each lane as a float, unsigned or signed. */
static inline float32x4_t byte_of(uint8x16_t v, int i) {
    uint32x4_t wide = vshlq_u32(vreinterpretq_u32_u8(v), vdupq_n_s32(-8 * i));
    return vcvtq_f32_u32(vandq_u32(wide, vdupq_n_u32(255)));
}
static inline float32x4_t signed_byte_of(uint8x16_t v, int i) {
    int32x4_t high = vshlq_s32(vreinterpretq_s32_u8(v), vdupq_n_s32(24 - 8 * i));
    return vcvtq_f32_s32(vshrq_n_s32(high, 24));
}

/* y + float(sums) * (scale * x_scale). */
static inline float32x4_t add_part(float32x4_t y, int32x4_t sums, float32x4_t scale, float x_scale) {
    return vaddq_f32(y, vmulq_f32(vcvtq_f32_s32(sums), vmulq_n_f32(scale, x_scale)));
}

/* ---- tiles: four rows a register ---- */

/* Scales (row 0) and leasts (row 1) of parts 0..3 and 4..7 of four rows, and their d and dmin. */
typedef struct {
    uint8x16_t six[2][2];
    float32x4_t half[2];
} rows_q4_k;

static inline rows_q4_k rows_at(const uint8_t *w) {
    uint16x4x2_t halves = vld2_u16((const void *)w);
    uint8x16_t t0 = vld1q_u8(w + 64), t1 = vld1q_u8(w + 128), t2 = vld1q_u8(w + 192);
    rows_q4_k s;
    for (int i = 0; i < 2; i++) s.half[i] = vcvt_f32_f16(vreinterpret_f16_u16(halves.val[i]));
    s.six[0][0] = and_byte(t0, 63), s.six[1][0] = and_byte(t1, 63);
    s.six[0][1] = vorrq_u8(nibbles_low(t2), and_byte(vshrq_n_u8(t0, 2), 0x30));
    s.six[1][1] = vorrq_u8(nibbles_high(t2), and_byte(vshrq_n_u8(t1, 2), 0x30));
    return s;
}

INLINED void one_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y, top_of *add_top,
                      bottom_of *add_bottom) {
    float32x4_t out[4], less[4];
    for (int r = 0; r < 4; r++) out[r] = less[r] = vdupq_n_f32(0.0f);
    for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS, w += PLM_TILE_Q4_K) {
        rows_q4_k rows[4];
        for (int r = 0; r < 4; r++) rows[r] = rows_at(w + 16 * r);
        for (int p = 0; p < 4; p++) { /* parts 2 p in the low, 2 p + 1 in the high nibbles */
            uint8_t top[2 * PLM_BLOCK], bottom[2 * PLM_BLOCK];
            int32x4_t tops[2][4];
            uint32x4_t bottoms[2][4];
            split_to(x->q + (b + 2 * p) * PLM_BLOCK, 2 * PLM_BLOCK, top, bottom);
            for (int i = 0; i < 8; i++) tops[i / 4][i % 4] = vdupq_n_s32(0), bottoms[i / 4][i % 4] = vdupq_n_u32(0);
            for (int g = 0; g < 8; g++)
                for (int k = 0; k < 2; k++) {
                    int8x16_t q_top = as_signed(four_bytes(top + PLM_BLOCK * k + 4 * g));
                    uint8x16_t q_bottom = four_bytes(bottom + PLM_BLOCK * k + 4 * g);
                    for (int r = 0; r < 4; r++) {
                        uint8x16_t v = vld1q_u8(w + 256 + 512 * p + 64 * g + 16 * r);
                        v = k ? nibbles_high(v) : nibbles_low(v);
                        tops[k][r] = add_top(tops[k][r], as_signed(v), q_top);
                        bottoms[k][r] = add_bottom(bottoms[k][r], v, q_bottom);
                    }
                }
            for (int k = 0; k < 2; k++) {
                const int j = 2 * p + k;
                const float factor = (float)x->sum[b + j] * x->scale[b + j];
                for (int r = 0; r < 4; r++) {
                    float32x4_t scale = vmulq_f32(rows[r].half[0], byte_of(rows[r].six[0][j / 4], j % 4));
                    float32x4_t least = vmulq_f32(rows[r].half[1], byte_of(rows[r].six[1][j / 4], j % 4));
                    out[r] = add_part(out[r], join(tops[k][r], bottoms[k][r]), scale, x->scale[b + j]);
                    less[r] = vaddq_f32(less[r], vmulq_n_f32(least, factor));
                }
            }
        }
    }
    for (int r = 0; r < 4; r++) vst1q_f32(y + 4 * r, vsubq_f32(out[r], less[r]));
}

/* -32 times the sum of 16 activations. */
static inline int32_t start_q6_k(const int16_t *q) {
    return -32 * (vaddlvq_s16(vld1q_s16(q)) + vaddlvq_s16(vld1q_s16(q + 8)));
}

INLINED void one_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y, top_of *add_top,
                      bottom_of *add_bottom) {
    float32x4_t out[4];
    for (int r = 0; r < 4; r++) out[r] = vdupq_n_f32(0.0f);
    for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS, w += PLM_TILE_Q6_K) {
        uint8_t top[PLM_SUPER], bottom[PLM_SUPER];
        int32_t start[2 * PLM_PARTS];
        split_to(x->q + b * PLM_BLOCK, PLM_SUPER, top, bottom);
        for (int j = 0; j < 2 * PLM_PARTS; j++) start[j] = start_q6_k(x->q + b * PLM_BLOCK + 16 * j);
        for (int h = 0; h < 2; h++)
            for (int r = 0; r < 4; r++) {
                const uint8_t *low = w + 288 + 1024 * h + 16 * r, *high = w + 2336 + 512 * h + 16 * r;
                const float32x4_t d = scales4(w + 8 * r);
                int32x4_t tops[4][2];
                uint32x4_t bottoms[4][2];
                for (int i = 0; i < 8; i++) {
                    tops[i / 2][i % 2] = vdupq_n_s32(0);
                    bottoms[i / 2][i % 2] = vdupq_n_u32((uint32_t)start[8 * h + i]);
                }
                for (int g = 0; g < 8; g++) {
                    uint8x16_t v[4];
                    quants_q6_k(vld1q_u8(low + 64 * g), vld1q_u8(low + 64 * (g + 8)), vld1q_u8(high + 64 * g), v);
                    for (int k = 0; k < 4; k++) {
                        const int at = 4 * PLM_BLOCK * h + PLM_BLOCK * k + 4 * g;
                        tops[k][g / 4] = add_top(tops[k][g / 4], as_signed(v[k]), as_signed(four_bytes(top + at)));
                        bottoms[k][g / 4] = add_bottom(bottoms[k][g / 4], v[k], four_bytes(bottom + at));
                    }
                }
                for (int i = 0; i < 8; i++) {
                    uint8x16_t scales = vld1q_u8(w + 32 + 64 * (2 * h + i / 4) + 16 * r);
                    out[r] = add_part(out[r], join(tops[i / 2][i % 2], bottoms[i / 2][i % 2]),
                                      vmulq_f32(d, signed_byte_of(scales, i % 4)), x->scale[b + 4 * h + i / 2]);
                }
            }
    }
    for (int r = 0; r < 4; r++) vst1q_f32(y + 4 * r, out[r]);
}

/* ---- plain rows ---- */

static inline float add_in_order(float y, float32x4_t values) {
    float four[4];
    vst1q_f32(four, values);
    for (int i = 0; i < 4; i++) y += four[i];
    return y;
}

INLINED int32x4_t sums_of_16(uint8x16_t v, const int16_t *q, top_of *add_top, bottom_of *add_bottom) {
    limbs l = split(q);
    return join(add_top(vdupq_n_s32(0), as_signed(v), l.top), add_bottom(vdupq_n_u32(0), v, l.bottom));
}

INLINED float row_of_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, top_of *add_top,
                          bottom_of *add_bottom) {
    float y = 0.0f, less = 0.0f;
    for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS, w += PLM_Q4_K_BYTES)
        for (int at = 0; at < PLM_PARTS; at += 4) {
            int32x4_t s[4];
            float scale[4], least[4];
            for (int i = 0; i < 4; i++) {
                const int j = at + i;
                const uint8_t *bytes = w + 16 + j / 2 * 32;
                const int16_t *q = x->q + (b + j) * PLM_BLOCK;
                uint8x16_t v0 = vld1q_u8(bytes), v1 = vld1q_u8(bytes + 16);
                v0 = j % 2 ? nibbles_high(v0) : nibbles_low(v0), v1 = j % 2 ? nibbles_high(v1) : nibbles_low(v1);
                s[i] = vaddq_s32(sums_of_16(v0, q, add_top, add_bottom), sums_of_16(v1, q + 16, add_top, add_bottom));
                scale[i] = scale_at(w) * (float)plm_scale_q4_k(w + 4, j);
                least[i] = scale_at(w + 2) * (float)plm_least_q4_k(w + 4, j);
            }
            const float32x4_t x_scale = vld1q_f32(x->scale + b + at);
            float32x4_t sums = vcvtq_f32_s32(sums_of_four(s[0], s[1], s[2], s[3]));
            y = add_in_order(y, vmulq_f32(sums, vmulq_f32(vld1q_f32(scale), x_scale)));
            float32x4_t x_sum = vmulq_f32(vcvtq_f32_s32(vld1q_s32(x->sum + b + at)), x_scale);
            less = add_in_order(less, vmulq_f32(vld1q_f32(least), x_sum));
        }
    return y - less;
}

INLINED float row_of_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, top_of *add_top,
                          bottom_of *add_bottom) {
    float y = 0.0f;
    for (int32_t b = 0; b < cols / PLM_BLOCK; b += PLM_PARTS, w += PLM_Q6_K_BYTES)
        for (int h = 0; h < 2; h++) {
            uint8x16_t v[2][4]; /* values 0..15 and 16..31 of the four parts */
            for (int s = 0; s < 2; s++)
                quants_q6_k(vld1q_u8(w + 64 * h + 16 * s), vld1q_u8(w + 64 * h + 32 + 16 * s),
                            vld1q_u8(w + 128 + 32 * h + 16 * s), v[s]);
            for (int at = 0; at < 8; at += 4) { /* parts of 16 */
                int32x4_t s[4];
                int32_t start[4];
                float factor[4];
                for (int i = 0; i < 4; i++) {
                    const int j = at + i;
                    const int16_t *q = x->q + (b + 4 * h) * PLM_BLOCK + 16 * j;
                    s[i] = sums_of_16(v[j % 2][j / 2], q, add_top, add_bottom);
                    start[i] = start_q6_k(q);
                    factor[i] = (scale_at(w + 208) * (float)(int8_t)w[192 + 8 * h + j]) * x->scale[b + 4 * h + j / 2];
                }
                int32x4_t sums = vaddq_s32(sums_of_four(s[0], s[1], s[2], s[3]), vld1q_s32(start));
                y = add_in_order(y, vmulq_f32(vcvtq_f32_s32(sums), vld1q_f32(factor)));
            }
        }
    return y;
}

/* ---- groups of units: four of them a step, byte by byte beside each other ---- */

static inline uint8x16x4_t four_beside(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
    uint8x16x2_t first = vzipq_u8(a, b), second = vzipq_u8(c, d);
    uint8x16x4_t v;
    for (int i = 0; i < 2; i++) {
        uint16x8_t low = vreinterpretq_u16_u8(first.val[i]), high = vreinterpretq_u16_u8(second.val[i]);
        v.val[2 * i] = vreinterpretq_u8_u16(vzip1q_u16(low, high));
        v.val[2 * i + 1] = vreinterpretq_u8_u16(vzip2q_u16(low, high));
    }
    return v;
}

/* The quants of 32 outputs of a unit's row: outputs 0..15, then 16..31. */
static inline void unit_of_q6_k(const uint8_t *nibbles, const uint8_t *high, uint8x16_t *v) {
    uint8x8_t eight = vld1_u8(high);
    uint8x16_t bytes = vld1q_u8(nibbles), bits = vcombine_u8(eight, vshr_n_u8(eight, 2));
    v[0] = vorrq_u8(nibbles_low(bytes), and_byte(vshlq_n_u8(bits, 4), 0x30));
    v[1] = vorrq_u8(nibbles_high(bytes), and_byte(bits, 0x30));
}

/* Sums of 32 outputs, four a register, each beginning with `start`. six: Q6_K. */
INLINED void sum_units(const fired *f, int32_t width, int32_t o, int six, int32_t start, int32x4_t *sums,
                       top_of *add_top, bottom_of *add_bottom) {
    int32x4_t top[8];
    uint32x4_t bottom[8];
    for (int i = 0; i < 8; i++) top[i] = vdupq_n_s32(0), bottom[i] = vdupq_n_u32((uint32_t)start);
    for (int32_t k = 0; k < f->count; k += 4) {
        uint8x16_t v[4][2];
        int8x16_t q_top = as_signed(four_bytes(f->top + k));
        uint8x16_t q_bottom = four_bytes(f->bottom + k);
        for (int i = 0; i < 4; i++) {
            const uint8_t *row = f->row[k + i];
            if (six) {
                unit_of_q6_k(row + o / 2, row + width / 2 + o / 4, v[i]);
            } else {
                uint8x16_t bytes = vld1q_u8(row + o / 2);
                v[i][0] = nibbles_low(bytes), v[i][1] = nibbles_high(bytes);
            }
        }
        for (int n = 0; n < 2; n++) {
            uint8x16x4_t four = four_beside(v[0][n], v[1][n], v[2][n], v[3][n]);
            for (int i = 0; i < 4; i++) {
                top[4 * n + i] = add_top(top[4 * n + i], as_signed(four.val[i]), q_top);
                bottom[4 * n + i] = add_bottom(bottom[4 * n + i], four.val[i], q_bottom);
            }
        }
    }
    for (int i = 0; i < 8; i++) sums[i] = join(top[i], bottom[i]);
}

/* Four bytes as floats. */
static inline uint8x8_t four_at(const uint8_t *p) { return vget_low_u8(four_bytes(p)); }
static inline float32x4_t floats_of(uint8x8_t v) {
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(v))));
}
static inline float32x4_t signed_floats_of(uint8x8_t v) {
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(v)))));
}

/* d * scale and dmin * least of part `part` for outputs o .. o + 3. */
static inline void outputs_q4_k(const uint8_t *super, int32_t width, int32_t part, int32_t o, float32x4_t *scale,
                                float32x4_t *least) {
    const uint8_t *twelve = super + 4 * (int64_t)width + o;
    const int64_t row = width;
    uint8x8_t s, m, upper = vdup_n_u8(0x30);
    if (part < 4) {
        s = vand_u8(four_at(twelve + part * row), vdup_n_u8(63));
        m = vand_u8(four_at(twelve + (part + 4) * row), vdup_n_u8(63));
    } else {
        uint8x8_t both = four_at(twelve + (part + 4) * row);
        s = vorr_u8(vand_u8(both, vdup_n_u8(15)),
                    vand_u8(vshr_n_u8(four_at(twelve + (part - 4) * row), 2), upper));
        m = vorr_u8(vshr_n_u8(both, 4), vand_u8(vshr_n_u8(four_at(twelve + part * row), 2), upper));
    }
    *scale = vmulq_f32(scales4(super + 2 * (int64_t)o), floats_of(s));
    *least = vmulq_f32(scales4(super + 2 * (row + o)), floats_of(m));
}

/* d * scale of Q6_K for outputs o .. o + 3; `sixteen`: which 16 of the 256 units. */
static inline float32x4_t outputs_q6_k(const uint8_t *super, int32_t width, int32_t sixteen, int32_t o) {
    uint8x8_t scale = four_at(super + (int64_t)(2 + sixteen) * width + o);
    return vmulq_f32(scales4(super + 2 * (int64_t)o), signed_floats_of(scale));
}

INLINED void part_of_q4_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y,
                          top_of *add_top, bottom_of *add_bottom) {
    fired f;
    if (!neon_find_fired(plm_part_rows_at(super, PLM_Q4_K, width, part), width / 2, a, &f)) return;
    const float less = (float)f.sum * f.scale;
    for (int32_t o = 0; o < width; o += PLM_BLOCK) {
        int32x4_t sums[8];
        sum_units(&f, width, o, 0, 0, sums, add_top, add_bottom);
        for (int i = 0; i < 8; i++) {
            float *at = y + o + 4 * i;
            float32x4_t scale, least;
            outputs_q4_k(super, width, part, o + 4 * i, &scale, &least);
            float32x4_t value = add_part(vld1q_f32(at), sums[i], scale, f.scale);
            vst1q_f32(at, vsubq_f32(value, vmulq_n_f32(least, less)));
        }
    }
}

/* The units 16 h .. 16 h + 15 of those that fired, filled up to a multiple of four. */
static inline void half_of_fired(const fired *all, const uint8_t *rows, int64_t bytes, int h, fired *f) {
    f->count = f->sum = 0;
    for (int32_t k = 0; k < all->count; k++) {
        if ((all->row[k] >= rows + 16 * bytes) != h) continue;
        f->sum += all->q[k];
        f->row[f->count] = all->row[k];
        f->top[f->count] = all->top[k], f->bottom[f->count++] = all->bottom[k];
    }
    for (int32_t k = f->count; k % 4; k++) f->row[k] = f->row[f->count - 1], f->top[k] = f->bottom[k] = 0;
}

INLINED void part_of_q6_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y,
                          top_of *add_top, bottom_of *add_bottom) {
    const uint8_t *rows = plm_part_rows_at(super, PLM_Q6_K, width, part);
    const int64_t bytes = plm_unit_bytes_super(PLM_Q6_K, width);
    fired all, f[2];
    if (!neon_find_fired(rows, bytes, a, &all)) return;
    for (int h = 0; h < 2; h++) half_of_fired(&all, rows, bytes, h, &f[h]);
    for (int32_t o = 0; o < width; o += PLM_BLOCK)
        for (int h = 0; h < 2; h++) {
            int32x4_t sums[8];
            sum_units(&f[h], width, o, 1, -32 * f[h].sum, sums, add_top, add_bottom);
            for (int i = 0; i < 8; i++) {
                float *at = y + o + 4 * i;
                float32x4_t scale = outputs_q6_k(super, width, 2 * part + h, o + 4 * i);
                vst1q_f32(at, add_part(vld1q_f32(at), sums[i], scale, all.scale));
            }
        }
}

#endif
