/* The screened head: a coarse head says which tiles of 16 rows may hold the likeliest tokens, only those are read. */
#include "kernels.h"

enum { PEAKS_PER_ITEM = 64, TILES_PER_ITEM = 4096 };

static int32_t tiles_of(const plm_screen *a) { return (a->w.rows + PLM_TILE - 1) / PLM_TILE; }
static int32_t rows_of(const plm_screen *a, int32_t tile) { return plm_min(PLM_TILE, a->w.rows - tile * PLM_TILE); }

/* Integers in the order of the floats; a NaN is above all, so that its tile is read and it shows. */
static inline int32_t order_of(float f) {
    int32_t bits = (int32_t)plm_to_bits(f);
    return f != f ? INT32_MAX : bits ^ (bits < 0 ? INT32_MAX : 0);
}

/* ---- the best coarse logit of each tile ---- */

static size_t peak_items(const void *p) { return plm_ceil_div((size_t)tiles_of(p), PEAKS_PER_ITEM); }

static inline int32_t best_of(const float *logits, int32_t n) {
    int32_t best = INT32_MIN;
    for (int32_t r = 0; r < n; r++) {
        int32_t order = order_of(logits[r]);
        best = order > best ? order : best;
    }
    return best;
}

static void peak_item(const void *p, size_t item, int thread) {
    const plm_screen *a = p;
    int32_t first = (int32_t)item * PEAKS_PER_ITEM, last = plm_min(tiles_of(a), first + PEAKS_PER_ITEM);
    (void)thread;
    for (int32_t t = first; t < last; t++) {
        const float *logits = a->logits + (int64_t)t * PLM_TILE;
        int32_t rows = rows_of(a, t);
        a->peaks[t] = rows == PLM_TILE ? best_of(logits, PLM_TILE) : best_of(logits, rows);
    }
}

/* ---- the `count` best tiles, without sorting ---- */

static size_t choose_items(const void *p) {
    (void)p;
    return 1;
}

/* The value of which `count` peaks are at least as large, byte by byte from the top; *ties: how many peaks equal to
 * it are among the `count`. */
static int32_t lowest_of(const int32_t *peaks, int32_t n, int32_t count, int32_t *ties) {
    uint64_t found = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int32_t seen[256] = {0}, byte = 255;
        for (int32_t t = 0; t < n; t++) {
            uint32_t peak = (uint32_t)peaks[t] ^ 0x80000000u;
            if ((uint64_t)peak >> (shift + 8) == found) seen[peak >> shift & 255]++;
        }
        for (; seen[byte] < count; byte--) count -= seen[byte];
        found = found << 8 | (uint32_t)byte;
    }
    *ties = count;
    return (int32_t)((uint32_t)found ^ 0x80000000u);
}

static void choose_item(const void *p, size_t item, int thread) {
    const plm_screen *a = p;
    int32_t tiles = tiles_of(a), ties, chosen = 0;
    int32_t lowest = lowest_of(a->peaks, tiles, a->count, &ties);
    (void)item;
    (void)thread;
    for (int32_t t = 0; t < tiles; t++)
        if (a->peaks[t] > lowest || (a->peaks[t] == lowest && ties-- > 0)) a->chosen[chosen++] = t;
    a->peaks[tiles] = lowest;
}

/* ---- exact logits of the chosen tiles ---- */

static size_t rescore_items(const void *p) { return (size_t)((const plm_screen *)p)->count; }

/* Take `x` into a sum of exponentials: sum[0] the maximum, sum[1] the sum of exp(x - maximum). */
static void add_exp(float *sum, float x, float weight) {
    if (!(x <= sum[0])) {
        sum[1] = sum[1] == 0.0f ? 0.0f : sum[1] * plm_exp(sum[0] - x);
        sum[0] = x; /* a NaN becomes the maximum and shows */
    }
    sum[1] += weight * plm_exp(x - sum[0]);
}

/* The product kernel on one tile, so the logits are those of the full head bit for bit. */
static void rescore_item(const void *p, size_t item, int thread) {
    const plm_screen *a = p;
    int32_t tile = a->chosen[item], rows = rows_of(a, tile), lowest = a->peaks[tiles_of(a)];
    float *logits = a->logits + (int64_t)tile * PLM_TILE, exact[PLM_TILE], *tails = a->tails + 4 * item;
    plm_product one = {a->isa, a->step, a->w, a->x, exact, 0};
    one.w.data += tile * a->tile_bytes;
    one.w.rows = rows;
    plm_kernel_of(PLM_OP_PRODUCT).item(&one, 0, thread);
    tails[0] = tails[2] = -INFINITY;
    tails[1] = tails[3] = 0.0f;
    for (int32_t r = 0; r < rows; r++) {
        if (order_of(logits[r]) < lowest) { /* not promising by itself: like a row outside */
            add_exp(tails, exact[r], 1.0f);
            add_exp(tails + 2, logits[r], 1.0f);
        }
        logits[r] = exact[r];
    }
}

/* ---- the rows outside ---- */

static size_t level_items(const void *p) { return plm_ceil_div((size_t)tiles_of(p), TILES_PER_ITEM); }

/* log x for x > 0; a NaN stays a NaN. Its own, for the same bits on every machine. */
static float log_of(float x) {
    int exponent;
    double m = frexp((double)x, &exponent); /* 0.5 .. 1 */
    if (m < 0.70710678) m *= 2.0, exponent--;
    double t = (m - 1.0) / (m + 1.0), square = t * t, sum = 0.0; /* |t| < 0.1716: the next term is below 1e-12 */
    for (int i = 13; i >= 1; i -= 2) sum = sum * square + 2.0 / i;
    return (float)(sum * t + 0.69314718055994531 * exponent);
}

/* How far the exact logits of rows like those outside lie above the coarse ones, in mass: log of the ratio of their
 * sums of exponentials. 0 where there was no such row. */
static float shift_of(const plm_screen *a) {
    float exact[2] = {-INFINITY, 0.0f}, coarse[2] = {-INFINITY, 0.0f};
    for (int32_t i = 0; i < a->count; i++) {
        const float *tails = a->tails + 4 * (int64_t)i;
        if (tails[1] != 0.0f) add_exp(exact, tails[0], tails[1]);
        if (tails[3] != 0.0f) add_exp(coarse, tails[2], tails[3]);
    }
    if (exact[1] == 0.0f || coarse[1] == 0.0f) return 0.0f;
    return exact[0] - coarse[0] + log_of(exact[1]) - log_of(coarse[1]);
}

static void level_item(const void *p, size_t item, int thread) {
    const plm_screen *a = p;
    int32_t first = (int32_t)item * TILES_PER_ITEM, last = plm_min(tiles_of(a), first + TILES_PER_ITEM), next = 0;
    float shift = shift_of(a);
    (void)thread;
    while (next < a->count && a->chosen[next] < first) next++;
    for (int32_t t = first; t < last; t++) {
        if (next < a->count && a->chosen[next] == t) {
            next++;
            continue;
        }
        float *logits = a->logits + (int64_t)t * PLM_TILE;
        int32_t rows = rows_of(a, t);
        for (int32_t r = 0; r < rows; r++) logits[r] += shift;
    }
}

/* ---- the table ---- */

plm_kernel plm_screen_kernel_of(int op) {
    static const plm_kernel table[] = {
        {peak_items, peak_item}, {choose_items, choose_item}, {rescore_items, rescore_item}, {level_items, level_item}};
    return table[op - PLM_OP_PEAK];
}
