/* Thousands of random lists on a pool, each item checked: done once, after every item of the op before it, with a
 * thread index of its own, and not at all behind the op that cancelled. Lists lie in memory of their own that is
 * poisoned and freed after the run, so that a thread that comes late is seen by AddressSanitizer or by a wrong value.
 *
 *     pool_stress THREADS LISTS SEED      exit code 1 and a line on stderr at the first fault */
#define _POSIX_C_SOURCE 200809L
#include "plm.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_OPS = 24, MAX_ITEMS = 40, MAX_THREADS = 16 };

static _Noreturn void fail(const char *what, long a, long b) {
    fprintf(stderr, "expected %s, found %ld of %ld\n", what, a, b);
    fflush(stderr);
    _Exit(1);
}

static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 31) * 0x9E3779B97F4A7C15u;
    return x ^ x >> 29;
}

static uint64_t next_random(uint64_t *state) { return mix(*state += 0x9E3779B97F4A7C15u) >> 16; }

/* An op whose items each read all that the op before wrote. Nothing here is atomic: the pool has to order it. */
typedef struct args {
    const struct args *before; /* NULL: the first */
    atomic_int *cancel;
    int *in_use; /* by thread index */
    uint64_t seed;
    int threads, items, cancels; /* cancels: the item that sets *cancel, -1: none */
    uint64_t written[MAX_ITEMS];
} args;

static uint64_t value(const args *a, size_t item) {
    uint64_t sum = a->seed + item;
    if (a->before)
        for (int i = 0; i < a->before->items; i++) sum = mix(sum + a->before->written[i]);
    return sum | 1;
}

static void sleep_ns(long ns) { nanosleep(&(struct timespec){0, ns}, NULL); }

static size_t items_of(const void *p) { return (size_t)((const args *)p)->items; }

static void do_item(const void *p, size_t item, int thread) {
    args *a = (args *)(uintptr_t)p;
    if (thread < 0 || thread >= a->threads) fail("a thread's index", thread, a->threads);
    if (item >= (size_t)a->items) fail("an item of the op", (long)item, a->items);
    if (a->in_use[thread]++) fail("an index for each thread", thread, a->in_use[thread]);
    uint64_t result = value(a, item), chance = mix(a->seed ^ item);
    if (chance % 50 == 0) sched_yield();
    if (chance % 5000 == 1) sleep_ns(3000000); /* a thread that the system holds up inside an item */
    for (uint64_t i = chance % 200; i; i--) result = result * 3 + 1, result = mix(result);
    if (a->written[item]) fail("an item done once", (long)item, a->items);
    a->written[item] = result;
    if ((int)item == a->cancels) atomic_store(a->cancel, 1);
    a->in_use[thread]--;
}

static void check(const args *a, int is_done) {
    for (int i = 0; i < a->items; i++) {
        uint64_t result = value(a, (size_t)i);
        for (uint64_t n = mix(a->seed ^ (uint64_t)i) % 200; n; n--) result = result * 3 + 1, result = mix(result);
        if (a->written[i] != (is_done ? result : 0)) fail("every item done in its turn", i, a->items);
    }
}

/* Another thread that cancels now and then. */
static struct {
    pthread_mutex_t mutex;
    atomic_int *cancel; /* of the running list, NULL: none */
    int end;
} canceller = {PTHREAD_MUTEX_INITIALIZER, NULL, 0};

static void *cancel_at_times(void *seed) {
    uint64_t random = *(uint64_t *)seed;
    for (int end = 0; !end;) {
        sleep_ns((long)(next_random(&random) % 2000000));
        pthread_mutex_lock(&canceller.mutex);
        if (canceller.cancel) atomic_store(canceller.cancel, 1);
        end = canceller.end;
        pthread_mutex_unlock(&canceller.mutex);
    }
    return NULL;
}

static void set_cancel(atomic_int *cancel) {
    pthread_mutex_lock(&canceller.mutex);
    canceller.cancel = cancel;
    pthread_mutex_unlock(&canceller.mutex);
}

typedef struct {
    plm_op ops[MAX_OPS];
    args args[MAX_OPS];
    atomic_int cancel;
} list;

/* New sizes for the list. Returns the op that cancels, or n. */
static int rewrite(list *l, int n, uint64_t *random) {
    static const int sizes[] = {0, 1, 1, 1, 2, 3, 8, MAX_ITEMS};
    int last = n;
    atomic_store(&l->cancel, 0);
    for (int i = 0; i < n; i++) {
        args *a = &l->args[i];
        a->seed = next_random(random);
        a->items = sizes[next_random(random) % 8];
        a->cancels = a->items && next_random(random) % 100 == 0 ? (int)(next_random(random) % (uint64_t)a->items) : -1;
        if (a->cancels >= 0 && last == n) last = i;
        memset(a->written, 0, sizeof a->written);
    }
    return last;
}

static void run_list(plm_pool *pool, int threads, uint64_t *random) {
    int n = (int)(next_random(random) % (MAX_OPS + 1)), in_use[MAX_THREADS] = {0};
    list *l = malloc(sizeof *l);
    if (!l) fail("memory", 0, (long)sizeof *l);
    for (int i = 0; i < n; i++) {
        const args *before = i ? &l->args[i - 1] : NULL;
        l->args[i] = (args){.before = before, .cancel = &l->cancel, .in_use = in_use, .threads = threads};
        l->ops[i] = (plm_op){{items_of, do_item}, &l->args[i]};
    }
    for (uint64_t runs = 1 + next_random(random) % 3; runs; runs--) {
        int last = rewrite(l, n, random), from_outside = next_random(random) % 4 == 0;
        if (from_outside) set_cancel(&l->cancel);
        if (next_random(random) % 200 == 0) sleep_ns(4000000); /* the workers fall asleep */
        int done = plm_run(pool, l->ops, n, &l->cancel), expected = last == n ? n : last + 1;
        if (from_outside) set_cancel(NULL);
        if (from_outside ? done > expected || (done < expected && !atomic_load(&l->cancel)) : done != expected)
            fail("all ops up to the cancelling one", done, expected);
        for (int i = 0; i < n; i++) check(&l->args[i], i < done);
    }
    memset(l, 0xA5, sizeof *l);
    free(l);
}

int main(int argc, char **argv) {
    if (argc != 4) fail("THREADS LISTS SEED", argc - 1, 3);
    int threads = atoi(argv[1]);
    uint64_t random = strtoull(argv[3], NULL, 10), other = random + 1;
    pthread_t thread;
    if (pthread_create(&thread, NULL, cancel_at_times, &other)) fail("a thread", 0, 1);
    plm_pool *pool = NULL;
    void *memory = aligned_alloc(64, (plm_pool_bytes(threads) + 63) / 64 * 64);
    for (int i = 0, lists = atoi(argv[2]); i < lists; i++) {
        if (!pool && !(pool = plm_pool_start(memory, threads))) fail("threads", 0, threads);
        run_list(pool, threads, &random);
        if (next_random(&random) % 100) continue;
        plm_pool_stop(pool);
        pool = NULL;
    }
    if (pool) plm_pool_stop(pool);
    free(memory);
    pthread_mutex_lock(&canceller.mutex);
    canceller.end = 1;
    pthread_mutex_unlock(&canceller.mutex);
    pthread_join(thread, NULL);
    return 0;
}
