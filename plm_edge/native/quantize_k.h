/* Superblocks: ggml's formats of 256 values with scales of their own for every 32 or 16 of them.
 *
 *   Q4_K, 144 bytes  f16 d | f16 dmin | 12 bytes: eight pairs of 6-bit (scale, least) | 128 bytes q
 *                    x = d * scale[j] * q - dmin * least[j] in its part j of 32 values
 *                    q: byte 32 p + i holds value 64 p + i in its low, value 64 p + 32 + i in its high nibble
 *   Q6_K, 210 bytes  128 bytes low | 64 bytes high | 16 int8 scales | f16 d
 *                    x = d * scale[j] * (q - 32) in its part j of 16 values
 *                    of value 128 h + 32 k + i (h < 2, k < 4, i < 32): the low 4 bits are those of byte 64 h + i
 *                    (k = 0), 64 h + 32 + i (k = 1) and their high nibbles (k = 2, 3) of low; the high 2 bits are
 *                    bits 2 k and 2 k + 1 of byte 32 h + i of high
 *
 * Both functions return 0 where a superblock's d or dmin is NaN or an infinity.
 */
#ifndef PLM_QUANTIZE_K_H
#define PLM_QUANTIZE_K_H

#include <stddef.h>
#include <stdint.h>

enum { PLM_SUPER = 256, PLM_Q4_K_BYTES = 144, PLM_Q6_K_BYTES = 210 };

int plm_row_from_q4_k(const uint8_t *packed, size_t cols, float *x);
int plm_row_from_q6_k(const uint8_t *packed, size_t cols, float *x);

/* Scale and least of part j of Q4_K from its 12 bytes: 6 bits each; the upper two of those of parts 4 to 7 lie above
 * the scales and leasts of parts 0 to 3. */
static inline uint8_t plm_scale_q4_k(const uint8_t *twelve, int j) {
    if (j < 4) return twelve[j] & 63;
    return (uint8_t)((twelve[j + 4] & 15) | (twelve[j - 4] >> 6) << 4);
}
static inline uint8_t plm_least_q4_k(const uint8_t *twelve, int j) {
    if (j < 4) return twelve[j + 4] & 63;
    return (uint8_t)(twelve[j + 4] >> 4 | (twelve[j] >> 6) << 4);
}

/* Quant i of 256, 0..15, from the 128 bytes. */
static inline uint8_t plm_quant_q4_k(const uint8_t *q, int i) {
    uint8_t byte = q[i / 64 * 32 + i % 32];
    return i % 64 < 32 ? byte & 15 : byte >> 4;
}

/* Quant i of 256, 0..63, from the 128 and 64 bytes. */
static inline uint8_t plm_quant_q6_k(const uint8_t *low, const uint8_t *high, int i) {
    int half = i / 128, k = i % 128 / 32;
    uint8_t byte = low[64 * half + k % 2 * 32 + i % 32];
    return (uint8_t)((k < 2 ? byte & 15 : byte >> 4) | (high[32 * half + i % 32] >> 2 * k & 3) << 4);
}

#endif
