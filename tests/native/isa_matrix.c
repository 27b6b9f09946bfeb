/* Every instruction set that was compiled in and that this CPU has, against the scalar set: sizes with tails, every
 * pattern of quants, the largest sums, NaN and infinity, idle units, outputs that belong to others. Everything that is
 * read or written ends at a page that must not be touched.
 *
 *     isa_matrix [--bend] [--anyway]
 *
 * --bend: a weight or a value is changed for the tested set; each comparison must notice. --anyway: run sets that the
 * CPU lacks. Returns 0 if all is equal, 1 if something differs. tests/test_neon.py builds it, for this machine and for
 * others under qemu; tests/test_isa.py is its bigger sister in Python.
 */
#include "isa_matrix.h"

#include <stdio.h>

/* ---- tiles and rows ---- */

/* quant >= 0: all quants are that, all activations `special`. Else random ones, `special` in the middle unless 0. */
static void products(int format, int32_t cols, int quant, float special) {
    size_t bytes = bytes_of(format, PLM_TILE, is_integer(format) ? cols : (cols + 3) / 4 * 4);
    guarded tile = weights(format, bytes, PLM_TILE, PLM_TILE * (quant_bytes(format)), quant);
    guarded plain = weights(format, bytes_of(format, 1, cols), 1, quant_bytes(format), quant), x = floats(cols);
    for (int32_t i = 0; quant >= 0 && i < cols; i++) values(x)[i] = special;
    if (quant < 0 && special != 0.0f) values(x)[cols / 2] = special;
    if (bend) values(x)[0] = 4000.0f; /* what it is multiplied with is not lost in the rounding */
    activations a = pack_of(x, 1, cols);

    float got[PLM_TILE + 1], want[PLM_TILE + 1], sizes[PLM_TILE + 1], size = 0.0f;
    for (int32_t i = 0; i < cols; i++) size += 2.0f * fabsf(values(x)[i]);
    for (int r = 0; r <= PLM_TILE; r++) sizes[r] = size;
    plm_scalar.tile[format](tile.at, cols, &a.v, 1, want, PLM_TILE);
    want[PLM_TILE] = plm_scalar.row[format](plain.at, cols, &a.v);
    bend_at(tile.at + (is_integer(format) ? 2 * PLM_TILE : 0), format);
    bend_at(plain.at + (is_integer(format) ? 2 : 0), format);
    tested->tile[format](tile.at, cols, &a.v, 1, got, PLM_TILE);
    got[PLM_TILE] = tested->row[format](plain.at, cols, &a.v);
    if (is_integer(format)) {
        same("tile", cols, format, got, want, PLM_TILE);
        same("row", cols, format, got + PLM_TILE, want + PLM_TILE, 1);
    } else {
        near("tile", cols, got, want, sizes, PLM_TILE);
        near("row", cols, got + PLM_TILE, want + PLM_TILE, sizes, 1);
    }
    drop(tile), drop(plain), drop_activations(a);
}

static void added_rows(int format, int32_t cols, int32_t count) {
    size_t bytes = bytes_of(format, count, cols), last = bytes_of(format, count - 1, cols);
    guarded w = weights(format, bytes, 1, quant_bytes(format), -1), y = floats(cols), a = take((size_t)count * 4);
    guarded want = copy_of(y.at, (size_t)cols * sizeof(float));
    for (int32_t i = 0; i < count; i++) values(a)[i] = 4000.0f * (1.1f + symmetric());
    plm_scalar.add_rows[format](w.at, cols, values(a), count, values(want));
    bend_at(w.at + last + (is_integer(format) ? 2 : 0), format);
    tested->add_rows[format](w.at, cols, values(a), count, values(y));
    same("add_rows", cols, count, values(y), values(want), cols);
    drop(w), drop(y), drop(a), drop(want);
}

/* ---- groups of units ---- */

static void units(int format, int32_t width, int32_t count, int32_t fire, int quant,
                  float special) {
    int64_t quants = is_integer(format) ? PLM_BLOCK * (int64_t)width * (format == PLM_Q8_0 ? 2 : 1) / 2 : 0;
    size_t bytes = is_integer(format) ? (size_t)(2 * width + quants) : bytes_of(format, count, width);
    size_t unit = is_integer(format) ? (size_t)quants / PLM_BLOCK : bytes_of(format, 1, width);
    guarded w = weights(format, bytes, width, quants, quant), y = floats(width), a = take((size_t)count * 4);
    float *h = values(a);
    for (int32_t n = 0; n < count; n++) h[n] = 0.0f;
    for (int32_t left = fire; left > 0;) {
        int32_t n = below(count);
        if (h[n] != 0.0f) continue;
        h[n] = quant >= 0 ? special : (below(2) ? 30.0f : -30.0f) * (1.1f + symmetric());
        left--;
    }
    if (quant < 0 && special != 0.0f) h[below(count)] = special;
    for (int32_t n = 0; n < count; n++) /* an idle unit is not read: NaN in every float format */
        if (h[n] == 0.0f) memset(w.at + bytes - (size_t)(count - n) * unit, 0xff, unit);
    guarded want = copy_of(y.at, (size_t)width * sizeof(float));
    /* asked for, never read */
    plm_ahead next = {.scales = w.at, .rows = 1, .row_share = 64, .scales_share = 256,
                      .near = fire % 3, .ends = fire / 2 % 2};
    next.row[0] = w.at + bytes;
    plm_scalar.units[format](w.at, width, h, count, values(want), &next);
    for (int32_t n = 0; bend && n < count; n++)
        if (fabsf(h[n]) > 1.0f) {
            size_t row = bytes - (size_t)(count - n) * unit;
            bend_at(w.at + row, format);
            break;
        }
    tested->units[format](w.at, width, h, count, values(y), &next);
    same("units", width, fire, values(y), values(want), width);
    drop(w), drop(y), drop(a), drop(want);
}

/* ---- vectors ---- */

static void packed(guarded x, int32_t n) {
    activations a = pack_of(x, 1, n);
    size_t bytes = (size_t)n * 2, blocks = (size_t)(n / PLM_BLOCK);
    guarded q = take(bytes), scale = take(blocks * 4), sum = take(blocks * 4);
    if (bend) values(x)[0] = -values(x)[0];
    tested->pack(values(x), n, PLM_LARGEST, (void *)q.at, (void *)scale.at, (void *)sum.at);
    int wrong = memcmp(q.at, a.q.at, bytes) || memcmp(sum.at, a.sum.at, blocks * 4);
    for (size_t b = 0; b < blocks; b++) {
        float got = values(scale)[b], want = a.v.scale[b];
        wrong |= !(isnan(got) && isnan(want)) && plm_to_bits(got) != plm_to_bits(want);
    }
    judge("pack", n, 0, !wrong);
    drop(q), drop(scale), drop(sum), drop_activations(a);
}

/* Blocks that are easy to get wrong. */
static guarded edges(int32_t *n) {
    static const float all[] = {0.0f, -0.0f, 1e-31f, 1e-40f, 3.4028235e38f, -3.4028235e38f, 1.0f, 1.0000001e-30f};
    static const float one[] = {NAN, INFINITY, -INFINITY};
    int32_t blocks = 8 + 3 + 2;
    guarded g = take((size_t)blocks * PLM_BLOCK * sizeof(float));
    float *x = values(g);
    for (int32_t b = 0; b < blocks; b++, x += PLM_BLOCK)
        for (int i = 0; i < PLM_BLOCK; i++) {
            if (b < 8)
                x[i] = all[b];
            else if (b < 11)
                x[i] = i == 7 * (b - 7) ? one[b - 8] : symmetric();
            else /* halves, ties where the largest is 32,767 */
                x[i] = i == 0 ? (b == 11 ? 32767.0f : -32767.0f) : (float)(below(65533) - 32766) + 0.5f;
        }
    *n = blocks * PLM_BLOCK;
    return g;
}

static void vectors(int32_t n) {
    guarded x = floats(n), y = floats(n), z = copy_of(y.at, (size_t)n * sizeof(float)), half = take((size_t)n * 2);
    guarded wide = take((size_t)n * 4), want = take((size_t)n * 4);
    float size = 0.0f, dot = plm_scalar.dot(values(x), values(y), n), other;
    for (int32_t i = 0; i < n; i++) size += fabsf(values(x)[i] * values(y)[i]);
    plm_scalar.add(0.3f, values(x), n, values(z));
    for (int32_t i = 0; i < n; i++) ((uint16_t *)(void *)half.at)[i] = (uint16_t)below(0x7c00);
    plm_scalar.widen((const void *)half.at, n, values(want));
    if (bend) values(x)[0] += 1e6f, half.at[0] ^= 0x40;
    other = tested->dot(values(x), values(y), n);
    near("dot", n, &other, &dot, &size, 1);
    tested->add(0.3f, values(x), n, values(y));
    same("add", n, 0, values(y), values(z), n);
    tested->widen((const void *)half.at, n, values(wide));
    same("widen", n, 0, values(wide), values(want), n);
    drop(x), drop(y), drop(z), drop(half), drop(wide), drop(want);
}

static void every_half(void) {
    static uint16_t half[65536];
    static float got[65536], want[65536];
    for (int i = 0; i < 65536; i++) half[i] = (uint16_t)i;
    plm_scalar.widen(half, 65536, want);
    tested->widen(half, 65536, got);
    same("every half", 65536, 0, got, want, 65536);
}

/* ---- the matrix ---- */

static void one_format(int format) {
    static const int32_t whole[] = {32, 64, 96, 160, 544}, any[] = {1, 3, 4, 7, 8, 13, 31, 32, 33, 64, 256, 513};
    static const int32_t counts[] = {1, 3, 4, 5, 9};
    static const int32_t fires[] = {1, 2, 3, 4, 5, 15, 16, 17, 31, 32};
    static const int32_t quants[] = {0x00, 0xff, 0x80, 0x7f};
    static const float specials[] = {NAN, INFINITY, -INFINITY};
    const int32_t *sizes = is_integer(format) ? whole : any, n = is_integer(format) ? 5 : 12;
    for (int i = 0; i < n; i++) {
        products(format, sizes[i], -1, 0.0f);
        for (int k = 0; k < 5; k++) added_rows(format, sizes[i], counts[k]);
        for (int k = 0; k < 10; k++) units(format, sizes[i], PLM_BLOCK, fires[k], -1, 0.0f);
    }
    if (!is_integer(format)) /* a group of floats may be short */
        for (int k = 0; k < 5; k++) units(format, 37, fires[k], fires[k], -1, 0.0f);
    if (bend) return;
    for (int i = 0; i < 3; i++) {
        products(format, 64, -1, specials[i]);
        units(format, 64, PLM_BLOCK, 3, -1, specials[i]);
    }
    units(format, 96, PLM_BLOCK, 0, -1, 0.0f);
    for (int i = 0; is_integer(format) && i < 4; i++) /* the largest sums */
        for (float x = -5.0f; x <= 5.0f; x += 5.0f) {
            products(format, 96, quants[i], x);
            units(format, 96, PLM_BLOCK, x == 0.0f ? 0 : PLM_BLOCK, quants[i], x);
        }
}

static void all(void) {
    static const int32_t sizes[] = {1, 3, 4, 7, 8, 13, 31, 32, 33, 64, 256, 513};
    int32_t n;
    for (int format = 0; format < PLM_Q4_K; format++) {
        one_format(format);
        tiles_of_tokens(format);
        units_of_tokens(format);
    }
    for (int format = PLM_Q4_K; format < PLM_FORMATS; format++) superblocks(format);
    mixes();
    panels();
    attention_in_floats();
    for (int i = 0; i < 12; i++) vectors(sizes[i]);
    packed(floats(2048), 2048);
    for (int format = 0; format < PLM_Q4_K; format++) extras(format);
    if (bend) return;
    guarded x = edges(&n);
    packed(x, n);
    every_half();
}

int main(int argc, char **argv) {
    int anyway = 0, failed = 0;
    for (int i = 1; i < argc; i++) anyway |= !strcmp(argv[i], "--anyway"), bend |= !strcmp(argv[i], "--bend");
    for (int i = 0; plm_isa_at(i); i++) {
        begin(plm_isa_at(i));
        if (!plm_isa_runs(tested) && !anyway) {
            printf("%s: not on this CPU\n", tested->name);
            continue;
        }
        printf("%s: runs\n", tested->name);
        fflush(stdout);
        all();
        printf("%s: %ld comparisons, %ld differ\n", tested->name, compared, differed);
        failed |= differed > 0;
    }
    return failed;
}
