/*
 * Free lists by power of two, each behind its own lock, which is held for a few instructions. A block has its
 * class in front of it. The address sanitizer is told which blocks are free, so that it sees late uses all
 * the same.
 */
#include "cw/recycled.h"

#include <pthread.h>
#include <string.h>

#include "cw/mem.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(p, n)   __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n)   ((void)0)
#define UNPOISON(p, n) ((void)0)
#endif

/* Blocks of 2^6 to 2^22 bytes; of each class at most KEEP_BLOCKS and KEEP_BYTES wait for the next taker. */
enum { FIRST_SHIFT = 6, N_CLASSES = 17, KEEP_BLOCKS = 256, KEEP_BYTES = 2 << 20, UNKEPT = N_CLASSES };

typedef struct head {
    struct head *next;
    size_t class;
} head;

_Static_assert(sizeof(head) % 16 == 0, "what follows the head is aligned as malloc aligns");

static struct list {
    pthread_mutex_t lock;
    head *first;
    size_t n;
} lists[N_CLASSES] = {[0 ... N_CLASSES - 1] = {.lock = PTHREAD_MUTEX_INITIALIZER}};

static size_t class_of(size_t n)
{
    size_t c = 0;
    while (c < N_CLASSES && ((size_t)1 << (c + FIRST_SHIFT)) < n) c++;
    return c;
}

static size_t room_of(size_t class)
{
    return (size_t)1 << (class + FIRST_SHIFT);
}

void *cw_block_take(size_t n)
{
    size_t c = class_of(n), bytes;
    head *h = NULL;
    if (c != UNKEPT) {
        struct list *l = &lists[c];
        pthread_mutex_lock(&l->lock);
        if ((h = l->first)) {
            l->first = h->next;
            l->n--;
        }
        pthread_mutex_unlock(&l->lock);
    }
    if (!h) {
        if (!cw_add_size(c == UNKEPT ? n : room_of(c), sizeof *h, &bytes)) return NULL;
        if (!(h = cw_realloc(NULL, bytes, 1))) return NULL;
        h->class = c;
    } else {
        UNPOISON(h + 1, room_of(c));
    }
    h->next = NULL;
    return h + 1;
}

void *cw_block_zeroed(size_t n)
{
    void *p = cw_block_take(n);
    if (p) memset(p, 0, n);
    return p;
}

void cw_block_give(void *p)
{
    if (!p) return;
    head *h = (head *)p - 1;
    bool kept = false;
    if (h->class != UNKEPT) {
        size_t c = h->class;
        struct list *l = &lists[c];
        POISON(p, room_of(c));
        pthread_mutex_lock(&l->lock);
        if ((kept = l->n < KEEP_BLOCKS && l->n * room_of(c) < KEEP_BYTES)) {
            h->next = l->first;
            l->first = h;
            l->n++;
        }
        pthread_mutex_unlock(&l->lock);
        if (!kept) UNPOISON(p, room_of(c));
    }
    if (!kept) cw_free(h);
}

void cw_block_stock(size_t size, size_t n)
{
    enum { AT_ONCE = 64 };
    void *p[AT_ONCE];
    size_t k = 0;
    while (k < n && k < AT_ONCE && (p[k] = cw_block_take(size))) k++;
    while (k > 0) cw_block_give(p[--k]);
}
