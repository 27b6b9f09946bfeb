/* NEON with the dot products of ARMv8.2 (Raspberry Pi 5): sdot and udot add four products of bytes a lane. Only integer
 * formats gain; the rest is the neon set's. Same bits as the scalar set: every sum of a block is exact. */
#include "neon_dot.h"

/* A signed weight as w + 128, unsigned, for products with the bottom bytes; 128 of them each are too much. */
static inline uint8x16_t raised(uint8x16_t v) { return veorq_u8(v, vdupq_n_u8(128)); }

/* Four rows of a block: register g has their columns 4 g .. 4 g + 3. Nibbles as they are, raised by 8. */
static inline void four_rows(const uint8_t *w, uint8x16_t *v, int format) {
    for (int g = 0; g < 4; g++) {
        uint8x16_t bytes = vld1q_u8(w + 64 * g);
        v[g] = format == PLM_Q8_0 ? bytes : nibbles_low(bytes);
        v[4 + g] = format == PLM_Q8_0 ? vld1q_u8(w + 64 * (4 + g)) : nibbles_high(bytes);
    }
}

/* A lane has four columns of the activations, and is multiplied with four rows. */
static inline int32x4_t add_tops(int32x4_t sum, const uint8x16_t *v, const limbs *q) {
    sum = vdotq_laneq_s32(sum, as_signed(v[0]), q[0].top, 0);
    sum = vdotq_laneq_s32(sum, as_signed(v[1]), q[0].top, 1);
    sum = vdotq_laneq_s32(sum, as_signed(v[2]), q[0].top, 2);
    sum = vdotq_laneq_s32(sum, as_signed(v[3]), q[0].top, 3);
    sum = vdotq_laneq_s32(sum, as_signed(v[4]), q[1].top, 0);
    sum = vdotq_laneq_s32(sum, as_signed(v[5]), q[1].top, 1);
    sum = vdotq_laneq_s32(sum, as_signed(v[6]), q[1].top, 2);
    return vdotq_laneq_s32(sum, as_signed(v[7]), q[1].top, 3);
}

static inline uint32x4_t add_bottoms(uint32x4_t sum, const uint8x16_t *v, const limbs *q) {
    sum = vdotq_laneq_u32(sum, v[0], q[0].bottom, 0);
    sum = vdotq_laneq_u32(sum, v[1], q[0].bottom, 1);
    sum = vdotq_laneq_u32(sum, v[2], q[0].bottom, 2);
    sum = vdotq_laneq_u32(sum, v[3], q[0].bottom, 3);
    sum = vdotq_laneq_u32(sum, v[4], q[1].bottom, 0);
    sum = vdotq_laneq_u32(sum, v[5], q[1].bottom, 1);
    sum = vdotq_laneq_u32(sum, v[6], q[1].bottom, 2);
    return vdotq_laneq_u32(sum, v[7], q[1].bottom, 3);
}

/* What the bottoms' sum begins with: less the products with what weights were raised by. */
static inline uint32_t start_of(const limbs *q, int32_t sum, int format) {
    if (format == PLM_Q4_0) return (uint32_t)(-8 * sum);
    return (uint32_t)(-128 * (vaddlvq_u8(q[0].bottom) + vaddlvq_u8(q[1].bottom)));
}

/* A block of T tokens: bytes, what their sums begin with, scales. */
typedef struct {
    limbs q[4][2];
    uint32_t start[4];
    float scale[4];
} block_of_tokens;

static inline __attribute__((always_inline)) block_of_tokens block_at(const plm_vectors *x, int32_t cols,
                                                                      int64_t b, int format, int T) {
    block_of_tokens at;
    for (int64_t t = 0; t < T; t++) {
        const int16_t *q = x->q + t * cols + b * PLM_BLOCK;
        const int64_t block = t * (cols / PLM_BLOCK) + b;
        at.q[t][0] = split(q), at.q[t][1] = split(q + 16);
        at.start[t] = start_of(at.q[t], x->sum[block], format);
        at.scale[t] = x->scale[block];
    }
    return at;
}

/* sums[t][r] += what one block gives, for rows 4 r .. 4 r + 3 of a tile, which are unpacked once for all tokens. */
static inline __attribute__((always_inline)) void add_block(float32x4_t (*sums)[4], const uint8_t *w, int r,
                                                            const block_of_tokens *x, int format, int T) {
    uint8x16_t v[8];
    int32x4_t top[4];
    four_rows(w + 32 + 16 * r, v, format);
    for (int t = 0; t < T; t++) top[t] = add_tops(vdupq_n_s32(0), v, x->q[t]);
    for (int g = 0; g < 8; g++) v[g] = format == PLM_Q8_0 ? raised(v[g]) : v[g];
    for (int t = 0; t < T; t++) {
        int32x4_t sum = join(top[t], add_bottoms(vdupq_n_u32(x->start[t]), v, x->q[t]));
        sums[t][r] = add_scaled(sums[t][r], sum, w + 8 * r, x->scale[t]);
    }
}

static inline __attribute__((always_inline)) void tile_of_tokens(const uint8_t *w, int32_t cols, const plm_vectors *x,
                                                                 float *y, int32_t stride, int format, int T) {
    float32x4_t sums[4][4];
    for (int i = 0; i < 4 * T; i++) sums[i / 4][i % 4] = vdupq_n_f32(0.0f);
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, w += format == PLM_Q8_0 ? 544 : 288) {
        const block_of_tokens at = block_at(x, cols, b, format, T);
        if (T == 1) { /* the sums of all rows in registers */
            add_block(sums, w, 0, &at, format, T);
            add_block(sums, w, 1, &at, format, T);
            add_block(sums, w, 2, &at, format, T);
            add_block(sums, w, 3, &at, format, T);
            continue;
        }
#pragma GCC unroll 1 /* four rows and their tokens fill the registers */
        for (int r = 0; r < 4; r++) add_block(sums, w, r, &at, format, T);
    }
    for (int64_t t = 0; t < T; t++)
        for (int r = 0; r < 4; r++) vst1q_f32(y + t * stride + 4 * r, sums[t][r]);
}

static inline void tile_int(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                            int32_t stride, int format) {
    plm_vectors at = *x;
    for (; tokens >= 4; tokens -= 4, y += 4 * (int64_t)stride, at = plm_vector_at(&at, 4, cols))
        tile_of_tokens(w, cols, &at, y, stride, format, 4);
    if (tokens == 3) tile_of_tokens(w, cols, &at, y, stride, format, 3);
    if (tokens == 2) tile_of_tokens(w, cols, &at, y, stride, format, 2);
    if (tokens == 1) tile_of_tokens(w, cols, &at, y, stride, format, 1);
}

static void tile_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    tile_int(w, cols, x, tokens, y, stride, PLM_Q8_0);
}

void dotprod_tile_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    tile_int(w, cols, x, tokens, y, stride, PLM_Q4_0);
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

static inline uint32x4_t bottoms_q8_0(uint32x4_t sum, uint8x16_t v, uint8x16_t q) {
    return vdotq_u32(sum, raised(v), q);
}

static void units_q8_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    (void)units; /* integer groups are whole */
    dot_units_q8_0(w, width, a, y, next, 128, bottoms_q8_0);
}

static void units_q4_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    fired f;
    (void)units;
    if (!neon_find_fired(w + 2 * (int64_t)width, width / 2, a, &f)) return;
    for (int32_t o = 0; o < width; o += PLM_BLOCK) {
        plm_ask(next, o);
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
    NEON_SHARED,
    NEON_SUPER(dotprod),
    NEON_BYTES,
    .weave = neon_weave,
    .panel = neon_panel,
    .tile[PLM_Q8_0] = tile_q8_0,
    .tile[PLM_Q4_0] = dotprod_tile_q4_0,
    .row[PLM_Q8_0] = neon_row_q8_0,
    .row[PLM_Q4_0] = dotprod_row_q4_0,
    .units[PLM_Q8_0] = units_q8_0,
    .units[PLM_Q4_0] = units_q4_0,
};
