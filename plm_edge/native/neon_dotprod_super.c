/* NEON with the dot products of ARMv8.2: Q4_K and Q6_K. Same bits as the scalar set. */
#include "neon_super.h"

static inline int32x4_t add_top(int32x4_t sum, int8x16_t w, int8x16_t q) { return vdotq_s32(sum, w, q); }
static inline uint32x4_t add_bottom(uint32x4_t sum, uint8x16_t w, uint8x16_t q) { return vdotq_u32(sum, w, q); }

/* ---- the set ---- */

void dotprod_tile_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int32_t t = 0; t < tokens; t++) {
        const plm_vectors at = plm_vector_at(x, t, cols);
        one_q4_k(w, cols, &at, y + (int64_t)t * stride, add_top, add_bottom);
    }
}

void dotprod_tile_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y, int32_t stride) {
    for (int32_t t = 0; t < tokens; t++) {
        const plm_vectors at = plm_vector_at(x, t, cols);
        one_q6_k(w, cols, &at, y + (int64_t)t * stride, add_top, add_bottom);
    }
}

float dotprod_row_q4_k(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_of_q4_k(w, cols, x, add_top, add_bottom);
}
float dotprod_row_q6_k(const uint8_t *w, int32_t cols, const plm_vectors *x) {
    return row_of_q6_k(w, cols, x, add_top, add_bottom);
}

void dotprod_part_q4_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y) {
    part_of_q4_k(super, width, part, a, y, add_top, add_bottom);
}
void dotprod_part_q6_k(const uint8_t *super, int32_t width, int32_t part, const float *a, float *y) {
    part_of_q6_k(super, width, part, a, y, add_top, add_bottom);
}
