/* Panels of 16-bit integers and the vectors around them: weave, panel, weigh, exps, pack_halves. */
#include "isa_matrix.h"

/* Every size up to `most`, both ends among them; or all of them `most` where that is negative, or its opposite. */
static guarded some_integers(int32_t n, int32_t most) {
    guarded g = take((size_t)n * 2);
    for (int32_t i = 0; i < n; i++) integers(g)[i] = (int16_t)(most < 0 ? most : below(2 * most + 1) - most);
    if (most > 0) integers(g)[0] = (int16_t)-most, integers(g)[n - 1] = (int16_t)most;
    return g;
}

/* The steps between lanes and between columns: of rows, of rows across, and of neither. */
typedef struct {
    int32_t lane, column;
} steps;

typedef struct {
    int32_t lanes, rows, blocks, p_most, x_most; /* a size below 0: all values are that */
    float bad; /* the scale of one block of the last row, unless 0 */
} shape;

static void panel(const shape *s, steps at) {
    const int32_t columns = s->blocks * PLM_BLOCK, x_stride = columns + PLM_BLOCK, x_blocks = s->blocks + 1;
    const int32_t stride = PLM_TILE + 3;
    const int32_t n = (s->rows - 1) * stride + PLM_TILE, x_n = (s->rows - 1) * x_stride + columns;
    guarded p = some_integers((s->lanes - 1) * at.lane + (columns - 1) * at.column + 1, s->p_most);
    guarded x = some_integers(x_n, s->x_most), scales = floats(PLM_TILE * s->blocks);
    guarded x_scale = floats((s->rows - 1) * x_blocks + s->blocks), y = floats(n), want = copy_of(y.at, (size_t)n * 4);
    guarded theirs = take((size_t)columns * PLM_TILE * 2), ours = take((size_t)columns * PLM_TILE * 2);
    if (s->bad != 0.0f) values(x_scale)[(s->rows - 1) * x_blocks] = s->bad;
    for (int32_t i = 0; bend && i < PLM_TILE; i++) /* of the values that are bent */
        values(scales)[i] = values(x_scale)[0] = 30.0f;
    plm_scalar.weave(integers(p), at.lane, at.column, s->lanes, columns, integers(theirs));
    plm_scalar.panel(integers(theirs), values(scales), s->blocks, integers(x), x_stride, values(x_scale), x_blocks,
                     s->rows, values(want), stride);
    if (bend) integers(p)[0] += 1, integers(x)[0] = 1000;
    tested->weave(integers(p), at.lane, at.column, s->lanes, columns, integers(ours));
    tested->panel(integers(ours), values(scales), s->blocks, integers(x), x_stride, values(x_scale), x_blocks, s->rows,
                  values(y), stride);
    same("panel", s->lanes + 100 * s->blocks, s->rows, values(y), values(want), n);
    drop(p), drop(x), drop(scales), drop(x_scale), drop(y), drop(want), drop(theirs), drop(ours);
}

static void all_panels(void) {
    static const int32_t lanes[] = {1, 5, 8, 11, 16}, rows[] = {1, 2, 3, 4, 5, 7, 32}, blocks[] = {1, 2, 5};
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 7; k++)
            for (int b = 0; b < 3; b++) {
                const int32_t columns = blocks[b] * PLM_BLOCK;
                const steps each[] = {
                    {columns, 1}, {columns + 5, 1}, {1, PLM_TILE}, {1, PLM_TILE + 7}, {2, 2 * PLM_TILE + 1}};
                shape s = {lanes[i], rows[k], blocks[b], PLM_PANEL, PLM_PANEL, 0.0f};
                for (int j = 0; j < 5; j++) panel(&s, each[j]);
                s.p_most = 128, s.x_most = PLM_LARGEST;
                panel(&s, each[0]);
                s.bad = NAN;
                if (!bend) panel(&s, each[2]);
            }
    for (int32_t row = 1; !bend && row <= 6; row++) { /* the largest sums */
        static const int32_t most[][2] = {{-PLM_PANEL, -PLM_PANEL}, {-128, -PLM_LARGEST}, {-128, PLM_LARGEST}};
        for (int i = 0; i < 3; i++) {
            shape s = {PLM_TILE, row, 2, most[i][0], most[i][1], 0.0f};
            panel(&s, (steps){64, 1});
        }
    }
}

static void weighed(int32_t n) {
    guarded a = some_integers(n, PLM_LARGEST), b = some_integers(n, PLM_PANEL);
    guarded got = take((size_t)n * 2), want = take((size_t)n * 2);
    if (n > 1) integers(a)[1] = -1, integers(b)[1] = 16384; /* a tie below 0 */
    plm_scalar.weigh(integers(a), integers(b), n, integers(want));
    if (bend) integers(a)[n - 1] = (int16_t)~integers(a)[n - 1], integers(b)[n - 1] = 16384;
    tested->weigh(integers(a), integers(b), n, integers(got));
    same_bytes("weigh", n, 0, got.at, want.at, (size_t)n * 2);
    drop(a), drop(b), drop(got), drop(want);
}

static void exponentials(int32_t n) {
    static const float edges[] = {0.0f, -0.0f, NAN, -87.0f, -87.01f, -INFINITY, -1e-40f, -3e38f};
    guarded x = take((size_t)n * 4);
    for (int32_t i = 0; i < n; i++) values(x)[i] = -50.0f * (1.0f + symmetric());
    for (int32_t i = 0; i < 8 && i < n; i++) values(x)[n - 1 - i] = edges[i];
    guarded want = copy_of(x.at, (size_t)n * 4);
    plm_scalar.exps(values(want), n);
    if (bend) values(x)[n - 1] = -1.0f;
    tested->exps(values(x), n);
    same("exps", n, 0, values(x), values(want), n);
    drop(x), drop(want);
}

/* Blocks of halves of very different sizes; of the edges that are easy to get wrong one in every so many blocks. */
static void packed_halves(int32_t blocks, int32_t every, float most) {
    static const uint16_t edges[] = {0x0000, 0x8000, 0x0001, 0x83ff, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0xfe01};
    const int32_t n = blocks * PLM_BLOCK;
    guarded x = take((size_t)n * 2), q = take((size_t)n * 2), want_q = take((size_t)n * 2);
    guarded scale = take((size_t)blocks * 4), want = take((size_t)blocks * 4);
    uint16_t *halves = (uint16_t *)(void *)x.at;
    for (int32_t b = 0; b < blocks; b++) {
        int32_t k = b % every == 0 && b / every < 20 ? b / every : -1;
        float size = ldexpf(1.0f, below(24) - 14);
        for (int32_t i = 0; i < PLM_BLOCK; i++) { /* every value, then one in the middle of others */
            int here = k >= 0 && (k % 2 == 0 || i == 17);
            halves[b * PLM_BLOCK + i] = here ? edges[k / 2] : plm_to_f16(size * symmetric());
        }
    }
    plm_scalar.pack_halves(halves, n, most, integers(want_q), values(want));
    if (bend) halves[n - 1] = 0x7b00;
    tested->pack_halves(halves, n, most, integers(q), values(scale));
    same_bytes("integers of halves", n, (int32_t)most, q.at, want_q.at, (size_t)n * 2);
    same("scales of halves", n, (int32_t)most, values(scale), values(want), blocks);
    drop(x), drop(q), drop(want_q), drop(scale), drop(want);
}

void panels(void) {
    static const int32_t sizes[] = {1, 3, 4, 7, 8, 13, 31, 32, 33, 64, 256, 513};
    all_panels();
    for (int i = 0; i < 12; i++) weighed(sizes[i]), exponentials(sizes[i]);
    for (int32_t blocks = 1; blocks <= 61; blocks += 20)
        packed_halves(blocks, 1, PLM_PANEL), packed_halves(blocks, 1, PLM_LARGEST);
    for (int32_t blocks = 16; blocks <= 64; blocks += 16) packed_halves(blocks, 2, PLM_PANEL);
    packed_halves(184, 9, PLM_PANEL); /* in each of eight places among ordinary blocks */
}
