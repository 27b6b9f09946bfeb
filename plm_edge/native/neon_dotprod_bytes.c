/* NEON dotprod: attention in bytes, a head in each of 16 lanes. One sdot takes four bytes of a row for four heads, one
 * udot four rows of a head and four of their bytes, raised by 128 since weights have no sign. */
#include "neon.h"

void dotprod_lay_bytes(const int8_t *x, int64_t stride, int32_t rows, int32_t n, uint8_t *row, int8_t *four) {
    for (int64_t r = 0; r < rows; r += 4)
        for (int64_t c = 0; c < n; c += 16) {
            uint8x16x4_t v;
            for (int i = 0; i < 4; i++) {
                v.val[i] = r + i < rows ? vreinterpretq_u8_s8(vld1q_s8(x + (r + i) * stride + c)) : vdupq_n_u8(0);
                if (r + i < rows) vst1q_u8(row + (r + i) * n + c, v.val[i]);
                v.val[i] = veorq_u8(v.val[i], vdupq_n_u8(128));
            }
            vst4q_u8((uint8_t *)four + r * n + 4 * c, v);
        }
}

/* R <= 4 rows. */
static inline __attribute__((always_inline)) void scores_of(const int8_t *panel, const float *scales,
                                                            const uint8_t *row, int32_t n, const float *x_scale,
                                                            int64_t x_stride, float *y, int R) {
    for (int32_t b = 0; b < n / PLM_BLOCK; b++, row += PLM_BLOCK, scales += PLM_TILE) {
        int32x4_t sum[4][4]; /* of a row, four heads each */
        for (int r = 0; r < R; r++)
            for (int h = 0; h < 4; h++) sum[r][h] = vdupq_n_s32(0);
        for (int c = 0; c < PLM_BLOCK; c += 16) {
            int8x16_t bytes[4];
            for (int r = 0; r < R; r++) bytes[r] = vreinterpretq_s8_u8(vld1q_u8(row + (int64_t)r * n + c));
#define COLUMNS(lane)                                                                               \
    for (int h = 0; h < 4; h++, panel += 16) {                                                      \
        int8x16_t q = vld1q_s8(panel);                                                              \
        for (int r = 0; r < R; r++) sum[r][h] = vdotq_laneq_s32(sum[r][h], q, bytes[r], (lane));    \
    }
            COLUMNS(0)
            COLUMNS(1)
            COLUMNS(2)
            COLUMNS(3)
#undef COLUMNS
        }
        for (int r = 0; r < R; r++)
            for (int h = 0; h < 4; h++)
                add_lanes(y + r * PLM_TILE + 4 * h, sum[r][h], scales + 4 * h, x_scale[r * x_stride + b]);
    }
}

void dotprod_score_bytes(const int8_t *panel, const int32_t *start, const float *scales, const uint8_t *row, int32_t n,
                         const float *x_scale, int32_t x_stride, int32_t rows, float *y) {
    int64_t r = 0;
    (void)start; /* no byte of a row is raised */
    for (; r + 4 <= rows; r += 4)
        scores_of(panel, scales, row + r * n, n, x_scale + r * x_stride, x_stride, y + r * PLM_TILE, 4);
    for (; r < rows; r++)
        scores_of(panel, scales, row + r * n, n, x_scale + r * x_stride, x_stride, y + r * PLM_TILE, 1);
}

/* `rows` values of four columns of x as integers of at most PLM_LARGEST, those of a row behind each other; rows missing
 * to four are 0. Returns the scales; integers and scales are those that `pack` makes of the values of a column. */
static inline float32x4_t columns_of(const float *x, int64_t stride, int32_t rows, int16_t *q) {
    float32x4_t most = vdupq_n_f32(0), whole = most;
    for (int32_t r = 0; r < rows; r++) {
        float32x4_t v = vld1q_f32(x + r * stride), size = vabsq_f32(v);
        most = vbslq_f32(vcgtq_f32(size, most), size, most);
        whole = vaddq_f32(whole, vsubq_f32(v, v)); /* NaN where a value is NaN or infinite */
    }
    uint32x4_t good = vandq_u32(vceqq_f32(whole, whole), vcgtq_f32(most, vdupq_n_f32(1e-30f)));
    float32x4_t inverse = vdivq_f32(vdupq_n_f32(PLM_LARGEST), most);
    for (int32_t r = 0; r < (rows + 3) / 4 * 4; r++) {
        int32x4_t w = vdupq_n_s32(0);
        if (r < rows) w = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(x + r * stride), inverse));
        vst1_s16(q + 4 * r, vmovn_s32(vandq_s32(w, vreinterpretq_s32_u32(good))));
    }
    return vaddq_f32(vdivq_f32(most, vdupq_n_f32(PLM_LARGEST)), whole);
}

/* Weights of four lanes for one block of the rows: of each four rows 16 bytes, lane by lane, and their sums. of_block
 * has the scale of each row four times. */
static int32x4_t weigh_rows(const int16_t *of_lanes, const int16_t *of_block, int32_t rows, uint8_t *weight) {
    static const uint8_t lane_by_lane[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const uint8x16_t order = vld1q_u8(lane_by_lane);
    uint32x4_t sum = vdupq_n_u32(0);
    for (int32_t r = 0; r < rows; r += 4) {
        int16x8_t two[2];
        for (int i = 0; i < 2; i++) {
            two[i] = vqrdmulhq_s16(vld1q_s16(of_lanes + 4 * r + 8 * i), vld1q_s16(of_block + 4 * r + 8 * i));
            two[i] = vqrdmulhq_s16(two[i], vdupq_n_s16(PLM_WEIGHT));
        }
        uint8x16_t bytes = vqtbl1q_u8(vcombine_u8(vqmovun_s16(two[0]), vqmovun_s16(two[1])), order);
        sum = vdotq_u32(sum, bytes, vdupq_n_u8(1));
        vst1q_u8(weight + 4 * r, bytes);
    }
    return vreinterpretq_s32_u32(sum);
}

/* Four lanes of 16 columns, which begin at `four`: the exact sums. */
static inline void sums_of(const uint8_t *four, int64_t step, int32_t fours, const uint8_t *weight,
                           int32x4_t weights, int32x4_t (*sums)[4]) {
    uint32x4_t sum[4][4];
    for (int l = 0; l < 4; l++)
        for (int i = 0; i < 4; i++) sum[l][i] = vdupq_n_u32(0);
    for (int32_t k = 0; k < fours; k++) {
        uint8x16_t q = vld1q_u8(weight + 16 * k);
        for (int i = 0; i < 4; i++) {
            uint8x16_t v = vld1q_u8(four + k * step + 16 * i);
            sum[0][i] = vdotq_laneq_u32(sum[0][i], v, q, 0), sum[1][i] = vdotq_laneq_u32(sum[1][i], v, q, 1);
            sum[2][i] = vdotq_laneq_u32(sum[2][i], v, q, 2), sum[3][i] = vdotq_laneq_u32(sum[3][i], v, q, 3);
        }
    }
    int32_t of_lane[4];
    vst1q_s32(of_lane, vshlq_n_s32(weights, 7)); /* what raising the bytes by 128 added */
    for (int l = 0; l < 4; l++)
        for (int i = 0; i < 4; i++)
            sums[l][i] = vsubq_s32(vreinterpretq_s32_u32(sum[l][i]), vdupq_n_s32(of_lane[l]));
}

void dotprod_blend_bytes(const float *weights, const int8_t *four, const float *x_scale, int32_t x_stride, int32_t rows,
                         int32_t n, const float *shrink, int32_t lanes, float *y, int32_t y_stride, const uint8_t *next,
                         int32_t ahead) {
    enum { GROUPS = PLM_TILE / 4 };
    int16_t of_lanes[GROUPS][PLM_BYTE_ROWS * 4], of_blocks[PLM_BYTE_ROWS * 4], of_block[PLM_BYTE_ROWS * 4];
    float lane_scale[PLM_TILE], block_scale[4], columns[PLM_BYTE_ROWS * 4];
    uint8_t weight[PLM_BYTE_ROWS * 4];
    const int32_t fours = (rows + 3) / 4, blocks = n / PLM_BLOCK;
    (void)next, (void)ahead;
    for (int g = 0; g < GROUPS; g++)
        vst1q_f32(lane_scale + 4 * g, columns_of(weights + 4 * g, PLM_TILE, rows, of_lanes[g]));
    for (int32_t b = 0; b < blocks; b++) {
        if (b % 4 == 0) {
            for (int64_t r = 0; r < rows; r++)
                for (int i = 0; i < 4; i++) columns[4 * r + i] = b + i < blocks ? x_scale[r * x_stride + b + i] : 0.0f;
            vst1q_f32(block_scale, columns_of(columns, 4, rows, of_blocks));
        }
        for (int32_t r = 0; r < 4 * fours; r++) vst1_s16(of_block + 4 * r, vdup_n_s16(of_blocks[4 * r + b % 4]));
        for (int32_t l = 0; l < lanes; l += 4) {
            int32x4_t all = weigh_rows(of_lanes[l / 4], of_block, rows, weight), sums[4][4];
            for (int half = 0; half < 2; half++) {
                const int32_t c = b * PLM_BLOCK + 16 * half;
                sums_of((const uint8_t *)four + 4 * (int64_t)c, 4 * (int64_t)n, fours, weight, all, sums);
                for (int i = 0; i < 4 && l + i < lanes; i++) {
                    const float factor = lane_scale[l + i] * block_scale[b % 4] * PLM_OF_WEIGHT;
                    for (int k = 0; k < 4; k++) {
                        float *at = y + (int64_t)(l + i) * y_stride + c + 4 * k;
                        float32x4_t before = vmulq_n_f32(vld1q_f32(at), shrink[l + i]);
                        vst1q_f32(at, vaddq_f32(before, vmulq_n_f32(vcvtq_f32_s32(sums[i][k]), factor)));
                    }
                }
            }
        }
    }
}
