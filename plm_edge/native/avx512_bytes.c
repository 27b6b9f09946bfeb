/* AVX-512 VNNI with activations of 8 bits: tiles become bytes without a sign, 16 rows by 4 columns a register, which one
 * instruction multiplies by 4 bytes of a token and adds up. */
#include "avx512.h"

enum { CHUNK = 8, BYTES_BLOCK = PLM_BLOCK * PLM_TILE, TOKENS = 8 }; /* blocks unpacked at a time: 4 KB */

/* What was added to a weight to be a byte without a sign. */
static inline int raised_by(int format) { return format == PLM_Q8_0 ? 128 : 8; }

static inline void unpack(const uint8_t *w, uint8_t *bytes, float *scales, int format) {
    _mm512_storeu_ps(scales, scales16(w));
    for (int g = 0; g < (format == PLM_Q8_0 ? 8 : 4); g++) {
        __m512i v = load64(w + 32 + 64 * g);
        if (format == PLM_Q8_0) {
            _mm512_storeu_si512(bytes + 64 * g, _mm512_xor_si512(v, _mm512_set1_epi8(-128)));
        } else {
            _mm512_storeu_si512(bytes + 64 * g, low_of(v));
            _mm512_storeu_si512(bytes + BYTES_BLOCK / 2 + 64 * g, high_of(v));
        }
    }
}

/* n blocks for R tokens: x begins with them. */
INLINED void meet(const uint8_t *bytes, const float *scales, int32_t n, const plm_vectors *x, int32_t cols, int raised,
                  float *y, int32_t stride, int R) {
    const int32_t x_blocks = cols / PLM_BLOCK;
    const int8_t *q = x->bytes;
    __m512 out[TOKENS];
    for (int r = 0; r < R; r++) out[r] = _mm512_loadu_ps(y + (int64_t)r * stride);
    for (int32_t b = 0; b < n; b++, scales += PLM_TILE, q += PLM_BLOCK) {
        __m512i sum[TOKENS];
        for (int r = 0; r < R; r++) sum[r] = _mm512_set1_epi32(-raised * x->sum[r * x_blocks + b]);
        for (int g = 0; g < PLM_BLOCK / 4; g++, bytes += 64) {
            __m512i v = load64(bytes);
            for (int r = 0; r < R; r++) sum[r] = add_bytes(sum[r], v, in_every(q + (int64_t)r * cols + 4 * g));
        }
        __m512 of_block = _mm512_loadu_ps(scales);
        for (int r = 0; r < R; r++) out[r] = add_scaled16(out[r], sum[r], of_block, x->scale[r * x_blocks + b]);
    }
    for (int r = 0; r < R; r++) _mm512_storeu_ps(y + (int64_t)r * stride, out[r]);
}

INLINED void tile_of_bytes(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                           int32_t stride, int format) {
    const int32_t blocks = cols / PLM_BLOCK, size = format == PLM_Q8_0 ? 544 : 288, raised = raised_by(format);
    _Alignas(PLM_LINE) uint8_t bytes[CHUNK * BYTES_BLOCK];
    _Alignas(PLM_LINE) float scales[CHUNK * PLM_TILE];
    for (int64_t t = 0; t < tokens; t++) memset(y + t * stride, 0, PLM_TILE * sizeof *y);
    for (int32_t b = 0; b < blocks; b += CHUNK) {
        const int32_t n = blocks - b < CHUNK ? blocks - b : CHUNK;
        for (int32_t i = 0; i < n; i++, w += size) {
            ask_ahead(w, size);
            unpack(w, bytes + i * BYTES_BLOCK, scales + i * PLM_TILE, format);
        }
        for (int32_t t = 0; t < tokens;) {
            const int64_t first = (int64_t)t * blocks + b;
            const plm_vectors at = {
                .bytes = x->bytes + first * PLM_BLOCK, .scale = x->scale + first, .sum = x->sum + first};
            float *to = y + (int64_t)t * stride;
            const int32_t R = tokens - t < TOKENS ? 1 : TOKENS;
            if (R == TOKENS)
                meet(bytes, scales, n, &at, cols, raised, to, stride, TOKENS);
            else
                meet(bytes, scales, n, &at, cols, raised, to, stride, 1);
            t += R;
        }
    }
}

void avx512_tile_of_bytes_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                               int32_t stride) {
    tile_of_bytes(w, cols, x, tokens, y, stride, PLM_Q8_0);
}
void avx512_tile_of_bytes_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                               int32_t stride) {
    tile_of_bytes(w, cols, x, tokens, y, stride, PLM_Q4_0);
}
