/* NEON with the dot products of ARMv8.2 (Raspberry Pi 5): sdot and udot add four products of bytes a lane. Only integer
 * formats gain; the rest is the neon set's. Same bits as the scalar set: every sum of a block is exact. */
#include "neon.h"

/* A signed weight as w + 128, unsigned, for products with the bottom bytes; 128 of them each are too much. */
static inline uint8x16_t raised(uint8x16_t v) { return veorq_u8(v, vdupq_n_u8(128)); }

/* A tile's register is four rows by four values, and a lane of the activations is what it is multiplied with. */
static void one_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y) {
    float32x4_t sums[4];
    for (int r = 0; r < 4; r++) sums[r] = vdupq_n_f32(0.0f);
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 544) {
        limbs q0 = split(x->q + b * PLM_BLOCK), q1 = split(x->q + b * PLM_BLOCK + 16);
        int32_t too_much = 128 * (vaddlvq_u8(q0.bottom) + vaddlvq_u8(q1.bottom));
        int32x4_t top[4];
        uint32x4_t bottom[4];
        for (int r = 0; r < 4; r++) top[r] = vdupq_n_s32(0), bottom[r] = vdupq_n_u32((uint32_t)-too_much);
#define FOUR_VALUES(q, lane, at) /* a lane must be a literal */                          \
    for (int r = 0; r < 4; r++) {                                                         \
        uint8x16_t v = vld1q_u8(w + 32 + (at) + 16 * r);                                  \
        top[r] = vdotq_laneq_s32(top[r], as_signed(v), q.top, lane);                      \
        bottom[r] = vdotq_laneq_u32(bottom[r], raised(v), q.bottom, lane);                \
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
        for (int r = 0; r < 4; r++) sums[r] = add_scaled(sums[r], join(top[r], bottom[r]), w + 8 * r, x->scale[b]);
    }
    for (int r = 0; r < 4; r++) vst1q_f32(y + 4 * r, sums[r]);
}

static void tile_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    each_token(one_q8_0, w, cols, x, tokens, y, stride);
}

static void one_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, float *y) {
    float32x4_t sums[4];
    for (int r = 0; r < 4; r++) sums[r] = vdupq_n_f32(0.0f);
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += 288) {
        limbs q0 = split(x->q + b * PLM_BLOCK), q1 = split(x->q + b * PLM_BLOCK + 16);
        int32x4_t top[4];
        uint32x4_t bottom[4];
        for (int r = 0; r < 4; r++) top[r] = vdupq_n_s32(0), bottom[r] = vdupq_n_u32((uint32_t)(-8 * x->sum[b]));
#define FOUR_BYTES(lane) /* low nibbles meet q0, high ones q1 */                          \
    for (int r = 0; r < 4; r++) {                                                         \
        uint8x16_t v = vld1q_u8(w + 32 + 64 * lane + 16 * r);                             \
        uint8x16_t low = nibbles_low(v), high = nibbles_high(v);                          \
        top[r] = vdotq_laneq_s32(top[r], as_signed(low), q0.top, lane);                   \
        bottom[r] = vdotq_laneq_u32(bottom[r], low, q0.bottom, lane);                     \
        top[r] = vdotq_laneq_s32(top[r], as_signed(high), q1.top, lane);                  \
        bottom[r] = vdotq_laneq_u32(bottom[r], high, q1.bottom, lane);                    \
    }
        FOUR_BYTES(0)
        FOUR_BYTES(1)
        FOUR_BYTES(2)
        FOUR_BYTES(3)
#undef FOUR_BYTES
        for (int r = 0; r < 4; r++) sums[r] = add_scaled(sums[r], join(top[r], bottom[r]), w + 8 * r, x->scale[b]);
    }
    for (int r = 0; r < 4; r++) vst1q_f32(y + 4 * r, sums[r]);
}

void dotprod_tile_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    each_token(one_q4_0, w, cols, x, tokens, y, stride);
}

static inline int32x4_t products_q4_0(const uint8_t *w, const int16_t *q) {
    uint8x16_t v = vld1q_u8(w + 2), low = nibbles_low(v), high = nibbles_high(v);
    limbs q0 = split(q), q1 = split(q + 16);
    int32x4_t top = vdotq_s32(vdotq_s32(vdupq_n_s32(0), as_signed(low), q0.top), as_signed(high), q1.top);
    return join(top, vdotq_u32(vdotq_u32(vdupq_n_u32(0), low, q0.bottom), high, q1.bottom));
}

float dotprod_row_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_int(w, cols, x, PLM_Q4_0, products_q4_0);
}

static void units_q8_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    fired f;
    (void)units; /* integer groups are whole */
    if (!neon_find_fired(w + 2 * (int64_t)width, width, a, &f)) return;
    for (int32_t o = 0; o < width; o += 16) {
        int32x4_t top[4];
        uint32x4_t bottom[4];
        for (int i = 0; i < 4; i++) top[i] = vdupq_n_s32(0), bottom[i] = vdupq_n_u32((uint32_t)(-128 * f.sum_bottom));
        for (int32_t k = 0; k < f.count; k += 4) {
            uint8x16x4_t v = four_units(f.row + k, o);
            int8x16_t q_top = as_signed(four_bytes(f.top + k));
            uint8x16_t q_bottom = four_bytes(f.bottom + k);
            for (int i = 0; i < 4; i++) {
                top[i] = vdotq_s32(top[i], as_signed(v.val[i]), q_top);
                bottom[i] = vdotq_u32(bottom[i], raised(v.val[i]), q_bottom);
            }
        }
        for (int i = 0; i < 4; i++)
            add_sums(y + o + 4 * i, join(top[i], bottom[i]), w + 2 * (int64_t)(o + 4 * i), f.scale);
    }
}

static void units_q4_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y) {
    fired f;
    (void)units;
    if (!neon_find_fired(w + 2 * (int64_t)width, width / 2, a, &f)) return;
    for (int32_t o = 0; o < width; o += PLM_BLOCK) {
        int32x4_t top[8]; /* outputs 4 i .. 4 i + 3: low nibbles, then high ones */
        uint32x4_t bottom[8];
        for (int i = 0; i < 8; i++) top[i] = vdupq_n_s32(0), bottom[i] = vdupq_n_u32((uint32_t)(-8 * f.sum));
        for (int32_t k = 0; k < f.count; k += 4) {
            uint8x16x4_t v = four_units(f.row + k, o / 2);
            int8x16_t q_top = as_signed(four_bytes(f.top + k));
            uint8x16_t q_bottom = four_bytes(f.bottom + k);
            for (int i = 0; i < 4; i++) {
                uint8x16_t low = nibbles_low(v.val[i]), high = nibbles_high(v.val[i]);
                top[i] = vdotq_s32(top[i], as_signed(low), q_top);
                bottom[i] = vdotq_u32(bottom[i], low, q_bottom);
                top[4 + i] = vdotq_s32(top[4 + i], as_signed(high), q_top);
                bottom[4 + i] = vdotq_u32(bottom[4 + i], high, q_bottom);
            }
        }
        for (int i = 0; i < 8; i++)
            add_sums(y + o + 4 * i, join(top[i], bottom[i]), w + 2 * (int64_t)(o + 4 * i), f.scale);
    }
}

const plm_isa plm_neon_dotprod = {
    .name = "neon-dotprod",
    .tile = {neon_tile_f32, neon_tile_f16, neon_tile_bf16, tile_q8_0, dotprod_tile_q4_0},
    .row = {neon_row_f32, neon_row_f16, neon_row_bf16, neon_row_q8_0, dotprod_row_q4_0},
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
