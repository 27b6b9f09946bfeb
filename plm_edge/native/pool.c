/* A pool of threads that runs a list of ops together. The caller's thread is one of them.
 *
 * Nobody ever waits for a thread, only for items. One 64-bit word holds all there is to take: how many items the open
 * op has and which is next. Adding 1 to it takes an item, of whichever op is open at that instant. An op is over when
 * as many items were reported done as it has, so it cannot be over while a thread holds an item: holding one is what
 * permits to read the list and its arguments, and a thread that comes late finds nothing to take and touches neither.
 * The thread that reports the last item runs what is too small to share and opens the next op, or ends the list.
 *
 * What orders memory: a thread's writes in an item come before its report (release); the last reporter sees them all
 * (acquire, every report being a read-modify-write of `done`); it opens the next op (release); whoever takes an item of
 * it (acquire, taking being a read-modify-write of `open`) sees all that. The fields without atomics are written by
 * the opener alone, which nobody else is at that time, and read while holding an item. */
#define _POSIX_C_SOURCE 200809L
#include "plm.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

enum { RUNNING = -1 };

/* How long a thread waits, in nanoseconds: spinning for what threads usually wait for each other's last items, then
 * giving way to others, then asleep. Between two lists it stays awake for what a decoder does between two steps. Inside
 * a list a long wait is for a thread that the system holds up: by sleeping, a thread leaves it a core. */
enum { NS_SPINNING = 50000, NS_IN_LIST = 200000, NS_BETWEEN_LISTS = 2000000 };

struct plm_pool {
    _Alignas(64) atomic_ullong open; /* items of the open op << 32 | the next one to take; more than items: none left */
    atomic_uint done;                /* items of the open op reported as done */
    unsigned items;                  /* of the open op */
    int index;                       /* of the open op in the list */
    const plm_op *ops;               /* the list */
    int n;
    const atomic_int *cancel;
    atomic_int result;            /* ops done when the list is over, RUNNING before */
    _Alignas(64) atomic_int asleep; /* whether a thread may be asleep; written under the mutex */
    atomic_int leave;               /* the pool ends */
    int threads;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct worker {
        plm_pool *pool;
        pthread_t thread;
        int index;
    } workers[];
};

/* Wakes who sleeps. What the caller changed before comes before the read of `asleep`, and in fall_asleep the write of
 * `asleep` before the look at that, in one order of all (seq_cst): one of the two sees the other. The mutex is never
 * held for more than these few instructions. */
static void wake_all(plm_pool *pool) {
    if (!atomic_load(&pool->asleep)) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->asleep, 0);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

static int any_left(unsigned long long open) { return (uint32_t)open < open >> 32; }

/* Takes an item. Having looked before, a thread overshoots at most once an op: the next item stays far from 2^32. */
static int take(plm_pool *pool, uint32_t *item) {
    if (!any_left(atomic_load_explicit(&pool->open, memory_order_relaxed))) return 0;
    unsigned long long open = atomic_fetch_add_explicit(&pool->open, 1, memory_order_acquire);
    *item = (uint32_t)open;
    return any_left(open);
}

/* From the op at `index` on: runs those of one item, opens the next one of several with its first item taken, and
 * returns 1; or ends the list and returns 0. Only while no op is open. */
static int go_on(plm_pool *pool, int index, int thread) {
    const plm_op *ops = pool->ops;
    for (;; index++) {
        if (index == pool->n || atomic_load_explicit(pool->cancel, memory_order_relaxed)) break;
        const plm_op *op = &ops[index];
        size_t items = op->kernel.items(op->args);
        if (items > 1 && pool->threads > 1) {
            pool->index = index;
            pool->items = (unsigned)items;
            atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
            atomic_store(&pool->open, (unsigned long long)items << 32 | 1);
            wake_all(pool);
            return 1;
        }
        for (size_t item = 0; item < items; item++) op->kernel.item(op->args, item, thread);
    }
    atomic_store(&pool->result, index);
    if (thread) wake_all(pool);
    return 0;
}

/* Does the item taken and all that follows as long as there is any. */
static void work(plm_pool *pool, uint32_t item, int thread) {
    for (;;) {
        const plm_op *op = &pool->ops[pool->index];
        unsigned items = pool->items, mine = 0;
        int index = pool->index;
        do {
            op->kernel.item(op->args, item, thread);
            mine++;
        } while (take(pool, &item));
        if (atomic_fetch_add_explicit(&pool->done, mine, memory_order_acq_rel) + mine != items) return;
        if (!go_on(pool, index + 1, thread)) return;
        item = 0;
    }
}

/* Whether there is nothing to do for this thread now. */
static int idle(plm_pool *pool, int thread) {
    if (any_left(atomic_load(&pool->open))) return 0;
    return thread ? !atomic_load(&pool->leave) : atomic_load(&pool->result) == RUNNING;
}

static void fall_asleep(plm_pool *pool, int thread) {
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        atomic_store(&pool->asleep, 1);
        if (!idle(pool, thread)) break;
        pthread_cond_wait(&pool->wake, &pool->mutex);
    }
    pthread_mutex_unlock(&pool->mutex);
}

static long long nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void spin_once(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Waits until there is something to do for this thread. */
static void await(plm_pool *pool, int thread) {
    long long start = nanoseconds();
    while (idle(pool, thread)) {
        int in_list = atomic_load_explicit(&pool->result, memory_order_relaxed) == RUNNING;
        long long waited = nanoseconds() - start;
        if (waited < NS_SPINNING)
            spin_once();
        else if (waited < (in_list ? NS_IN_LIST : NS_BETWEEN_LISTS))
            sched_yield();
        else
            fall_asleep(pool, thread);
    }
}

static void *work_until_end(void *p) {
    struct worker *self = p;
    plm_pool *pool = self->pool;
    while (!atomic_load_explicit(&pool->leave, memory_order_relaxed)) {
        uint32_t item;
        if (take(pool, &item))
            work(pool, item, self->index);
        else
            await(pool, self->index);
    }
    return NULL;
}

size_t plm_pool_bytes(int threads) { return sizeof(plm_pool) + sizeof(struct worker) * (size_t)threads; }

plm_pool *plm_pool_start(void *memory, int threads) {
    plm_pool *pool = memory;
    pool->threads = 1;
    atomic_init(&pool->open, 0);
    atomic_init(&pool->done, 0);
    atomic_init(&pool->result, 0);
    atomic_init(&pool->asleep, 0);
    atomic_init(&pool->leave, 0);
    if (pthread_mutex_init(&pool->mutex, NULL) || pthread_cond_init(&pool->wake, NULL)) return NULL;
    for (int i = 1; i < threads; i++) {
        struct worker *worker = &pool->workers[i];
        worker->pool = pool;
        worker->index = i;
        if (pthread_create(&worker->thread, NULL, work_until_end, worker)) {
            plm_pool_stop(pool);
            return NULL;
        }
        pool->threads++;
    }
    return pool;
}

void plm_pool_stop(plm_pool *pool) {
    atomic_store(&pool->leave, 1);
    wake_all(pool);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
}

int plm_run(plm_pool *pool, const plm_op *ops, int n, const atomic_int *cancel) {
    pool->ops = ops;
    pool->n = n;
    pool->cancel = cancel;
    atomic_store_explicit(&pool->result, RUNNING, memory_order_relaxed);
    if (go_on(pool, 0, 0)) work(pool, 0, 0);
    while (atomic_load_explicit(&pool->result, memory_order_acquire) == RUNNING) {
        uint32_t item;
        if (take(pool, &item))
            work(pool, item, 0);
        else
            await(pool, 0);
    }
    return atomic_load_explicit(&pool->result, memory_order_relaxed);
}
