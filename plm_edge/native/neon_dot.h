/* Units that fired on sets with dot products: four of them a step. Only for files compiled for such a set. */
#ifndef PLM_NEON_DOT_H
#define PLM_NEON_DOT_H

#include "neon.h"

/* 16 bytes at `at` of four rows, byte by byte beside each other: register i has bytes 4 i .. 4 i + 3 of all four. */
static inline uint8x16x4_t four_units(const uint8_t *const *row, int32_t at) {
    uint8x16x2_t first = vzipq_u8(vld1q_u8(row[0] + at), vld1q_u8(row[1] + at));
    uint8x16x2_t second = vzipq_u8(vld1q_u8(row[2] + at), vld1q_u8(row[3] + at));
    uint8x16x4_t v;
    for (int i = 0; i < 2; i++) {
        uint16x8_t a = vreinterpretq_u16_u8(first.val[i]), b = vreinterpretq_u16_u8(second.val[i]);
        v.val[2 * i] = vreinterpretq_u8_u16(vzip1q_u16(a, b));
        v.val[2 * i + 1] = vreinterpretq_u8_u16(vzip2q_u16(a, b));
    }
    return v;
}

/* sum + products of weights, raised by some number, with bottom bytes. */
typedef uint32x4_t bottoms_of(uint32x4_t sum, uint8x16_t v, uint8x16_t q);

static inline __attribute__((always_inline)) void dot_units_q8_0(const uint8_t *w, int32_t width, const float *a,
                                                                 float *y, const plm_ahead *next,
                                                                 int32_t raised_by, bottoms_of *bottoms) {
    fired f;
    if (!neon_find_fired(w + 2 * (int64_t)width, width, a, &f)) return;
    for (int32_t o = 0; o < width; o += 16) {
        plm_ask(next, o);
        int32x4_t top[4];
        uint32x4_t bottom[4];
        for (int i = 0; i < 4; i++) {
            top[i] = vdupq_n_s32(0);
            bottom[i] = vdupq_n_u32((uint32_t)(-raised_by * f.sum_bottom));
        }
        for (int32_t k = 0; k < f.count; k += 4) {
            uint8x16x4_t v = four_units(f.row + k, o);
            int8x16_t q_top = as_signed(four_bytes(f.top + k));
            uint8x16_t q_bottom = four_bytes(f.bottom + k);
            for (int i = 0; i < 4; i++) {
                top[i] = vdotq_s32(top[i], as_signed(v.val[i]), q_top);
                bottom[i] = bottoms(bottom[i], v.val[i], q_bottom);
            }
        }
        for (int i = 0; i < 4; i++)
            add_sums(y + o + 4 * i, join(top[i], bottom[i]), w + 2 * (int64_t)(o + 4 * i), f.scale);
    }
}

#endif
