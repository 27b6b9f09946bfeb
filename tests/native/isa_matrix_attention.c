/* Attention in floats, 16 heads side by side: rows of bytes widened, lanes, scores, softmax, blend. */
#include "isa_matrix.h"

static void lanes(int32_t n_lanes, int32_t n) {
    const int32_t stride = n + 3;
    guarded x = floats((n_lanes - 1) * stride + n), got = take((size_t)(n * PLM_TILE) * 4);
    guarded want = take((size_t)(n * PLM_TILE) * 4);
    plm_scalar.lanes(values(x), stride, n_lanes, n, values(want));
    if (bend) values(x)[0] += 1.0f;
    tested->lanes(values(x), stride, n_lanes, n, values(got));
    same("lanes", n_lanes, n, values(got), values(want), n * PLM_TILE);
    drop(x), drop(got), drop(want);
}

static void widened_bytes(int32_t blocks) {
    const int32_t n = blocks * PLM_BLOCK;
    guarded q = take((size_t)n), scales = take((size_t)blocks * 2), got = take((size_t)n * 4), want = take((size_t)n * 4);
    for (int32_t i = 0; i < n; i++) q.at[i] = (uint8_t)below(256);
    for (int32_t b = 0; b < blocks; b++) ((uint16_t *)(void *)scales.at)[b] = (uint16_t)below(65536); /* NaN too */
    plm_scalar.widen_bytes((const int8_t *)q.at, (const void *)scales.at, blocks, values(want));
    if (bend) q.at[0] ^= 0x40, *(uint16_t *)(void *)scales.at = 0x3c00;
    tested->widen_bytes((const int8_t *)q.at, (const void *)scales.at, blocks, values(got));
    same("widen_bytes", blocks, 0, values(got), values(want), n);
    drop(q), drop(scales), drop(got), drop(want);
}

static void scores(int32_t rows, int32_t n, int ahead) {
    const int32_t stride = n + 1, all = rows * PLM_TILE;
    guarded q = floats(n * PLM_TILE), x = floats((rows - 1) * stride + n);
    guarded got = take((size_t)all * 4), want = take((size_t)all * 4), sizes = take((size_t)all * 4);
    for (int32_t i = 0; i < all; i++) {
        values(sizes)[i] = 0.0f;
        for (int32_t c = 0; c < n; c++)
            values(sizes)[i] += fabsf(values(q)[c * PLM_TILE + i % PLM_TILE] * values(x)[i / PLM_TILE * stride + c]);
    }
    plm_scalar.scores(values(q), values(x), stride, rows, n, 0.3f, values(want), NULL);
    if (bend) values(q)[0] += 1e3f, values(x)[0] += 1e3f;
    tested->scores(values(q), values(x), stride, rows, n, 0.3f, values(got), ahead ? x.at : NULL);
    near("scores", n, values(got), values(want), values(sizes), all);
    drop(q), drop(x), drop(got), drop(want), drop(sizes);
}

/* `special` is one score of lane 3. */
static void softmax(int32_t rows, float special) {
    const int32_t all = rows * PLM_TILE;
    guarded x = take((size_t)all * 4), most = floats(PLM_TILE), sum = floats(PLM_TILE), shrink = take(PLM_TILE * 4);
    for (int32_t i = 0; i < all; i++) values(x)[i] = 20.0f * symmetric();
    if (special != 0.0f) values(x)[(rows - 1) * PLM_TILE + 3] = special;
    for (int l = 0; l < PLM_TILE; l++) {
        values(most)[l] = l % 4 ? 20.0f * symmetric() : -INFINITY;
        values(sum)[l] = l % 4 ? 1.5f + symmetric() : 0.0f;
    }
    values(most)[1] = 21.0f; /* above all scores, so that bending one changes each result */
    guarded want = copy_of(x.at, (size_t)all * 4), most_want = copy_of(most.at, PLM_TILE * 4);
    guarded sum_want = copy_of(sum.at, PLM_TILE * 4), shrink_want = take(PLM_TILE * 4);
    plm_scalar.softmax(values(want), rows, values(most_want), values(sum_want), values(shrink_want));
    if (bend) values(x)[1] += 60.0f;
    tested->softmax(values(x), rows, values(most), values(sum), values(shrink));
    same("weights", rows, 0, values(x), values(want), all);
    same("most", rows, 0, values(most), values(most_want), PLM_TILE);
    same("sum", rows, 0, values(sum), values(sum_want), PLM_TILE);
    same("shrink", rows, 0, values(shrink), values(shrink_want), PLM_TILE);
    drop(x), drop(most), drop(sum), drop(shrink), drop(want), drop(most_want), drop(sum_want), drop(shrink_want);
}

static void blend(int32_t n_lanes, int32_t rows, int32_t n) {
    const int32_t stride = n + 2, y_stride = n + 5, all = (n_lanes - 1) * y_stride + n;
    guarded weights = floats(rows * PLM_TILE), x = floats((rows - 1) * stride + n), shrink = floats(PLM_TILE);
    guarded y = floats(all), want = copy_of(y.at, (size_t)all * 4), sizes = take((size_t)all * 4);
    for (int32_t i = 0; i < all; i++) {
        int32_t l = i / y_stride, c = i % y_stride;
        values(sizes)[i] = c < n ? fabsf(values(y)[i] * values(shrink)[l]) : 0.0f; /* between lanes nothing changes */
        for (int32_t r = 0; c < n && r < rows; r++)
            values(sizes)[i] += fabsf(values(weights)[r * PLM_TILE + l] * values(x)[r * stride + c]);
    }
    plm_scalar.blend(values(weights), values(x), stride, rows, n, values(shrink), n_lanes, values(want), y_stride);
    if (bend) values(weights)[0] += 1e3f, values(x)[0] += 1e3f;
    tested->blend(values(weights), values(x), stride, rows, n, values(shrink), n_lanes, values(y), y_stride);
    near("blend", n, values(y), values(want), values(sizes), all);
    drop(weights), drop(x), drop(shrink), drop(y), drop(want), drop(sizes);
}

void attention_in_floats(void) {
    static const int32_t widths[] = {1, 7, 16, 33, 64, 80, 144}, rows[] = {1, 2, 4, 8, 15, 17, 32};
    static const int32_t some[] = {1, 3, 4, 9, 16};
    for (int32_t blocks = 1; blocks <= 5; blocks++) widened_bytes(blocks);
    for (int i = 0; i < 7; i++)
        for (int k = 0; k < 5; k++) lanes(some[k], widths[i]);
    for (int i = 0; i < 7; i++)
        for (int k = 0; k < 7; k++) {
            scores(rows[k], widths[i], i % 2);
            for (int l = 0; l < 5; l++) blend(some[l], rows[k], widths[i]);
        }
    for (int k = 0; k < 7; k++) softmax(rows[k], 0.0f);
    for (int k = 0; !bend && k < 7; k++) softmax(rows[k], NAN), softmax(rows[k], INFINITY), softmax(rows[k], -INFINITY);
}
