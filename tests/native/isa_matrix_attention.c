/* Attention with 16 heads side by side: rows of bytes widened, lanes, scores, softmax, blend in floats and integers,
 * scores and blend of bytes. */
#include "isa_matrix.h"

static void lanes(int32_t n_lanes, int32_t n) {
    const int32_t stride = n + 3;
    const size_t there = (size_t)((n_lanes - 1) * stride + n) * 4, made = (size_t)(n * PLM_TILE) * 4;
    guarded x = take(there), got = take(made), want = take(made);
    for (size_t i = 0; i < there; i++) x.at[i] = (uint8_t)below(256); /* any bits: not only floats are laid so */
    plm_scalar.lanes(values(x), stride, n_lanes, n, values(want));
    if (bend) x.at[0] ^= 1;
    tested->lanes(values(x), stride, n_lanes, n, values(got));
    same_bytes("lanes", n_lanes, n, got.at, want.at, made);
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

static void words(int32_t n) {
    guarded q = take((size_t)n), got = take((size_t)n * 2), want = take((size_t)n * 2);
    for (int32_t i = 0; i < n; i++) q.at[i] = (uint8_t)below(256);
    plm_scalar.words((const int8_t *)q.at, n, integers(want));
    if (bend) q.at[n - 1] ^= 1;
    tested->words((const int8_t *)q.at, n, integers(got));
    same_bytes("words", n, 0, got.at, want.at, (size_t)n * 2);
    drop(q), drop(got), drop(want);
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

/* `special` is a weight of lane 1 and a scale of block 1. */
static void blend_words(int32_t n_lanes, int32_t rows, int32_t blocks, float special) {
    const int32_t n = blocks * PLM_BLOCK, stride = n + 2 * PLM_BLOCK, y_stride = n + 5;
    const int32_t all = (n_lanes - 1) * y_stride + n;
    guarded weights = floats(rows * PLM_TILE), x = take((size_t)(PLM_BLOCK * stride) * 2);
    guarded scales = floats((rows - 1) * (stride / PLM_BLOCK) + blocks), shrink = floats(PLM_TILE);
    guarded y = floats(all), want = copy_of(y.at, (size_t)all * 4);
    for (int32_t i = 0; i < PLM_BLOCK * stride; i++)
        integers(x)[i] = (int16_t)(below(8) ? below(2 * PLM_PANEL + 1) - PLM_PANEL : PLM_PANEL);
    if (special != 1.0f && rows > 2)
        values(weights)[2 * PLM_TILE + 1] = special, values(scales)[stride / PLM_BLOCK + blocks - 1] = special;
    plm_scalar.blend_words(values(weights), integers(x), values(scales), stride, rows, n, values(shrink), n_lanes,
                           values(want), y_stride, NULL);
    if (bend) values(weights)[0] = 1e9f, values(scales)[0] = 1e9f, integers(x)[0] = PLM_PANEL / 2, values(shrink)[0] = 3;
    tested->blend_words(values(weights), integers(x), values(scales), stride, rows, n, values(shrink), n_lanes,
                        values(y), y_stride, rows % 2 ? x.at : NULL);
    same("blend of integers", n, rows, values(y), values(want), all);
    drop(weights), drop(x), drop(scales), drop(shrink), drop(y), drop(want);
}

static void blends_of_words(void) {
    static const int32_t rows[] = {1, 2, 3, 15, 16, 31, 32}, blocks[] = {1, 3, 16, 17};
    static const int32_t lanes_of[] = {1, 7, 8, 9, 15, 16};
    for (int k = 0; k < 7; k++)
        for (int l = 0; l < 6; l++)
            for (int b = 0; b < 4; b++) blend_words(lanes_of[l], rows[k], blocks[b], 1.0f);
    for (int k = 2; !bend && k < 7; k++) {
        blend_words(16, rows[k], 3, NAN), blend_words(16, rows[k], 3, INFINITY);
        blend_words(16, rows[k], 3, 0.0f), blend_words(16, rows[k], 3, 1e30f);
    }
}

/* `special` is a scale of the last block, in a row that only lanes from 8 on weigh. */
static void blend_rows(int32_t n_lanes, int32_t blocks, float special) {
    const int32_t n = blocks * PLM_BLOCK, y_stride = n + 5, all = (n_lanes - 1) * y_stride + n, row = 20;
    guarded weights = take(PLM_BLOCK * PLM_TILE * 4), x = take((size_t)(PLM_BLOCK * n) * 2);
    guarded scales = take((size_t)(PLM_BLOCK * blocks) * 4), shrink = floats(PLM_TILE);
    guarded y = floats(all), want = copy_of(y.at, (size_t)all * 4);
    for (int32_t i = 0; i < PLM_BLOCK * PLM_TILE; i++)
        values(weights)[i] = below(4) && (i % PLM_TILE > 7 || i / PLM_TILE != row) ? fabsf(symmetric()) : 0.0f;
    for (int32_t i = 0; i < PLM_BLOCK * blocks; i++) values(scales)[i] = fabsf(symmetric());
    if (special != 1.0f) values(scales)[row * blocks + blocks - 1] = special;
    for (int32_t i = 0; i < PLM_BLOCK * n; i++) integers(x)[i] = (int16_t)(below(2 * PLM_PANEL + 1) - PLM_PANEL);
    for (int32_t l = 0; l < n_lanes; l++)
        for (int32_t b = 0; b < blocks; b++) {
            float by_row[PLM_BLOCK], scale;
            int16_t whole[PLM_BLOCK];
            for (int32_t r = 0; r < PLM_BLOCK; r++) {
                const float weight = values(weights)[r * PLM_TILE + l];
                by_row[r] = weight != 0.0f ? weight * values(scales)[r * blocks + b] : 0.0f;
            }
            plm_scalar.pack(by_row, PLM_BLOCK, PLM_PANEL, whole, &scale, NULL);
            for (int32_t c = b * PLM_BLOCK; c < (b + 1) * PLM_BLOCK; c++) {
                int32_t sum = 0;
                for (int32_t r = 0; r < PLM_BLOCK; r++) sum += whole[r] * integers(x)[r * n + c];
                float *to = values(want) + l * y_stride + c;
                *to = *to * values(shrink)[l] + (float)sum * scale;
            }
        }
    if (bend) values(weights)[0] = 1e9f, values(scales)[0] = 1e9f;
    if (bend) integers(x)[0] = PLM_PANEL / 2, values(shrink)[0] = 3;
    tested->blend_rows(values(weights), integers(x), values(scales), n, values(shrink), n_lanes, values(y), y_stride);
    same("blend of a prompt's rows", n, n_lanes, values(y), values(want), all);
    drop(weights), drop(x), drop(scales), drop(shrink), drop(y), drop(want);
}

static void blends_of_rows(void) {
    static const int32_t lanes_of[] = {1, 7, 8, 9, 16};
    for (int l = 0; l < 5; l++)
        for (int32_t blocks = 1; blocks < 5; blocks++) blend_rows(lanes_of[l], blocks, 1.0f);
    for (int l = 0; !bend && l < 5; l++) {
        blend_rows(lanes_of[l], 2, NAN), blend_rows(lanes_of[l], 2, INFINITY);
        blend_rows(lanes_of[l], 2, 0.0f), blend_rows(lanes_of[l], 2, 1e-38f);
    }
}

/* Rows of bytes laid out by each set for itself, scored and blended. `special` is a weight of lane 1 and a scale of the
 * last block. */
static void bytes(int32_t n_lanes, int32_t rows, int32_t blocks, float special) {
    const int32_t n = blocks * PLM_BLOCK, stride = n + 3, x_stride = blocks + 2, y_stride = n + 5;
    const int32_t all = (n_lanes - 1) * y_stride + n, scored = rows * PLM_TILE;
    const size_t fours = (size_t)((rows + 3) / 4 * 4 * n);
    guarded x = take((size_t)((rows - 1) * stride + n)), x_scale = floats((rows - 1) * x_stride + blocks);
    guarded panel = take((size_t)(n * PLM_TILE)), start = take((size_t)(blocks * PLM_TILE) * 4);
    guarded scales = floats(blocks * PLM_TILE), scores = floats(scored), weights = floats(scored);
    guarded shrink = floats(PLM_TILE), y = floats(all), row = take((size_t)(rows * n)), four = take(fours);
    guarded want_scores = copy_of(scores.at, (size_t)scored * 4), want = copy_of(y.at, (size_t)all * 4);
    int32_t *begin = (int32_t *)(void *)start.at;
    const int8_t *query = (const int8_t *)panel.at;
    for (int32_t i = 0; i < (rows - 1) * stride + n; i++) x.at[i] = (uint8_t)(below(8) ? below(256) : 128);
    for (int32_t i = 0; i < n * PLM_TILE; i++) panel.at[i] = (uint8_t)(below(8) ? below(255) - 127 : 127);
    for (int32_t i = 0; i < blocks * PLM_TILE; i++) begin[i] = 0;
    for (int32_t i = 0; i < n * PLM_TILE; i++)
        begin[i / (PLM_BLOCK * PLM_TILE) * PLM_TILE + i / 4 % PLM_TILE] -= 128 * query[i];
    for (int32_t i = 0; i < scored; i++) values(weights)[i] = fabsf(values(weights)[i]);
    for (int32_t i = 0; i < (rows - 1) * x_stride + blocks; i++) values(x_scale)[i] = fabsf(values(x_scale)[i]);
    for (int l = 0; l < PLM_TILE && rows % 2; l++) values(shrink)[l] = 1.0f;
    if (special != 1.0f && rows > 2)
        values(weights)[2 * PLM_TILE + 1] = special, values(x_scale)[x_stride + blocks - 1] = special;
    plm_scalar.lay_bytes((const int8_t *)x.at, stride, rows, n, row.at, (int8_t *)four.at);
    plm_scalar.score_bytes(query, begin, values(scales), row.at, n, values(x_scale), x_stride, rows,
                           values(want_scores));
    plm_scalar.blend_bytes(values(weights), (const int8_t *)four.at, values(x_scale), x_stride, rows, n,
                           values(shrink), n_lanes, values(want), y_stride, NULL, 0);
    memset(row.at, 0xff, (size_t)(rows * n)), memset(four.at, 0xff, fours); /* what a set does not write is wrong */
    if (bend) x.at[0] ^= 0x40, values(x_scale)[0] = 1e9f, values(weights)[0] = 1e9f;
    tested->lay_bytes((const int8_t *)x.at, stride, rows, n, row.at, (int8_t *)four.at);
    tested->score_bytes(query, begin, values(scales), row.at, n, values(x_scale), x_stride, rows, values(scores));
    tested->blend_bytes(values(weights), (const int8_t *)four.at, values(x_scale), x_stride, rows, n, values(shrink),
                        n_lanes, values(y), y_stride, rows % 2 ? x.at : NULL, rows * stride);
    same("scores of bytes", n, rows, values(scores), values(want_scores), scored);
    same("blend of bytes", n, rows, values(y), values(want), all);
    drop(x), drop(x_scale), drop(panel), drop(start), drop(scales), drop(scores), drop(weights), drop(shrink);
    drop(y), drop(row), drop(four), drop(want_scores), drop(want);
}

static void blends_of_bytes(void) {
    static const int32_t rows[] = {1, 2, 3, 4, 7, 16, 33, 62, 64}, blocks[] = {1, 2, 3, 16, 17};
    static const int32_t lanes_of[] = {1, 3, 6, 8, 11, 15, 16};
    for (int k = 0; k < 9; k++)
        for (int l = 0; l < 7; l++)
            for (int b = 0; b < 5; b++) bytes(lanes_of[l], rows[k], blocks[b], 1.0f);
    for (int k = 2; !bend && k < 9; k++) {
        bytes(16, rows[k], 3, NAN), bytes(16, rows[k], 3, INFINITY);
        bytes(16, rows[k], 3, 0.0f), bytes(16, rows[k], 3, 1e30f);
    }
}

void attention_in_floats(void) {
    static const int32_t widths[] = {1, 7, 16, 33, 64, 80, 144}, rows[] = {1, 2, 4, 8, 15, 17, 32};
    static const int32_t some[] = {1, 3, 4, 9, 16};
    for (int32_t blocks = 1; blocks <= 5; blocks++) widened_bytes(blocks);
    for (int32_t n = 1; n <= 200; n += n < 70 ? 3 : 29) words(n);
    if (tested->blend_words) blends_of_words();
    if (tested->blend_rows) blends_of_rows();
    if (tested->blend_bytes) blends_of_bytes();
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
