/* A plain read, to know what memory can give: the bound of every kernel that meets each weight once. */
#include "plm.h"

#include <string.h>

enum { LINE = PLM_LINE, AHEAD = 4096, LANES = 8 };

uint64_t plm_read(const uint8_t *data, size_t bytes) {
    uint64_t sums[LANES] = {0};
    for (size_t at = 0; at + LINE <= bytes; at += LINE) {
        /* The CPU's own prefetcher stops at every page. Past the end this does nothing, but the address must not be
         * made as a pointer. */
        __builtin_prefetch((const void *)((uintptr_t)data + at + AHEAD));
        uint64_t words[LANES];
        memcpy(words, data + at, LINE);
        for (int i = 0; i < LANES; i++) sums[i] += words[i];
    }
    uint64_t sum = 0;
    for (int i = 0; i < LANES; i++) sum += sums[i];
    return sum;
}
