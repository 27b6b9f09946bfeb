/* A pool of threads that runs a list of ops together. The caller's thread is one of them.
 *
 * The items of an op are handed out by a counter; after each op all threads meet. Between two lists the workers
 * spin briefly and then sleep. */
#define _POSIX_C_SOURCE 200809L
#include "plm.h"

#include <pthread.h>
#include <sched.h>

/* Turns of a waiting loop before it gives way: some 20 microseconds to yield, some milliseconds to sleep. */
enum { SPINS_BEFORE_YIELD = 2000, SPINS_BEFORE_SLEEP = 4000 };

struct plm_pool {
    int threads;
    /* The list being run; written before `list` is counted up. */
    const plm_op *ops;
    int n;
    const atomic_int *cancel;
    _Alignas(64) atomic_uint list;    /* lists begun */
    _Alignas(64) atomic_uint arrived; /* threads that finished the current op */
    _Alignas(64) atomic_ullong phase; /* ops finished by all, ever */
    _Alignas(64) atomic_size_t next;  /* next item of the current op */
    atomic_ullong stopped;            /* the phase after which nobody went on: a cancelled list */
    atomic_int leave;                 /* the pool ends */
    atomic_int sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct worker {
        plm_pool *pool;
        pthread_t thread;
        int index;
    } workers[];
};

static void pause_briefly(unsigned turn) {
    if (turn >= SPINS_BEFORE_YIELD) {
        sched_yield();
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* All threads meet; the last one prepares the next op. Returns whether the list ends here. */
static int meet(plm_pool *pool) {
    unsigned long long phase = atomic_load_explicit(&pool->phase, memory_order_acquire);
    if (atomic_fetch_add(&pool->arrived, 1) + 1 == (unsigned)pool->threads) {
        atomic_store(&pool->arrived, 0);
        atomic_store(&pool->next, 0);
        if (atomic_load(pool->cancel)) atomic_store(&pool->stopped, phase + 1);
        atomic_fetch_add(&pool->phase, 1);
    } else {
        for (unsigned turn = 0; atomic_load_explicit(&pool->phase, memory_order_acquire) == phase; turn++)
            pause_briefly(turn);
    }
    return atomic_load(&pool->stopped) == phase + 1;
}

/* One thread's share of the list. Returns the ops done by all. */
static int take_part(plm_pool *pool, int thread) {
    const plm_op *ops = pool->ops;
    int n = pool->n;
    for (int i = 0; i < n; i++) {
        size_t items = ops[i].kernel.items(ops[i].args), item;
        while ((item = atomic_fetch_add(&pool->next, 1)) < items) ops[i].kernel.item(ops[i].args, item, thread);
        if (meet(pool)) return i + 1;
    }
    return n;
}

static void *work(void *p) {
    struct worker *self = p;
    plm_pool *pool = self->pool;
    unsigned seen = 0;
    for (;;) {
        for (unsigned turn = 0; atomic_load(&pool->list) == seen; turn++) {
            if (turn < SPINS_BEFORE_SLEEP) {
                pause_briefly(turn);
                continue;
            }
            pthread_mutex_lock(&pool->mutex);
            atomic_fetch_add(&pool->sleepers, 1);
            while (atomic_load(&pool->list) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
            atomic_fetch_sub(&pool->sleepers, 1);
            pthread_mutex_unlock(&pool->mutex);
        }
        seen++;
        if (atomic_load(&pool->leave)) return NULL;
        take_part(pool, self->index);
    }
}

static void begin(plm_pool *pool) {
    atomic_fetch_add(&pool->list, 1);
    if (!atomic_load(&pool->sleepers)) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

size_t plm_pool_bytes(int threads) { return sizeof(plm_pool) + sizeof(struct worker) * (size_t)threads; }

plm_pool *plm_pool_start(void *memory, int threads) {
    plm_pool *pool = memory;
    pool->threads = 1;
    atomic_init(&pool->list, 0);
    atomic_init(&pool->arrived, 0);
    atomic_init(&pool->phase, 0);
    atomic_init(&pool->next, 0);
    atomic_init(&pool->stopped, 0);
    atomic_init(&pool->leave, 0);
    atomic_init(&pool->sleepers, 0);
    if (pthread_mutex_init(&pool->mutex, NULL) || pthread_cond_init(&pool->wake, NULL)) return NULL;
    for (int i = 1; i < threads; i++) {
        struct worker *worker = &pool->workers[i];
        worker->pool = pool;
        worker->index = i;
        if (pthread_create(&worker->thread, NULL, work, worker)) {
            plm_pool_stop(pool);
            return NULL;
        }
        pool->threads++;
    }
    return pool;
}

void plm_pool_stop(plm_pool *pool) {
    atomic_store(&pool->leave, 1);
    begin(pool);
    for (int i = 1; i < pool->threads; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
}

int plm_run(plm_pool *pool, const plm_op *ops, int n, const atomic_int *cancel) {
    pool->ops = ops;
    pool->n = n;
    pool->cancel = cancel;
    atomic_store(&pool->next, 0);
    if (atomic_load(cancel)) return 0;
    begin(pool);
    return take_part(pool, 0);
}
