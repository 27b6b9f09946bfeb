/* NEON with dot products and the mixed-sign ones of I8MM (phones since 2021): usdot takes signed weights times
 * unsigned bottom bytes as they are, and whole bytes of 4-bit weights times signed top bytes. Several tokens:
 * neon_smmla.c. Everything else is the dotprod or the neon set's. */
#include "neon_dot.h"

void i8mm_one_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y) {
    float32x4_t sums[4];
    for (int r = 0; r < 4; r++) sums[r] = vdupq_n_f32(0.0f);
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 544) {
        limbs q0 = split(x->q + b * PLM_BLOCK), q1 = split(x->q + b * PLM_BLOCK + 16);
        int32x4_t top[4], bottom[4];
        for (int r = 0; r < 4; r++) top[r] = bottom[r] = vdupq_n_s32(0);
#define FOUR_VALUES(q, lane, at) /* a lane must be a literal */                          \
    for (int r = 0; r < 4; r++) {                                                         \
        int8x16_t v = as_signed(vld1q_u8(w + 32 + (at) + 16 * r));                        \
        top[r] = vdotq_laneq_s32(top[r], v, q.top, lane);                                 \
        bottom[r] = vsudotq_laneq_s32(bottom[r], v, q.bottom, lane);                      \
    }
        FOUR_VALUES(q0, 0, 0)
        FOUR_VALUES(q0, 1, 64)
        FOUR_VALUES(q0, 2, 128)
        FOUR_VALUES(q0, 3, 192)
        FOUR_VALUES(q1, 0, 256)
        FOUR_VALUES(q1, 1, 320)
        FOUR_VALUES(q1, 2, 384)
        FOUR_VALUES(q1, 3, 448)
#undef FOUR_VALUES
        for (int r = 0; r < 4; r++) {
            int32x4_t sum = vaddq_s32(vshlq_n_s32(top[r], 8), bottom[r]);
            sums[r] = add_scaled(sums[r], sum, w + 8 * r, x->scale[b]);
        }
    }
    for (int r = 0; r < 4; r++) vst1q_f32(y + 4 * r, sums[r]);
}

static inline int32x4_t products_q8_0(const uint8_t *w, const int16_t *q) {
    int32x4_t top = vdupq_n_s32(0), bottom = top;
    for (int i = 0; i < PLM_BLOCK; i += 16) {
        int8x16_t v = as_signed(vld1q_u8(w + 2 + i));
        limbs x = split(q + i);
        top = vdotq_s32(top, v, x.top);
        bottom = vusdotq_s32(bottom, x.bottom, v);
    }
    return vaddq_s32(vshlq_n_s32(top, 8), bottom);
}

static float row_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_int(w, cols, x, PLM_Q8_0, products_q8_0);
}

static inline uint32x4_t bottoms_q8_0(uint32x4_t sum, uint8x16_t v, uint8x16_t q) {
    return vreinterpretq_u32_s32(vusdotq_s32(vreinterpretq_s32_u32(sum), q, as_signed(v)));
}

static void units_q8_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    (void)units; /* integer groups are whole */
    dot_units_q8_0(w, width, a, y, next, 0, bottoms_q8_0);
}

/* A byte is low + 16 high: the products of whole bytes less those of the low nibbles are 16 times the high ones'. */
static void units_q4_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    fired f;
    (void)units;
    if (!neon_find_fired(w + 2 * (int64_t)width, width / 2, a, &f)) return;
    const int32x4_t start = vdupq_n_s32(-8 * f.sum);
    for (int32_t o = 0; o < width; o += PLM_BLOCK) {
        plm_ask(next, o);
        int32x4_t top[4], top_byte[4];
        uint32x4_t bottom[4], bottom_byte[4];
        for (int i = 0; i < 4; i++) {
            top[i] = top_byte[i] = vdupq_n_s32(0);
            bottom[i] = bottom_byte[i] = vdupq_n_u32(0);
        }
        for (int32_t k = 0; k < f.count; k += 4) {
            uint8x16x4_t v = four_units(f.row + k, o / 2);
            int8x16_t q_top = as_signed(four_bytes(f.top + k));
            uint8x16_t q_bottom = four_bytes(f.bottom + k);
            for (int i = 0; i < 4; i++) {
                uint8x16_t low = nibbles_low(v.val[i]);
                top[i] = vdotq_s32(top[i], as_signed(low), q_top);
                bottom[i] = vdotq_u32(bottom[i], low, q_bottom);
                top_byte[i] = vusdotq_s32(top_byte[i], v.val[i], q_top);
                bottom_byte[i] = vdotq_u32(bottom_byte[i], v.val[i], q_bottom);
            }
        }
        for (int i = 0; i < 4; i++) {
            int32_t at = o + 4 * i;
            int32x4_t low = join(top[i], bottom[i]), byte = join(top_byte[i], bottom_byte[i]);
            int32x4_t high = vshrq_n_s32(vsubq_s32(byte, low), 4);
            add_sums(y + at, vaddq_s32(start, low), w + 2 * (int64_t)at, f.scale);
            add_sums(y + at + 16, vaddq_s32(start, high), w + 2 * (int64_t)(at + 16), f.scale);
        }
    }
}

const plm_isa plm_neon_i8mm = {
    .name = "neon-i8mm",
    NEON_SHARED,
    NEON_SUPER(dotprod),
    NEON_BYTES,
    .weave = smmla_weave,
    .panel = smmla_panel,
    .tile[PLM_Q8_0] = smmla_tile_q8_0,
    .tile[PLM_Q4_0] = smmla_tile_q4_0,
    .row[PLM_Q8_0] = row_q8_0,
    .row[PLM_Q4_0] = dotprod_row_q4_0,
    .units[PLM_Q8_0] = units_q8_0,
    .units[PLM_Q4_0] = units_q4_0,
};
