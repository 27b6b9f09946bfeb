/* AVX-512 VNNI: several plain rows times one token. Four blocks of four rows make one register of sums, and those of 16
 * rows are added block after block with a row in each lane: the steps of pairs_row in its order, so its bits. */
#include "avx512.h"

enum { READY = 64 }; /* blocks whose activations are taken apart at a time: 6 KiB of the stack */

/* Activations of four blocks. off and scale have a block in each 128 bits. So have top and bottom for Q4_0: first what
 * meets the low nibbles, then what meets the high ones; for Q8_0 they are two blocks, then the other two.
 * off: what the weights' offset adds to the sum of a block: 8 times its activations, or 128 times 256 times tops. */
typedef struct {
    __m512i top[2], bottom[2], off;
    __m512 scale;
} four_blocks;

/* Four times 16 bytes, `stride` apart. */
INLINED __m512i four_parts(const uint8_t *p, int stride) {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const void *)p));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(p + stride)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(p + 2 * stride)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const void *)(p + 3 * stride)), 3);
}

/* Each of the four 32 bits at p in 128 bits. */
static inline __m512i spread(const void *p) {
    const __m512i which = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_permutexvar_epi32(which, _mm512_castsi128_si512(_mm_loadu_si128(p)));
}

INLINED four_blocks blocks_at(const plm_vectors *x, int32_t b, int format) {
    uint8_t top[4 * PLM_BLOCK], bottom[4 * PLM_BLOCK];
    int32_t off[4];
    four_blocks y = {.scale = _mm512_castsi512_ps(spread(x->scale + b))};
    for (int i = 0; i < 4; i++) {
        const int16_t *q = x->q + (b + i) * PLM_BLOCK;
        __m512i words = load64(q);
        _mm256_storeu_si256((void *)(bottom + PLM_BLOCK * i), _mm512_cvtepi16_epi8(words));
        _mm256_storeu_si256((void *)(top + PLM_BLOCK * i), _mm512_cvtepi16_epi8(_mm512_srai_epi16(words, 8)));
        off[i] = 8 * x->sum[b + i];
        if (format == PLM_Q8_0) {
            off[i] = 0;
            for (int k = 0; k < PLM_BLOCK; k++) off[i] += 128 * 256 * (int8_t)top[PLM_BLOCK * i + k];
        }
    }
    for (int i = 0; i < 2; i++) {
        y.top[i] = format == PLM_Q4_0 ? four_parts(top + 16 * i, PLM_BLOCK) : load64(top + 64 * i);
        y.bottom[i] = format == PLM_Q4_0 ? four_parts(bottom + 16 * i, PLM_BLOCK) : load64(bottom + 64 * i);
    }
    y.off = spread(off);
    return y;
}

/* The sums of the four lanes of 32 bits in each 128 bits of four registers, side by side. */
INLINED __m512i add_lanes(const __m512i *v) {
    __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* Four blocks of four rows that are `bytes` apart: a block in each 128 bits, a row in each 32 of them. */
INLINED __m512i sums_q4_0(const uint8_t *w, int64_t bytes, const four_blocks *x) {
    __m512i sum[4];
    for (int r = 0; r < 4; r++) {
        __m512i v = four_parts(w + r * bytes + 2, 18), low = low_of(v), high = high_of(v);
        __m512i tops = add_bytes(add_bytes(_mm512_setzero_si512(), low, x->top[0]), high, x->top[1]);
        sum[r] = add_bytes(add_bytes(_mm512_slli_epi32(tops, 8), x->bottom[0], low), x->bottom[1], high);
    }
    return add_lanes(sum);
}

/* Their scales, in the same order. Words of the rows meet in one register where none is in the way of another. */
INLINED __m512 scales_q4_0(const uint8_t *w, int64_t bytes) {
    const __m256i order = _mm256_setr_epi16(0, 1, 2, 3, 9, 10, 11, 12, 18, 19, 20, 21, 27, 28, 29, 30);
    __m512i v = load64(w);
    for (int r = 1; r < 4; r++) v = _mm512_mask_blend_epi16(0x08040201u << r, v, load64(w + r * bytes - 2 * r));
    return _mm512_cvtph_ps(lower(_mm512_permutexvar_epi16(_mm512_castsi256_si512(order), v)));
}

/* Two blocks to a register: tops meet weights raised by 128, bottoms the weights. */
INLINED __m512i sums_q8_0(const uint8_t *w, int64_t bytes, const four_blocks *x) {
    __m512i half[2];
    for (int h = 0; h < 2; h++, w += 68) {
        __m512i sum[4];
        for (int r = 0; r < 4; r++) {
            const uint8_t *at = w + r * bytes + 2;
            __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(load32(at)), load32(at + 34), 1);
            __m512i raised = _mm512_xor_si512(v, _mm512_set1_epi8(-128));
            __m512i tops = add_bytes(_mm512_setzero_si512(), raised, x->top[h]);
            sum[r] = add_bytes(_mm512_slli_epi32(tops, 8), x->bottom[h], v);
        }
        half[h] = add_lanes(sum);
    }
    return _mm512_add_epi32(_mm512_shuffle_i32x4(half[0], half[1], 0x88), _mm512_shuffle_i32x4(half[0], half[1], 0xdd));
}

INLINED __m512 scales_q8_0(const uint8_t *w, int64_t bytes) {
    const __m256i order = _mm256_setr_epi16(0, 1, 2, 3, 17, 18, 19, 20, 4, 5, 6, 7, 21, 22, 23, 24);
    __m512i v = load64(w);
    for (int k = 1; k < 8; k++) { /* four rows, first two blocks of each, then the others */
        const uint8_t *at = w + k % 4 * bytes + k / 4 * 68;
        v = _mm512_mask_blend_epi16(0x00020001u << k, v, load64(at - 2 * k));
    }
    return _mm512_cvtph_ps(lower(_mm512_permutexvar_epi16(_mm512_castsi256_si512(order), v)));
}

/* Four rows of each of four streams that lie `apart`, times the blocks of `fours` steps, added to y. Meanwhile memory
 * is asked for their share of the rows at `next`, which lie as these do. */
INLINED __m512 sixteen_rows(const uint8_t *w, int64_t bytes, int64_t apart, const four_blocks *x, int32_t fours,
                            const uint8_t *next, __m512 y, int format) {
    const int block = plm_block_bytes(format);
    for (int32_t k = 0; k < fours; k++, x++, w += 4 * block) {
        __m512i part[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const uint8_t *rows = w + i * apart;
            for (int at = 0; next && at < 16 * block; at += LINE)
                _mm_prefetch((const void *)(next + i * apart + 16 * k * block + at), _MM_HINT_T0);
            __m512i sums = format == PLM_Q8_0 ? sums_q8_0(rows, bytes, x) : sums_q4_0(rows, bytes, x);
            __m512 scales = format == PLM_Q8_0 ? scales_q8_0(rows, bytes) : scales_q4_0(rows, bytes);
            __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, x->off));
            part[i] = _mm512_castps_si512(_mm512_mul_ps(whole, _mm512_mul_ps(scales, x->scale)));
        }
        transpose(part);
        for (int i = 0; i < 4; i++) y = _mm512_add_ps(y, _mm512_castsi512_ps(part[i]));
    }
    return y;
}

/* Each quarter of the rows is a stream: of four memory answers more at once than of one. */
INLINED void rows_of(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t count, float *y,
                     const uint8_t *next, int format) {
    const int32_t block = plm_block_bytes(format), blocks = cols / PLM_BLOCK, whole = blocks / 4 * 4;
    const int32_t quarter = count / PLM_TILE * 4;
    const int64_t bytes = blocks * (int64_t)block, apart = quarter * bytes;
    four_blocks ready[READY / 4];
    for (int32_t r = 0; r < quarter; r += 4) {
        const uint8_t *now = w + r * bytes, *then = r + 4 < quarter ? now + 4 * bytes : next;
        __m512 sums = _mm512_setzero_ps();
        float out[PLM_TILE];
        for (int32_t b = 0; b < whole; b += READY) {
            const int32_t fours = (whole - b < READY ? whole - b : READY) / 4;
            for (int32_t k = 0; (!r || whole > READY) && k < fours; k++) ready[k] = blocks_at(x, b + 4 * k, format);
            const uint8_t *share = then ? then + 4 * b * block : NULL;
            sums = sixteen_rows(now + b * block, bytes, apart, ready, fours, share, sums, format);
        }
        _mm512_storeu_ps(out, sums);
        for (int i = 0; i < PLM_TILE; i++) {
            const int32_t row = i / 4 * quarter + r + i % 4;
            const uint8_t *at = w + row * bytes;
            y[row] = whole == blocks ? out[i] : pairs_rest(out[i], at, whole, blocks, x, format, add_in_one);
        }
    }
    for (int32_t r = 4 * quarter; r < count; r++) y[r] = pairs_row(w + r * bytes, cols, x, format, add_in_one);
}

void avx512_several_rows_q8_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t count, float *y,
                              const uint8_t *next) {
    rows_of(w, cols, x, count, y, next, PLM_Q8_0);
}
void avx512_several_rows_q4_0(const uint8_t *w, int32_t cols, const plm_vectors *x, int32_t count, float *y,
                              const uint8_t *next) {
    rows_of(w, cols, x, count, y, next, PLM_Q4_0);
}
