/* Drives build/launch/heap.c as a process of the build and as one that starts from its image.
 *
 * Prints "ok", or ends with the line of the check that failed.  One argument: what to do.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "image.h"

#define CHECK(condition)                                          \
    do {                                                          \
        if (!(condition)) {                                       \
            dprintf(2, "line %d: %s\n", __LINE__, #condition);    \
            _exit(1);                                             \
        }                                                         \
    } while (0)

enum { THREADS = 6, SLOTS = 400, ROUNDS = 60000, KEPT = 3000, ARENA = 1 << 20 };

extern char image_heap_start[], image_heap_end[], image_arenas_start[], image_arenas_end[];

int malloc_trim(size_t pad); /* musl has none */

static volatile size_t hidden; /* sizes that the compiler must not see through */

static int is_in_image(const void *pointer) {
    return (const char *)pointer >= image_heap_start && (const char *)pointer < image_arenas_end;
}

static unsigned next_random(unsigned *state) {
    return *state = *state * 1664525u + 1013904223u;
}

struct block {
    unsigned char *start;
    size_t size;
    unsigned char mark;
};

static void check_block(const struct block *block) {
    for (int number = 0; number < 50; number++) /* while others free what lies beside it */
        CHECK(malloc_usable_size(block->start) >= block->size);
    for (size_t at = 0; at < block->size; at += block->size / 8 + 1)
        CHECK(block->start[at] == block->mark);
    if (block->size > 0)
        CHECK(block->start[block->size - 1] == block->mark);
}

static size_t some_size(unsigned *state) {
    unsigned kind = next_random(state) >> 24;
    unsigned value = next_random(state) >> 8;

    if (kind < 200)
        return value % 600;
    return kind < 254 ? value % 40000 : value % 900000;
}

static void *stress(void *seed) {
    unsigned state = (unsigned)(uintptr_t)seed;
    static _Thread_local struct block blocks[SLOTS];

    for (int round = 0; round < ROUNDS; round++) {
        struct block *block = &blocks[next_random(&state) >> 16 & 255];
        unsigned what = next_random(&state) >> 28;
        size_t size = some_size(&state);
        if (block->start == NULL) {
            if (what < 4) {
                block->start = calloc(size / 4 + 1, 4);
                CHECK(block->start != NULL);
                size = (size / 4 + 1) * 4;
                for (size_t at = 0; at < size; at++)
                    CHECK(block->start[at] == 0);
            } else if (what < 8) {
                size_t alignment = (size_t)16 << (next_random(&state) >> 29);
                void *found;
                CHECK(posix_memalign(&found, alignment, size) == 0);
                CHECK((uintptr_t)found % alignment == 0);
                block->start = found;
            } else {
                block->start = malloc(size);
                CHECK(block->start != NULL);
            }
        } else if (what < 8) {
            unsigned char *moved;
            check_block(block);
            moved = realloc(block->start, size + 1);
            CHECK(moved != NULL);
            CHECK(block->size == 0 || moved[0] == block->mark);
            block->start = moved;
            size += 1;
        } else {
            check_block(block);
            free(block->start);
            block->start = NULL;
            continue;
        }
        CHECK((uintptr_t)block->start % 16 == 0);
        CHECK(!is_in_image(block->start));
        CHECK(malloc_usable_size(block->start) >= size);
        block->size = size;
        block->mark = (unsigned char)(next_random(&state) >> 24);
        memset(block->start, block->mark, size);
    }
    for (int slot = 0; slot < SLOTS; slot++) {
        if (blocks[slot].start != NULL)
            check_block(&blocks[slot]);
        free(blocks[slot].start);
    }
    return NULL;
}

static void run_threads(int forks) {
    pthread_t threads[THREADS];

    for (uintptr_t number = 0; number < THREADS; number++)
        CHECK(pthread_create(&threads[number], NULL, stress, (void *)(number * 7919 + 1)) == 0);
    for (int number = 0; number < forks; number++) {
        int status;
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) {
            alarm(20);
            for (size_t size = 1; size < 200000; size = size * 3 + 7)
                free(malloc(size));
            pthread_t thread;
            CHECK(pthread_create(&thread, NULL, stress, (void *)5) == 0);
            if (number == 0)
                pthread_join(thread, NULL);
            _exit(0);
        }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
    for (int number = 0; number < THREADS; number++)
        pthread_join(threads[number], NULL);
}

static void check_errors(void) {
    int place;
    void *found = &place;

    hidden = SIZE_MAX - 100;
    errno = 0;
    CHECK(malloc(hidden) == NULL && errno == ENOMEM);
    hidden = SIZE_MAX / 2;
    errno = 0;
    CHECK(malloc(hidden) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(calloc(hidden, 3) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(calloc(hidden + 2, hidden) == NULL && errno == ENOMEM);
    CHECK(posix_memalign(&found, 3, 10) == EINVAL && found == &place);
    CHECK(posix_memalign(&found, 4, 10) == EINVAL && found == &place);
    CHECK(posix_memalign(&found, 48, 10) == EINVAL && found == &place);
    CHECK(posix_memalign(&found, 64, hidden) == ENOMEM && found == &place);
    unsigned char *kept = malloc(1000);
    memset(kept, 7, 1000);
    errno = 0;
    CHECK(realloc(kept, hidden) == NULL && errno == ENOMEM);
    CHECK(kept[999] == 7);
    errno = 42;
    free(kept);
    free(NULL);
    CHECK(errno == 42);
    hidden = 0;
    void *one = malloc(hidden), *other = malloc(hidden);
    CHECK(one != NULL && other != NULL && one != other);
    CHECK(malloc_usable_size(NULL) == 0);
    void *fresh = realloc(NULL, 10);
    CHECK(fresh != NULL);
    for (size_t alignment = 16; alignment <= 1 << 21; alignment *= 2) {
        char *aligned = aligned_alloc(alignment, 100);
        CHECK(aligned != NULL && (uintptr_t)aligned % alignment == 0);
        memset(aligned, 1, 100);
        aligned = realloc(aligned, 100000);
        CHECK(aligned[99] == 1);
        free(aligned);
    }
    malloc_trim(0);
}

static size_t resident(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");

    CHECK(file != NULL && fscanf(file, "%*d %ld", &pages) == 1);
    fclose(file);
    return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

static void check_giving_back(void) {
    size_t before = resident();
    char *large = malloc(64 << 20);

    memset(large, 1, 64 << 20);
    CHECK(resident() - before > 60 << 20);
    free(large);
    CHECK(resident() < before + (4 << 20));
}

/* Fills what becomes the image, and returns what is kept in it. */
static struct block *record(void) {
    unsigned state = 3;
    struct block *blocks = calloc(KEPT, sizeof *blocks);
    static char text[] = "a secret of the build";

    for (int number = 0; number < KEPT; number++) {
        struct block *block = &blocks[number];
        block->size = next_random(&state) % 6000;
        block->start = number % 7 ? malloc(block->size) : memalign(256, block->size);
        block->mark = (unsigned char)(number % 251 + 1);
        CHECK(block->start != NULL && is_in_image(block->start));
        memset(block->start, block->mark, block->size);
    }
    for (int number = 0; number < KEPT; number += 3) { /* free ones between those that stay */
        struct block *block = &blocks[number];
        if (block->size > sizeof text)
            memcpy(block->start + block->size - sizeof text, text, sizeof text);
        free(block->start);
        block->start = NULL;
    }
    hidden = 65 << 20; /* more than there is room for */
    errno = 0;
    CHECK(malloc(hidden) == NULL && errno == ENOMEM);
    char *arena = heap_arena_alloc(NULL, ARENA), *other = heap_arena_alloc(NULL, ARENA);
    CHECK(is_in_image(arena) && is_in_image(other) && (uintptr_t)arena % (1 << 14) == 0);
    memset(other, 'x', ARENA);
    heap_arena_free(NULL, other, ARENA);
    CHECK(heap_arena_alloc(NULL, ARENA) == other && other[5] == 0);
    memset(other, 'x', ARENA);
    heap_arena_free(NULL, other, ARENA);
    memset(arena, 'y', ARENA);
    return blocks;
}

static void check_sealed(struct block *blocks) {
    struct image_extent heap, arenas;

    heap_seal(&heap, &arenas);
    CHECK(!heap_is_recording());
    CHECK(heap.start == image_heap_start && heap.start + heap.size <= image_heap_end);
    CHECK(arenas.start == image_arenas_start && arenas.start + arenas.size <= image_arenas_end);
    CHECK(memmem(heap.start, heap.size, "secret of", 9) == NULL);
    CHECK(arenas.start[5] == 'y' && arenas.start[ARENA + 5] == 0);
    /* A process that starts from it calls heap_start(0), which this one may not: it has its handlers of forks. */
    for (int number = 0; number < KEPT; number++) {
        struct block *block = &blocks[number];
        if (block->start == NULL)
            continue;
        check_block(block);
        CHECK(malloc_usable_size(block->start) >= block->size);
        if (number % 2) {
            unsigned char *moved = realloc(block->start, block->size);
            CHECK(moved != NULL); /* there is room for it where it is */
            check_block(block);
            moved = realloc(block->start, malloc_usable_size(block->start) + (size_t)number);
            CHECK(moved != NULL && !is_in_image(moved));
            block->start = moved;
            check_block(block);
            moved = realloc(moved, block->size / 2 + 1);
            CHECK(block->size == 0 || moved[block->size / 2] == block->mark);
            free(moved);
        } else {
            free(block->start);
            check_block(block); /* it is never given away again */
        }
    }
    char *arena = heap_arena_alloc(NULL, ARENA);
    CHECK(arena != NULL && !is_in_image(arena) && arena[5] == 0);
    heap_arena_free(NULL, arena, ARENA);
    heap_arena_free(NULL, image_arenas_start, ARENA);
    CHECK(image_arenas_start[5] == 'y');
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    int is_restored = argc > 2;

    if (is_restored) {
        heap_start(1);
        check_sealed(record());
    } else {
        heap_start(0);
    }
    if (strcmp(what, "threads") == 0)
        run_threads(0);
    else if (strcmp(what, "forks") == 0)
        run_threads(150);
    else if (strcmp(what, "errors") == 0)
        check_errors();
    else if (strcmp(what, "memory") == 0)
        check_giving_back();
    else
        return 2;
    puts("ok");
    return 0;
}
