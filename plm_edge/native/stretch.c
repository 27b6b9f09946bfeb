/* How threads share a weight that memory must bring for one token. */
#include "kernels.h"

/* What an item has when `left` pieces are left. */
static int32_t pieces_each(int32_t left, int32_t threads) {
    const int32_t each = left / (2 * threads);
    return each > 1 ? each : 1;
}

size_t plm_stretches(int32_t pieces, int32_t threads) {
    int32_t items = 0, each;
    for (; (each = pieces_each(pieces, threads)) > 1; pieces -= each * threads) items += threads;
    return (size_t)(items + pieces);
}

plm_stretch plm_stretch_at(int32_t pieces, int32_t threads, size_t item) {
    int32_t first = 0, nth = (int32_t)item, each;
    for (; (each = pieces_each(pieces - first, threads)) > 1 && nth >= threads; nth -= threads) first += each * threads;
    first = plm_min(pieces, first + nth * each);
    return (plm_stretch){first, plm_min(pieces, first + each)};
}
