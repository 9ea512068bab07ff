/* The image of a process that has Python loaded and warm: how it is made, and how a process starts from it. */
#ifndef IMAGE_H
#define IMAGE_H
#include <stddef.h>

struct _object; /* a Python object, for those who do not include Python.h */

struct image_extent {
    char *start;
    size_t size;
};

/* heap.c */
void heap_start(int records);
int heap_is_recording(void);
int heap_is_sealed(const void *pointer);
int heap_is_arena(const void *pointer);
void heap_seal(struct image_extent *heap, struct image_extent *arenas);
void *heap_arena_alloc(void *context, size_t size);
void heap_arena_free(void *context, void *start, size_t size);

/* share.c */
int share_parts(struct _object *code);
void share_forget(void);

/* image.c */
extern int image_is_made; /* this process starts from an image */
void image_begin(void);     /* before Python starts in a process that becomes the image */
int image_is_wanted(void); /* the program has come to where a launch shall go on */
int image_write(int fd);
int image_run(int argc, char **argv);
struct _object *image_init_module(void);

#endif
