/* AVX-512 VNNI with activations of 8 bits: tiles become bytes without a sign, 16 rows by 4 columns a register, which one
 * instruction multiplies by 4 bytes of a token and adds up. */
#include "avx512.h"

enum { CHUNK = 8, BYTES_BLOCK = PLM_BLOCK * PLM_TILE }; /* blocks of a tile unpacked at a time: 4 KB */
enum { SUMS = 8 };                                      /* kept in registers */

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

/* n blocks of N tiles for R tokens: x begins with them. Of loads a core has too few: the bytes of a token are loaded
 * once for two tiles. */
INLINED void meet(const uint8_t *bytes, const float *scales, int32_t n, const plm_vectors *x, int32_t cols, int format,
                  float *y, int32_t stride, int N, int R) {
    const int32_t x_blocks = cols / PLM_BLOCK;
    const int8_t *q = x->bytes;
    __m512 out[SUMS];
    for (int k = 0; k < N * R; k++) out[k] = _mm512_loadu_ps(y + k / N * (int64_t)stride + k % N * PLM_TILE);
    for (int32_t b = 0; b < n; b++, scales += PLM_TILE, q += PLM_BLOCK) {
        __m512i sum[SUMS];
        for (int r = 0; r < R; r++) {
            const __m512i raised = _mm512_slli_epi32(in_every(x->sum + r * x_blocks + b), format == PLM_Q8_0 ? 7 : 3);
            for (int i = 0; i < N; i++) sum[r * N + i] = _mm512_sub_epi32(_mm512_setzero_si512(), raised);
        }
        for (int g = 0; g < PLM_BLOCK / 4; g++, bytes += 64) {
            __m512i v[2];
            for (int i = 0; i < N; i++) v[i] = load64(bytes + i * CHUNK * BYTES_BLOCK);
            for (int k = 0; k < N * R; k++)
                sum[k] = add_bytes(sum[k], v[k % N], in_every(q + k / N * (int64_t)cols + 4 * g));
        }
        for (int i = 0; i < N; i++) {
            __m512 of_block = _mm512_loadu_ps(scales + i * CHUNK * PLM_TILE);
            for (int r = 0; r < R; r++)
                out[r * N + i] = add_scaled16(out[r * N + i], sum[r * N + i], of_block, x->scale[r * x_blocks + b]);
        }
    }
    for (int k = 0; k < N * R; k++) _mm512_storeu_ps(y + k / N * (int64_t)stride + k % N * PLM_TILE, out[k]);
}

/* N tiles behind each other, 1 or 2. */
INLINED void tiles_of_bytes(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                            int32_t stride, int format, int N) {
    const int32_t blocks = cols / PLM_BLOCK, size = format == PLM_Q8_0 ? 544 : 288, several = SUMS / N;
    _Alignas(PLM_LINE) uint8_t bytes[2 * CHUNK * BYTES_BLOCK];
    _Alignas(PLM_LINE) float scales[2 * CHUNK * PLM_TILE];
    for (int64_t t = 0; t < tokens; t++) memset(y + t * stride, 0, (size_t)(N * PLM_TILE) * sizeof *y);
    for (int32_t b = 0; b < blocks; b += CHUNK) {
        const int32_t n = blocks - b < CHUNK ? blocks - b : CHUNK;
        for (int32_t k = 0; k < N * n; k++) {
            const int32_t to = k / n * CHUNK + k % n;
            const uint8_t *from = w + ((int64_t)(k / n) * blocks + b + k % n) * size;
            ask_ahead(from, size);
            unpack(from, bytes + to * BYTES_BLOCK, scales + to * PLM_TILE, format);
        }
        for (int32_t t = 0; t < tokens;) {
            const int64_t first = (int64_t)t * blocks + b;
            const plm_vectors at = {
                .bytes = x->bytes + first * PLM_BLOCK, .scale = x->scale + first, .sum = x->sum + first};
            float *to = y + (int64_t)t * stride;
            const int32_t R = tokens - t < several ? 1 : several;
            if (R == several)
                meet(bytes, scales, n, &at, cols, format, to, stride, N, SUMS / N);
            else
                meet(bytes, scales, n, &at, cols, format, to, stride, N, 1);
            t += R;
        }
    }
}

void avx512_tile_of_bytes_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                               int32_t stride) {
    tiles_of_bytes(w, cols, x, tokens, y, stride, PLM_Q8_0, 1);
}
void avx512_tile_of_bytes_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                               int32_t stride) {
    tiles_of_bytes(w, cols, x, tokens, y, stride, PLM_Q4_0, 1);
}
void avx512_two_of_bytes_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                              int32_t stride) {
    tiles_of_bytes(w, cols, x, tokens, y, stride, PLM_Q8_0, 2);
}
void avx512_two_of_bytes_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t tokens, float *y,
                              int32_t stride) {
    tiles_of_bytes(w, cols, x, tokens, y, stride, PLM_Q4_0, 2);
}
