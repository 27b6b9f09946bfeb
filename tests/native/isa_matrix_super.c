/* Q4_K and Q6_K: tiles, rows, added rows, groups of units. As isa_matrix.c does it for the other formats. */
#include "isa_matrix.h"

#include "superblocks.h"

enum { OTHERS = 3 }; /* outputs between those of two tokens, which belong to others */

/* The halves of n superblocks or, in a tile or a group, of as many rows as lie together; all else any bytes. */
static guarded supers(int format, int32_t rows, int32_t cols, int arrangement, int byte) {
    const int64_t block = plm_row_bytes(format, PLM_SUPER);
    guarded g = take((size_t)(rows * block * (cols / PLM_SUPER)));
    const int32_t together = arrangement == PLM_ROWS ? 1 : rows;
    for (uint8_t *p = g.at; p < g.at + rows * block * (cols / PLM_SUPER);
         p += together * block) {
        for (int64_t i = 0; i < together * block; i++) p[i] = (uint8_t)(byte < 0 ? below(256) : byte);
        uint8_t *halves = format == PLM_Q6_K && arrangement == PLM_ROWS ? p + 208 : p;
        for (int32_t i = 0; i < together * (format == PLM_Q4_K ? 2 : 1); i++) {
            uint16_t half = plm_to_f16(2.0f * symmetric());
            memcpy(halves + 2 * i, &half, sizeof half);
        }
    }
    return g;
}

/* Quant bytes of a row, a tile or a group begin here. */
static int64_t first_quant(int format, int32_t rows, int arrangement) {
    if (format == PLM_Q6_K && arrangement == PLM_ROWS) return 0;
    return rows * (format == PLM_Q4_K ? 16 : 18);
}

/* byte >= 0: all scales and quants are that, all activations `special`. */
static void products(int format, int32_t cols, int32_t tokens, int byte, float special) {
    const int32_t stride = PLM_TILE + OTHERS, n = (tokens - 1) * stride + PLM_TILE;
    guarded tile = supers(format, PLM_TILE, cols, PLM_TILE16X4, byte), x = floats(tokens * cols);
    guarded plain = supers(format, 1, cols, PLM_ROWS, byte), got = take((size_t)n * 4), want = take((size_t)n * 4);
    for (int32_t i = 0; byte >= 0 && i < tokens * cols; i++) values(x)[i] = special;
    if (byte < 0 && special != 0.0f) values(x)[tokens / 2 * cols + cols / 2] = special;
    for (int32_t t = 0; bend && t < tokens; t++) values(x)[t * cols] = 4000.0f;
    activations a = pack_of(x, tokens, cols);
    for (int32_t i = 0; i < n; i++) values(got)[i] = values(want)[i] = -77.25f;
    float row[2] = {plm_scalar.row[format](plain.at, cols, &a.v), 0.0f};
    plm_scalar.tile[format](tile.at, cols, &a.v, tokens, values(want), stride);
    if (bend) tile.at[first_quant(format, PLM_TILE, PLM_TILE16X4)] ^= 0x47;
    if (bend) plain.at[first_quant(format, 1, PLM_ROWS)] ^= 0x47;
    tested->tile[format](tile.at, cols, &a.v, tokens, values(got), stride);
    row[1] = tested->row[format](plain.at, cols, &a.v);
    same("tile", cols, tokens, values(got), values(want), n);
    same("row", cols, format, row + 1, row, 1);
    drop(tile), drop(plain), drop(got), drop(want), drop_activations(a);
}

static void added(int format, int32_t cols, int32_t count) {
    guarded w = supers(format, count, cols, PLM_ROWS, -1), y = floats(cols), a = take((size_t)count * 4);
    guarded want = copy_of(y.at, (size_t)cols * sizeof(float));
    for (int32_t i = 0; i < count; i++) values(a)[i] = 4000.0f * (1.1f + symmetric());
    plm_scalar.add_rows[format](w.at, cols, values(a), count, values(want));
    if (bend) w.at[(count - 1) * plm_row_bytes(format, cols) + first_quant(format, 1, PLM_ROWS)] ^= 0x47;
    tested->add_rows[format](w.at, cols, values(a), count, values(y));
    same("add_rows", cols, count, values(y), values(want), cols);
    drop(w), drop(y), drop(a), drop(want);
}

static void part_units(int format, int32_t width, int32_t part, int32_t fire, int byte, float special) {
    const int64_t unit = plm_unit_bytes_super(format, width);
    guarded w = supers(format, width, PLM_SUPER, PLM_GROUP32, byte), y = floats(width), a = take(PLM_BLOCK * 4);
    guarded want = copy_of(y.at, (size_t)width * sizeof(float));
    float *h = values(a);
    for (int32_t n = 0; n < PLM_BLOCK; n++) h[n] = 0.0f;
    for (int32_t left = fire; left > 0;) {
        int32_t n = below(PLM_BLOCK);
        if (h[n] != 0.0f) continue;
        h[n] = byte >= 0 ? special : (below(2) ? 3000.0f : -3000.0f) * (1.1f + symmetric());
        left--;
    }
    if (byte < 0 && special != 0.0f) h[below(PLM_BLOCK)] = special;
    plm_scalar.part_units[format](w.at, width, part, h, values(want));
    uint8_t *rows = w.at + first_quant(format, width, PLM_GROUP32) + part * (PLM_BLOCK * unit);
    for (int32_t n = 0, bent = !bend; n < PLM_BLOCK; n++) /* an idle unit is not read, a bent one is noticed */
        if (h[n] == 0.0f)
            memset(rows + n * unit, 0xa5, (size_t)unit);
        else if (!bent)
            rows[n * unit] ^= 0x47, bent = 1;
    tested->part_units[format](w.at, width, part, h, values(y));
    same("part_units", width, fire, values(y), values(want), width);
    drop(w), drop(y), drop(a), drop(want);
}

static void part_rows(int format, int32_t width, int32_t part, int32_t first, int32_t last) {
    const int64_t unit = plm_unit_bytes_super(format, width);
    const int32_t n = PLM_BLOCK * (last - first);
    guarded w = supers(format, width, PLM_SUPER, PLM_GROUP32, -1), got = take((size_t)n * 4), want = take((size_t)n * 4);
    plm_scalar.part_rows[format](w.at, width, part, first, last, values(want));
    if (bend)
        w.at[first_quant(format, width, PLM_GROUP32) + part * (PLM_BLOCK * unit) + first / PLM_BLOCK * 16] ^= 0x47;
    tested->part_rows[format](w.at, width, part, first, last, values(got));
    same("part_rows", last - first, part, values(got), values(want), n);
    drop(w), drop(got), drop(want);
}

void superblocks(int format) {
    static const int32_t cols[] = {256, 512, 1280}, tokens[] = {1, 2, 3, 4, 5, 7, 8, 9, 33};
    static const int32_t widths[] = {32, 64, 96, 128, 160, 544}, fires[] = {1, 2, 3, 5, 8, 13, 16, 17, 31, 32};
    static const int32_t ends[][2] = {{0, 32}, {32, 160}, {128, 160}, {0, 160}}, bytes[] = {0x00, 0xff, 0x80, 0x7f};
    static const float specials[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 9; k++) products(format, cols[i], tokens[k], -1, 0.0f);
        for (int32_t count = 1; count < 10; count += 2) added(format, cols[i], count);
    }
    for (int32_t part = 0; part < PLM_PARTS; part++) {
        for (int i = 0; i < 6; i++)
            for (int k = part % 2; k < 10; k += 2) part_units(format, widths[i], part, fires[k], -1, 0.0f);
        for (int i = 0; i < 4; i++) part_rows(format, 160, part, ends[i][0], ends[i][1]);
    }
    if (bend) return;
    part_units(format, 96, 3, 0, -1, 0.0f);
    for (int i = 0; i < 3; i++) {
        products(format, 256, 3, -1, specials[i]);
        part_units(format, 64, 2, 3, -1, specials[i]);
    }
    for (int i = 0; i < 4; i++) /* the largest sums */
        for (float x = -5.0f; x <= 5.0f; x += 5.0f) {
            products(format, 256, 2, bytes[i], x);
            part_units(format, 96, i, x == 0.0f ? 0 : PLM_BLOCK, bytes[i], x);
        }
}
