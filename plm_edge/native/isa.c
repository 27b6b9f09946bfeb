/* Which instruction sets were compiled in, and which of them this CPU has. */
#include "plm.h"

const plm_isa *plm_isa_at(int index) {
    static const plm_isa *const sets[] = {
        &plm_scalar,
    };
    return index >= 0 && index < (int)(sizeof sets / sizeof *sets) ? sets[index] : NULL;
}

const char *plm_isa_name(const plm_isa *isa) { return isa->name; }

int plm_isa_runs(const plm_isa *isa) {
    if (isa == &plm_scalar) return 1;
    return 0;
}
