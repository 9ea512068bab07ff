/* malloc for the whole process: Doug Lea's allocator, in memory that the image can hold.
 *
 * Rule: while an image is made, all memory comes from two sections at fixed addresses (image.ld): malloc's own, and that
 * of pymalloc's arenas.  In every other process it comes from the kernel.  What an image holds is sealed: a process that
 * starts from it never gives a block of the image away again, so pages of the image stay as the file has them, and its
 * own objects lie together.
 * Spec: malloc(3), posix_memalign(3); dlmalloc 2.8.3 as libffi keeps it.
 */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "image.h"

static void *more_core(ptrdiff_t size);
static void *map_pages(size_t size);

#define USE_DL_PREFIX 1
#define USE_LOCKS 1
#define FOOTERS 0
#define INSECURE 0
#define NO_MALLINFO 1
#define ABORT_ON_ASSERT_FAILURE 0
#define MALLOC_ALIGNMENT ((size_t)16U)
#define MORECORE more_core
#define MORECORE_CONTIGUOUS 1
#define MORECORE_CANNOT_TRIM 1
#define HAVE_MMAP 1
#define HAVE_MREMAP 0
#define DEFAULT_GRANULARITY ((size_t)64U * (size_t)1024U)
#define LACKS_TIME_H 1
/* What dlmalloc asks the system for while an image is made has to come from the section; and its seed must not vary. */
#define mmap(address, size, protection, flags, fd, offset) map_pages(size)
#define time(unused) 0
#define dlmalloc_stats dlmalloc_unused_stats
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wexpansion-to-defined"
#pragma GCC diagnostic ignored "-Wnull-pointer-arithmetic"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-variable"
#include "dlmalloc.c"
#pragma GCC diagnostic pop
#undef mmap
#undef time

extern char image_heap_start[], image_heap_end[], image_arenas_start[], image_arenas_end[];

static int is_recording; /* an image is being made */
static char *heap_top = image_heap_start, *arenas_top = image_arenas_start;
static struct {
    void *start;
    size_t size;
} free_arenas[16];
static size_t free_arenas_count;
static char *next_arena = image_arenas_end + (256u << 20); /* above where the kernel may have put the break */

static int is_in_image(const void *pointer) {
    return (const char *)pointer >= image_heap_start && (const char *)pointer < image_arenas_end;
}

int heap_is_sealed(const void *pointer) {
    return !is_recording && is_in_image(pointer);
}

int heap_is_arena(const void *pointer) {
    return (const char *)pointer >= image_arenas_start && (const char *)pointer < image_arenas_end;
}

static void *take(char **top, char *end, size_t size) {
    char *start = *top;

    if (size > (size_t)(end - start))
        return NULL;
    *top += size;
    return start;
}

static void *more_core(ptrdiff_t size) {
    void *start;

    if (!is_recording || size < 0)
        return MFAIL;
    if (size == 0)
        return heap_top;
    start = take(&heap_top, image_heap_end, (size_t)size);
    return start != NULL ? start : MFAIL;
}

static void *map_pages(size_t size) {
    if (is_recording)
        return MFAIL;
    return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* Another thread may hold the lock at a fork. */
static void before_fork(void) {
    pthread_mutex_lock(&gm->mutex);
    pthread_mutex_lock(&morecore_mutex);
}

static void after_fork(void) {
    pthread_mutex_unlock(&morecore_mutex);
    pthread_mutex_unlock(&gm->mutex);
}

void heap_start(int records) {
    is_recording = records;
    pthread_atfork(before_fork, after_fork, after_fork);
}

int heap_is_recording(void) {
    return is_recording;
}

/* Forgets the heap, which is sealed thereby: what comes later lies elsewhere. */
void heap_seal(struct image_extent *heap, struct image_extent *arenas) {
    memset(gm, 0, sizeof *gm);
    memset(&mparams, 0, sizeof mparams); /* else its flags are not set again: it locks nothing, and maps nothing */
    for (size_t i = 0; i < free_arenas_count; i++)
        memset(free_arenas[i].start, 0, free_arenas[i].size);
    free_arenas_count = 0;
    heap->start = image_heap_start;
    heap->size = (size_t)(heap_top - image_heap_start);
    arenas->start = image_arenas_start;
    arenas->size = (size_t)(arenas_top - image_arenas_start);
    is_recording = 0;
}

void *malloc(size_t size) {
    return dlmalloc(size);
}

/* Nothing of what is freed may get into the image, by a block either that is taken again and not filled. */
void free(void *pointer) {
    if (is_recording && pointer != NULL)
        memset(pointer, 0, dlmalloc_usable_size(pointer));
    if (!heap_is_sealed(pointer))
        dlfree(pointer);
}

void *calloc(size_t count, size_t size) {
    return dlcalloc(count, size);
}

void *realloc(void *pointer, size_t size) {
    size_t have;
    void *moved;

    if (pointer == NULL || (!is_recording && !is_in_image(pointer)))
        return dlrealloc(pointer, size);
    have = dlmalloc_usable_size(pointer);
    if (have >= size && size > have / 2)
        return pointer;
    moved = dlmalloc(size);
    if (moved != NULL) {
        memcpy(moved, pointer, have < size ? have : size);
        free(pointer);
    }
    return moved;
}

void *memalign(size_t alignment, size_t size) {
    return dlmemalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    return dlmemalign(alignment, size);
}

int posix_memalign(void **result, size_t alignment, size_t size) {
    void *pointer;

    if (alignment < sizeof(void *) || (alignment & (alignment - 1)) != 0)
        return EINVAL;
    pointer = dlmemalign(alignment, size);
    if (pointer == NULL)
        return ENOMEM;
    *result = pointer;
    return 0;
}

/* A thread that frees the block before this one changes what tells of a mapping, so dlmalloc would err without the lock. */
size_t malloc_usable_size(void *pointer) {
    size_t size = 0;

    if (!PREACTION(gm)) {
        size = dlmalloc_usable_size(pointer);
        POSTACTION(gm);
    }
    return size;
}

int malloc_trim(size_t pad) {
    return dlmalloc_trim(pad);
}

/* pymalloc's arenas, and the chunks of Python's own stack, which it takes by the same functions. */

void *heap_arena_alloc(void *context, size_t size) {
    void *start;

    (void)context;
    if (!is_recording) {
        /* Near those of the image: for the 16 GiB around each arena Python takes 128 KiB of notes. */
        start = mmap(next_arena, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start == MAP_FAILED)
            return NULL;
        next_arena = (char *)start + size;
        return start;
    }
    for (size_t i = 0; i < free_arenas_count; i++) {
        if (free_arenas[i].size == size) {
            start = free_arenas[i].start;
            free_arenas[i] = free_arenas[--free_arenas_count];
            return memset(start, 0, size);
        }
    }
    return take(&arenas_top, image_arenas_end, (size + 0x3fff) & ~(size_t)0x3fff);
}

void heap_arena_free(void *context, void *start, size_t size) {
    (void)context;
    if (heap_is_sealed(start))
        return;
    if (!is_recording) {
        munmap(start, size);
        return;
    }
    memset(start, 0, size);
    if (free_arenas_count < sizeof free_arenas / sizeof *free_arenas) {
        free_arenas[free_arenas_count].start = start;
        free_arenas[free_arenas_count++].size = size;
    }
}
