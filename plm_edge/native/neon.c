/* ARMv8.0 NEON, which every 64-bit ARM CPU has (Raspberry Pi 4): its products of integer formats. Same bits as the
 * scalar set: the sums of a block are exact and the float steps are the same ones in the same order. */
#include "neon.h"

/* ---- tiles: 16 rows interleaved, 4 consecutive values each ---- */

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

/* The 16 rows of a column, widened. */
static inline void store_column(int8x16_t v, int16_t *panel) {
    vst1q_s16(panel, vmovl_s8(vget_low_s8(v)));
    vst1q_s16(panel + 8, vmovl_high_s8(v));
}

enum { CHUNK = 8 }; /* blocks of a tile unpacked at a time: 8 KB */

/* One block as a panel: byte i of a group of four is column i of all 16 rows. */
static inline void unpack_block(const uint8_t *w, int16_t *panel, float *scales, int format) {
    for (int i = 0; i < 4; i++) vst1q_f32(scales + 4 * i, scales4(w + 8 * i));
    for (int g = 0; g < (format == PLM_Q8_0 ? 8 : 4); g++, panel += 4 * PLM_TILE) {
        uint8x16x4_t four = vld4q_u8(w + 32 + 64 * g);
        for (int i = 0; i < 4; i++) {
            if (format == PLM_Q8_0) {
                store_column(as_signed(four.val[i]), panel + i * PLM_TILE);
            } else {
                int8x16_t low = as_signed(nibbles_low(four.val[i])), high = as_signed(nibbles_high(four.val[i]));
                store_column(vsubq_s8(low, vdupq_n_s8(8)), panel + i * PLM_TILE);
                store_column(vsubq_s8(high, vdupq_n_s8(8)), panel + PANEL_BLOCK / 2 + i * PLM_TILE);
            }
        }
    }
}

/* Several tokens: the tile becomes a panel, a chunk at a time, which all of them meet. */
static inline void tile_of_tokens(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                                  int32_t stride, int format) {
    const int32_t blocks = cols / PLM_BLOCK, bytes = format == PLM_Q8_0 ? 544 : 288;
    int16_t room[CHUNK * PANEL_BLOCK];
    float scales[CHUNK * PLM_TILE];
    for (int64_t t = 0; t < tokens; t++) memset(y + t * stride, 0, PLM_TILE * sizeof *y);
    for (int32_t b = 0; b < blocks; b += CHUNK) {
        int32_t n = plm_min(CHUNK, blocks - b);
        for (int32_t i = 0; i < n; i++, w += bytes)
            unpack_block(w, room + i * PANEL_BLOCK, scales + i * PLM_TILE, format);
        neon_panel(room, scales, n, x->q + b * PLM_BLOCK, cols, x->scale + b, blocks, tokens, y, stride);
    }
}

static void tile_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        one_q8_0(w, cols, x, y);
    else
        tile_of_tokens(w, cols, x, tokens, y, stride, PLM_Q8_0);
}

static void tile_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    if (tokens == 1)
        one_q4_0(w, cols, x, y);
    else
        tile_of_tokens(w, cols, x, tokens, y, stride, PLM_Q4_0);
}

/* ---- plain ggml rows ---- */

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

/* ---- groups of 32 units ---- */

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

static void units_q8_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    fired f;
    (void)units; /* integer groups are whole */
    if (!neon_find_fired(w + 2 * (int64_t)width, width, a, &f)) return;
    for (int32_t o = 0; o < width; o += PLM_BLOCK) {
        int32x4_t sum[8];
        plm_ask(next, o);
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

static void units_q4_0(const uint8_t *w, int32_t width, const float *a, int32_t units, float *y, const plm_ahead *next) {
    fired f;
    (void)units;
    if (!neon_find_fired(w + 2 * (int64_t)width, width / 2, a, &f)) return;
    for (int32_t o = 0; o < width; o += PLM_BLOCK) {
        int32x4_t sum[8];
        plm_ask(next, o);
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

const plm_isa plm_neon = {
    .name = "neon",
    NEON_SHARED,
    NEON_SUPER(neon),
    .weave = neon_weave,
    .panel = neon_panel,
    .tile[PLM_Q8_0] = tile_q8_0,
    .tile[PLM_Q4_0] = tile_q4_0,
    .row[PLM_Q8_0] = neon_row_q8_0,
    .row[PLM_Q4_0] = row_q4_0,
    .units[PLM_Q8_0] = units_q8_0,
    .units[PLM_Q4_0] = units_q4_0,
};
