/* Wide buffers for the files that PyInstaller's bootloader unpacks, which is most of what a launch that
 * unpacks costs: libpython alone has 7 MB, and stdio would write it in blocks of 4 KiB.
 *
 * The linker puts these functions in the place of fopen and fclose (build/spec/bootloader.py: --wrap), so the bootloader
 * itself stays as it is.  It writes one file at a time, and opens what it copies from afterwards; what it reads at other
 * times is small, and not worth a wide buffer.  It has one thread while it writes, and no Python, which opens no streams.
 */
#include <stddef.h>
#include <stdio.h>

#define SIZE (256 << 10)

FILE *__real_fopen(const char *path, const char *mode);
int __real_fclose(FILE *stream);
FILE *__wrap_fopen(const char *path, const char *mode);
int __wrap_fclose(FILE *stream);

/* The file being written, and what it is copied from. */
enum { TARGET, SOURCE, SLOTS };
static FILE *users[SLOTS];
static char buffers[SLOTS][SIZE];

FILE *__wrap_fopen(const char *path, const char *mode) {
    FILE *stream = __real_fopen(path, mode);
    int slot = *mode == 'w' ? TARGET : SOURCE;

    if (stream != NULL && users[slot] == NULL && (slot == TARGET || users[TARGET] != NULL) &&
        setvbuf(stream, buffers[slot], _IOFBF, SIZE) == 0)
        users[slot] = stream;
    return stream;
}

int __wrap_fclose(FILE *stream) {
    int code = __real_fclose(stream);

    for (int slot = 0; slot < SLOTS; slot++)
        if (users[slot] == stream)
            users[slot] = NULL;
    return code;
}
