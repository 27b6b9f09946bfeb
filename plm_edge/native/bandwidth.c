/* A plain read, to know what memory can give: the bound of every kernel that meets each weight once. Of several streams
 * memory answers more at once than of one, and one word brings its whole line. */
#include "kernels.h"

#include <string.h>

enum { STREAMS = 4 };

static uint64_t first_word(const uint8_t *line) {
    uint64_t word;
    memcpy(&word, line, sizeof word);
    return word;
}

static inline __attribute__((always_inline)) uint64_t read_all(const uint8_t *data, size_t bytes, int near) {
    const size_t part = bytes / STREAMS / PLM_LINE * PLM_LINE;
    uint64_t sum = 0;
    for (size_t at = 0; at < part; at += PLM_LINE)
        for (size_t s = 0; s < STREAMS; s++) {
            const uint8_t *line = data + s * part + at;
            /* The CPU's own prefetcher stops at every page. Past the end this does nothing, but the address must not be
             * made as a pointer. */
            if (near == PLM_BOTH) plm_ask_line((const uint8_t *)((uintptr_t)line + PLM_LATER), PLM_SECOND);
            plm_ask_line((const uint8_t *)((uintptr_t)line + (near == PLM_BOTH ? PLM_AT_LAST : PLM_SOON)), near);
            sum += first_word(line);
        }
    for (size_t at = STREAMS * part; at + PLM_LINE <= bytes; at += PLM_LINE) sum += first_word(data + at);
    return sum;
}

uint64_t plm_read(const uint8_t *data, size_t bytes) {
#if defined(__x86_64__) /* where that was measured */
    const int near = plm_asks_into();
    if (near == PLM_SECOND) return read_all(data, bytes, PLM_SECOND);
    if (near == PLM_BOTH) return read_all(data, bytes, PLM_BOTH);
#endif
    return read_all(data, bytes, PLM_FIRST);
}
