#include "quantize_k.h"

#include "plm_math.h"

/* Whether a half is NaN or an infinity. */
static int endless(uint16_t half) { return (half & 0x7c00) == 0x7c00; }

static uint16_t half_at(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

int plm_row_from_q4_k(const uint8_t *packed, size_t cols, float *x) {
    for (size_t at = 0; at < cols; at += PLM_SUPER, packed += PLM_Q4_K_BYTES) {
        if (endless(half_at(packed)) || endless(half_at(packed + 2))) return 0;
        const float d = plm_f16(half_at(packed)), dmin = plm_f16(half_at(packed + 2));
        for (int j = 0; j < 8; j++) {
            const float scale = d * (float)plm_scale_q4_k(packed + 4, j);
            const float least = dmin * (float)plm_least_q4_k(packed + 4, j);
            for (int i = 32 * j; i < 32 * (j + 1); i++) *x++ = scale * (float)plm_quant_q4_k(packed + 16, i) - least;
        }
    }
    return 1;
}

int plm_row_from_q6_k(const uint8_t *packed, size_t cols, float *x) {
    for (size_t at = 0; at < cols; at += PLM_SUPER, packed += PLM_Q6_K_BYTES) {
        if (endless(half_at(packed + 208))) return 0;
        const float d = plm_f16(half_at(packed + 208));
        for (int j = 0; j < 16; j++) {
            const float scale = d * (float)(int8_t)packed[192 + j];
            for (int i = 16 * j; i < 16 * (j + 1); i++)
                *x++ = scale * (float)(plm_quant_q6_k(packed, packed + 128, i) - 32);
        }
    }
    return 1;
}
