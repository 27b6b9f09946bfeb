/* What several tokens need: tiles that all of them meet, units as floats, rows mixed. */
#include "isa_matrix.h"

enum { OTHERS = 3 }; /* outputs between those of two tokens, which belong to others */
static const float untouched = -77.25f;

static float *row_at(guarded y, int32_t t, int32_t stride) { return values(y) + (int64_t)t * stride; }

/* Each token gets the bits it gets alone, those of the scalar set for integers, and nothing between them changes.
 * quant and special as in `products` of isa_matrix.c; the special value is the middle token's. */
static void tile(int format, int32_t cols, int32_t tokens, int quant, float special) {
    const int32_t stride = PLM_TILE + OTHERS, n = (tokens - 1) * stride + PLM_TILE;
    size_t bytes = bytes_of(format, PLM_TILE, is_integer(format) ? cols : (cols + 3) / 4 * 4);
    guarded w = weights(format, bytes, PLM_TILE, PLM_TILE * quant_bytes(format), quant), x = floats(tokens * cols);
    for (int32_t i = 0; quant >= 0 && i < tokens * cols; i++) values(x)[i] = special;
    if (quant < 0 && special != 0.0f) values(x)[tokens / 2 * cols + cols / 2] = special;
    for (int32_t t = 0; bend && t < tokens; t++) values(x)[t * cols] = 4000.0f;
    activations a = pack_of(x, tokens, cols);

    guarded got = take((size_t)n * 4), want = take((size_t)n * 4), alone = take((size_t)n * 4);
    for (int32_t i = 0; i < n; i++) values(got)[i] = values(want)[i] = values(alone)[i] = untouched;
    plm_scalar.tile[format](w.at, cols, &a.v, tokens, values(want), stride);
    for (int32_t t = 0; t < tokens; t++) {
        plm_vectors one = plm_vector_at(&a.v, t, cols);
        tested->tile[format](w.at, cols, &one, 1, row_at(alone, t, stride), PLM_TILE);
    }
    bend_at(w.at + (is_integer(format) ? 2 * PLM_TILE : 0), format);
    tested->tile[format](w.at, cols, &a.v, tokens, values(got), stride);
    same("tile of tokens and of each", cols, tokens, values(got), values(alone), n);
    if (is_integer(format)) same("tile of tokens", cols, tokens, values(got), values(want), n);
    for (int32_t t = 0; !is_integer(format) && t < tokens; t++) {
        float sizes[PLM_TILE], size = 0.0f;
        for (int32_t i = 0; i < cols; i++) size += 2.0f * fabsf(values(x)[t * cols + i]);
        for (int r = 0; r < PLM_TILE; r++) sizes[r] = size;
        near("tile of tokens", cols, row_at(got, t, stride), row_at(want, t, stride), sizes, PLM_TILE);
    }
    drop(w), drop_activations(a), drop(got), drop(want), drop(alone);
}

/* Four tiles give one token what each gives it alone; what lies at `next` is none of their business. */
static void four_tiles(int format, int32_t cols, int quant) {
    const int32_t rows = 4 * PLM_TILE;
    size_t bytes = bytes_of(format, rows, cols);
    guarded w = weights(format, bytes, PLM_TILE, PLM_TILE * quant_bytes(format), quant), x = floats(cols);
    guarded got = take((size_t)rows * 4), want = take((size_t)rows * 4);
    for (int32_t i = 0; quant >= 0 && i < cols; i++) values(x)[i] = -3.0f;
    if (bend) values(x)[0] = 4000.0f;
    activations a = pack_of(x, 1, cols);
    for (int32_t i = 0; i < rows; i += PLM_TILE)
        plm_scalar.tile[format](w.at + bytes / 4 * (size_t)(i / PLM_TILE), cols, &a.v, 1, values(want) + i, PLM_TILE);
    bend_at(w.at + 3 * bytes / 4 + 2 * PLM_TILE, format);
    for (int32_t near = PLM_SECOND; near <= PLM_BOTH; near++) {
        memset(got.at, 0xff, (size_t)rows * 4);
        tested->four_tiles[format](w.at, cols, &a.v, values(got), w.at + bytes, near);
        same("four tiles", cols, near, values(got), values(want), rows);
    }
    drop(w), drop_activations(a), drop(got), drop(want);
}

static void fours_of_tiles(int format) {
    static const int32_t cols[] = {32, 64, 288, 1024};
    for (int i = 0; i < 4; i++) {
        four_tiles(format, cols[i], -1);
        if (!bend) four_tiles(format, cols[i], 0x00), four_tiles(format, cols[i], 0xff);
    }
}

/* Rows behind each other give one token what each gives it alone; what lies at `next` is none of their business. */
static void several_rows(int format, int32_t cols, int32_t count, int quant) {
    const size_t bytes = bytes_of(format, 1, cols);
    guarded w = weights(format, bytes * (size_t)count, 1, quant_bytes(format), quant), x = floats(cols);
    guarded got = take((size_t)count * 4), want = take((size_t)count * 4);
    for (int32_t i = 0; quant >= 0 && i < cols; i++) values(x)[i] = -3.0f;
    if (bend) values(x)[0] = 4000.0f;
    activations a = pack_of(x, 1, cols);
    for (int32_t i = 0; i < count; i++) values(want)[i] = plm_scalar.row[format](w.at + bytes * (size_t)i, cols, &a.v);
    bend_at(w.at + bytes * (size_t)(count - 1) + 2, format);
    for (int ahead = 0; ahead < 2; ahead++) {
        memset(got.at, 0xff, (size_t)count * 4);
        tested->rows[format](w.at, cols, &a.v, count, values(got), ahead ? w.at + bytes * (size_t)count : NULL);
        same("rows", cols, count, values(got), values(want), count);
    }
    drop(w), drop_activations(a), drop(got), drop(want);
}

static void rows_of_one_token(int format) {
    static const int32_t cols[] = {32, 96, 288, 512, 2336}, counts[] = {1, 2, 3, 7, 16, 17, 47, 128};
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 8; k++) {
            several_rows(format, cols[i], counts[k], -1);
            if (bend) continue;
            several_rows(format, cols[i], counts[k], 0x00), several_rows(format, cols[i], counts[k], 0xff);
        }
}

/* Activations of 8 bits give the bits they give as integers of 16, for a tile and for two. quant as above. */
static void tile_of_bytes(int format, int32_t cols, int32_t tokens, int quant, int32_t tiles) {
    const int32_t rows = tiles * PLM_TILE, stride = rows + OTHERS, n = (tokens - 1) * stride + rows;
    const size_t size = bytes_of(format, PLM_TILE, cols);
    guarded w = weights(format, (size_t)tiles * size, PLM_TILE, PLM_TILE * quant_bytes(format), quant);
    guarded x = floats(tokens * cols), got = take((size_t)n * 4), want = take((size_t)n * 4);
    activations a = pack_of(x, tokens, cols);
    guarded bytes = take((size_t)(tokens * cols));
    for (int32_t i = 0; i < n; i++) values(got)[i] = values(want)[i] = untouched;
    for (int32_t i = 0; quant >= 0 && i < tokens * cols; i++) values(x)[i] = i / cols % 2 ? -3.0f : 3.0f;
    plm_scalar.pack(a.v.f, tokens * cols, PLM_BYTE, a.v.q, a.v.scale, a.v.sum);
    for (int32_t i = 0; i < tokens * cols; i++) bytes.at[i] = (uint8_t)a.v.q[i];
    a.v.bytes = (int8_t *)(void *)bytes.at;
    for (int32_t i = 0; i < tiles; i++)
        plm_scalar.tile[format](w.at + (size_t)i * size, cols, &a.v, tokens, values(want) + i * PLM_TILE, stride);
    for (int32_t i = 0; bend && i < tokens * cols; i += PLM_BLOCK) bytes.at[i] ^= 0x40;
    (tiles == 2 ? tested->two_of_bytes : tested->tile_of_bytes)[format](w.at, cols, &a.v, tokens, values(got), stride);
    same(tiles == 2 ? "two tiles of bytes" : "tile of bytes", cols, tokens, values(got), values(want), n);
    drop(w), drop_activations(a), drop(bytes), drop(got), drop(want);
}

static void tiles_of_bytes(int format, int32_t tiles) {
    static const int32_t cols[] = {32, 96, 288, 544}, tokens[] = {1, 2, 4, 7, 8, 17};
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 6; k++) {
            tile_of_bytes(format, cols[i], tokens[k], -1, tiles);
            for (int quant = 0x00; !bend && quant <= 0xff; quant += 0xff)
                tile_of_bytes(format, cols[i], tokens[k], quant, tiles);
        }
}

void tiles_of_tokens(int format) {
    static const int32_t whole[] = {32, 96, 288}, any[] = {1, 7, 36}, tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 33};
    static const int32_t quants[] = {0x00, 0xff, 0x80, 0x7f};
    static const float specials[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 10; k++) tile(format, is_integer(format) ? whole[i] : any[i], tokens[k], -1, 0.0f);
    if (bend) return;
    for (int i = 0; i < 3; i++) tile(format, 64, 7, -1, specials[i]);
    for (int i = 0; is_integer(format) && i < 4; i++) /* the largest sums */
        for (float x = -5.0f; x <= 5.0f; x += 5.0f)
            for (int32_t t = 2; t <= 4; t++) tile(format, 64, t, quants[i], x);
}

/* Outputs first .. last of `units` units, which are all there is in memory. */
static void unit_rows(int format, int32_t width, int32_t first, int32_t last, int32_t units) {
    int64_t quants = is_integer(format) ? (int64_t)units * (width / PLM_BLOCK) * quant_bytes(format) : 0;
    size_t bytes = is_integer(format) ? (size_t)(2 * width + quants) : bytes_of(format, units, width);
    size_t from = bytes_of(format, 1, first);
    if (is_integer(format)) from += (size_t)(2 * width) - 2 * (size_t)(first / PLM_BLOCK); /* scales before all */
    int32_t n = units * (last - first);
    guarded w = weights(format, bytes, width, quants, -1), got = take((size_t)n * 4), want = take((size_t)n * 4);
    plm_scalar.unit_rows[format](w.at, width, first, last, units, values(want));
    bend_at(w.at + from, format);
    tested->unit_rows[format](w.at, width, first, last, units, values(got));
    same("unit_rows", last - first, units, values(got), values(want), n);
    drop(w), drop(got), drop(want);
}

/* Words of two tokens, the second before the first. Their order is the set's own: they are compared through what they
 * add up to. */
static void words(int format, int32_t width, int32_t first, int32_t last, int32_t count) {
    const int32_t n = last - first;
    const int64_t quants = (int64_t)PLM_BLOCK * (width / PLM_BLOCK) * quant_bytes(format);
    const uint16_t token[2] = {1, 0};
    const uint8_t counts[2] = {(uint8_t)count, (uint8_t)(PLM_BLOCK - count)};
    const float scale[2] = {0.5f, 2.0f};
    guarded w = weights(format, (size_t)(2 * width + quants), width, quants, -1), y = floats(2 * n), scales = floats(n);
    guarded own = take((size_t)(PLM_BLOCK * n) * 2), theirs = take((size_t)(PLM_BLOCK * n) * 2);
    guarded q = take(PLM_BLOCK * 2), which = take(PLM_BLOCK), want = copy_of(y.at, (size_t)(2 * n) * 4);
    int16_t *words = (int16_t *)(void *)q.at;
    for (int32_t k = 0; k < PLM_BLOCK; k++) {
        words[k] = (int16_t)(k % 2 ? -PLM_LARGEST + 7 * k : PLM_LARGEST - 5 * k);
        which.at[k] = (uint8_t)((5 * k + 3) % PLM_BLOCK);
    }
    const plm_fired_words fired = {words, which.at, counts, scale, token};
    plm_scalar.unit_words[format](w.at, width, first, last, (int16_t *)(void *)theirs.at);
    plm_scalar.mix_words(fired, 2, (int16_t *)(void *)theirs.at, values(scales), n, values(want));
    if (bend) words[PLM_BLOCK - 1] += 900;
    tested->unit_words[format](w.at, width, first, last, (int16_t *)(void *)own.at);
    tested->mix_words(fired, 2, (int16_t *)(void *)own.at, values(scales), n, values(y));
    same("mix_words", n, count, values(y), values(want), 2 * n);
    drop(w), drop(y), drop(scales), drop(own), drop(theirs), drop(q), drop(which), drop(want);
}

/* 32 sums of which about `positive` are above 0; special: one of them is that. */
static void keep(int32_t positive, float special) {
    guarded x = floats(PLM_BLOCK), got = take(PLM_BLOCK * 2), want = take(PLM_BLOCK * 2);
    guarded which = take(PLM_BLOCK), expected = take(PLM_BLOCK);
    float scale[2];
    for (int32_t i = 0; i < PLM_BLOCK; i++)
        values(x)[i] = fabsf(values(x)[i]) * (5 * i % PLM_BLOCK < positive ? 1.0f : -1.0f);
    if (special != 0.0f) values(x)[9] = special;
    int32_t n = plm_scalar.keep_words(values(x), (int16_t *)(void *)want.at, expected.at, scale);
    if (bend) values(x)[0] = 1e6f;
    int32_t count = tested->keep_words(values(x), (int16_t *)(void *)got.at, which.at, scale + 1);
    int equal = count == n && !memcmp(got.at, want.at, (size_t)n * 2) && !memcmp(which.at, expected.at, (size_t)n);
    equal &= scale[0] == scale[1] || (isnan(scale[0]) && isnan(scale[1]));
    float failed = equal ? 0.0f : 1.0f, none = 0.0f;
    same("keep_words", positive, n, &failed, &none, 1);
    drop(x), drop(got), drop(want), drop(which), drop(expected);
}

static void keeps(void) {
    static const float specials[] = {NAN, INFINITY, -INFINITY, 1e-20f, 1e25f};
    for (int32_t positive = bend ? 7 : 0; positive <= PLM_BLOCK; positive++) keep(positive, 0.0f);
    for (int i = 0; !bend && i < 5; i++) keep(6, specials[i]);
}

void units_of_tokens(int format) {
    static const int32_t ends[][2] = {{0, 32}, {32, 160}, {128, 160}, {0, 160}};
    for (int i = 0; i < 4; i++) unit_rows(format, 160, ends[i][0], ends[i][1], PLM_BLOCK);
    for (int32_t units = 1; !is_integer(format) && units < 8; units += 3) { /* short, odd groups */
        unit_rows(format, 37, 0, 37, units);
        unit_rows(format, 37, 32, 37, units);
    }
}

static void mix(int32_t n, int32_t count) {
    guarded w = floats(PLM_BLOCK * n), y = floats(n), a = floats(count ? count : 1), which = take((size_t)count);
    guarded want = copy_of(y.at, (size_t)n * 4), sizes = take((size_t)n * 4);
    for (int32_t k = 0; k < count; k++) which.at[k] = (uint8_t)((5 * k + 3) % PLM_BLOCK); /* each at most once */
    for (int32_t i = 0; i < n; i++) {
        float size = fabsf(values(y)[i]);
        for (int32_t k = 0; k < count; k++) size += fabsf(values(a)[k] * values(w)[which.at[k] * n + i]);
        values(sizes)[i] = size;
    }
    plm_scalar.mix(values(a), which.at, count, values(w), n, values(want));
    if (bend) values(a)[count - 1] += 1e6f;
    tested->mix(values(a), which.at, count, values(w), n, values(y));
    near("mix", n, values(y), values(want), values(sizes), n);
    drop(w), drop(y), drop(a), drop(which), drop(want), drop(sizes);
}

void mixes(void) {
    static const int32_t sizes[] = {1, 3, 4, 7, 8, 37, 63, 64, 65, 128, 131}, counts[] = {1, 2, 6, 31, 32};
    for (int i = 0; i < 11; i++)
        for (int k = 0; k < 5; k++) mix(sizes[i], counts[k]);
    for (int i = 0; !bend && i < 11; i++) mix(sizes[i], 0);
}

/* What a set may have or not. */
void extras(int format) {
    static const int32_t ends[][2] = {{0, 32}, {32, 160}, {128, 160}, {0, 160}};
    if (tested->four_tiles[format]) fours_of_tiles(format);
    if (tested->rows[format]) rows_of_one_token(format);
    if (tested->tile_of_bytes[format]) tiles_of_bytes(format, 1);
    if (tested->two_of_bytes[format]) tiles_of_bytes(format, 2);
    if (!tested->unit_words[format]) return;
    keeps();
    for (int i = 0; i < 4; i++)
        for (int32_t count = 0; count <= PLM_BLOCK; count += 2) words(format, 160, ends[i][0], ends[i][1], count);
}
