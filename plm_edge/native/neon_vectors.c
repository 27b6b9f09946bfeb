/* Vectors and panels of 16-bit integers on NEON, the bits of the scalar set. */
#include "neon.h"

/* ---- floats to integers and exponentials ---- */

/* q = v * inverse, rounded, of 32 values; returns their sums. */
static inline int32x4_t round_block(const float32x4_t *v, float inverse, float most, int16_t *q) {
    const float32x4_t limit = vdupq_n_f32(most);
    int32x4_t whole[8], total = vdupq_n_s32(0);
    for (int i = 0; i < 8; i++) {
        float32x4_t scaled = vmaxq_f32(vmulq_n_f32(v[i], inverse), vnegq_f32(limit));
        whole[i] = vcvtnq_s32_f32(vminq_f32(scaled, limit));
        total = vaddq_s32(total, whole[i]);
    }
    for (int i = 0; i < 8; i += 2) vst1q_s16(q + 4 * i, vmovn_high_s32(vmovn_s32(whole[i]), whole[i + 1]));
    return total;
}

void neon_pack(const float *x, int32_t cols, float most_q, int16_t *q, float *scale, int32_t *sum) {
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, x += PLM_BLOCK, q += PLM_BLOCK) {
        float32x4_t v[8], most4 = vdupq_n_f32(0.0f), whole4 = most4;
        for (int i = 0; i < 8; i++) {
            v[i] = vld1q_f32(x + 4 * i);
            most4 = vmaxq_f32(most4, vabsq_f32(v[i]));
            whole4 = vaddq_f32(whole4, vsubq_f32(v[i], v[i])); /* 0, or NaN where a value is NaN or infinite */
        }
        float most = vmaxvq_f32(most4), whole = vaddvq_f32(whole4);
        int32x4_t total = vdupq_n_s32(0);
        scale[b] = most / most_q + whole;
        if (most > 1e-30f && whole == 0.0f)
            total = round_block(v, most_q / most, most_q, q);
        else
            memset(q, 0, PLM_BLOCK * sizeof *q);
        if (sum) sum[b] = vaddvq_s32(total);
    }
}

/* Halves without their signs are ordered as integers are. */
void neon_pack_halves(const uint16_t *x, int32_t cols, float most_q, int16_t *q, float *scale) {
    for (int32_t b = 0; b < cols / PLM_BLOCK; b++, x += PLM_BLOCK, q += PLM_BLOCK) {
        uint16x8_t half[4], sizes = vdupq_n_u16(0);
        float32x4_t v[8];
        for (int i = 0; i < 4; i++) {
            half[i] = vld1q_u16(x + 8 * i);
            sizes = vmaxq_u16(sizes, vbicq_u16(half[i], vdupq_n_u16(0x8000)));
        }
        uint16_t bits = vmaxvq_u16(sizes);
        if (bits == 0 || bits >= 0x7c00) { /* zeros; or an infinity or a NaN, which the scale shows */
            scale[b] = bits ? NAN : 0.0f;
            memset(q, 0, PLM_BLOCK * sizeof *q);
            continue;
        }
        for (int i = 0; i < 4; i++) {
            v[2 * i] = vcvt_f32_f16(vreinterpret_f16_u16(vget_low_u16(half[i])));
            v[2 * i + 1] = vcvt_high_f32_f16(vreinterpretq_f16_u16(half[i]));
        }
        float most = plm_f16(bits);
        scale[b] = most / most_q;
        round_block(v, most_q / most, most_q, q);
    }
}

void neon_exps(float *x, int32_t n) {
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(x + i, exp4(vld1q_f32(x + i)));
    for (; i < n; i++) x[i] = plm_exp(x[i]);
}

void neon_weigh(const int16_t *a, const int16_t *b, int32_t n, int16_t *y) {
    int32_t i = 0;
    for (; i + 8 <= n; i += 8) vst1q_s16(y + i, vqrdmulhq_s16(vld1q_s16(a + i), vld1q_s16(b + i)));
    if (i < n) plm_scalar.weigh(a + i, b + i, n - i, y + i);
}

/* ---- panels: column by column, the 16 lanes of a column side by side, as in the scalar set ---- */

void neon_weave(const int16_t *x, int32_t lane, int32_t column, int32_t lanes, int32_t columns, int16_t *panel) {
    if (lane == 1 && lanes == PLM_TILE) {
        for (int64_t c = 0; c < columns; c++)
            for (int i = 0; i < PLM_TILE; i += 8) vst1q_s16(panel + c * PLM_TILE + i, vld1q_s16(x + c * column + i));
    } else if (column == 1) {
        for (int32_t c = 0; c < columns; c += 8)
            for (int r = 0; r < PLM_TILE; r += 8) {
                int16x8_t v[8];
                eight_lanes(x + (int64_t)r * lane + c, lane, 1, lanes - r, v);
                transpose8(v);
                for (int i = 0; i < 8; i++) vst1q_s16(panel + (c + i) * PLM_TILE + r, v[i]);
            }
    } else {
        plm_scalar.weave(x, lane, column, lanes, columns, panel);
    }
}

/* The exact sums of one block for R rows of x at once, four lanes a register. Eight columns a step. */
static inline __attribute__((always_inline)) void block_sums(const int16_t *panel, const int16_t *x, int32_t x_stride,
                                                             int32x4_t (*sum)[4], int R) {
    for (int t = 0; t < R; t++)
        for (int i = 0; i < 4; i++) sum[t][i] = vdupq_n_s32(0);
#pragma GCC unroll 1
    for (int c = 0; c < PLM_BLOCK; c += 8, panel += 8 * PLM_TILE) {
        int16x8_t q[4];
        for (int t = 0; t < R; t++) q[t] = vld1q_s16(x + (int64_t)t * x_stride + c);
#define COLUMN(lane) /* a lane must be a literal */                                                          \
    {                                                                                                         \
        int16x8_t low = vld1q_s16(panel + lane * PLM_TILE), high = vld1q_s16(panel + lane * PLM_TILE + 8);    \
        for (int t = 0; t < R; t++) {                                                                         \
            sum[t][0] = vmlal_laneq_s16(sum[t][0], vget_low_s16(low), q[t], lane);                            \
            sum[t][1] = vmlal_high_laneq_s16(sum[t][1], low, q[t], lane);                                     \
            sum[t][2] = vmlal_laneq_s16(sum[t][2], vget_low_s16(high), q[t], lane);                           \
            sum[t][3] = vmlal_high_laneq_s16(sum[t][3], high, q[t], lane);                                    \
        }                                                                                                     \
    }
        COLUMN(0)
        COLUMN(1)
        COLUMN(2)
        COLUMN(3)
        COLUMN(4)
        COLUMN(5)
        COLUMN(6)
        COLUMN(7)
#undef COLUMN
    }
}

static inline __attribute__((always_inline)) void panel_rows(const int16_t *panel, const float *scales, int32_t blocks,
                                                             const int16_t *x, int32_t x_stride, const float *x_scale,
                                                             int32_t x_blocks, float *y, int32_t stride, int R) {
    for (int32_t b = 0; b < blocks; b++, panel += PANEL_BLOCK, scales += PLM_TILE, x += PLM_BLOCK) {
        int32x4_t sum[4][4];
        block_sums(panel, x, x_stride, sum, R);
        for (int64_t t = 0; t < R; t++)
            for (int i = 0; i < 4; i++)
                add_lanes(y + t * stride + 4 * i, sum[t][i], scales + 4 * i, x_scale[t * x_blocks + b]);
    }
}

void neon_panel(const int16_t *panel, const float *scales, int32_t blocks, const int16_t *x, int32_t x_stride,
                const float *x_scale, int32_t x_blocks, int32_t rows, float *y, int32_t stride) {
    for (; rows >= 4; rows -= 4) {
        panel_rows(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 4);
        x += 4 * (int64_t)x_stride, x_scale += 4 * (int64_t)x_blocks, y += 4 * (int64_t)stride;
    }
    if (rows == 3) panel_rows(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 3);
    if (rows == 2) panel_rows(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 2);
    if (rows == 1) panel_rows(panel, scales, blocks, x, x_stride, x_scale, x_blocks, y, stride, 1);
}
