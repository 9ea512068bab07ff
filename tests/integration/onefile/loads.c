/* Loads libraries through embed.c from an archive that follows the program's own bytes.
 *
 * usage: loads OFFSET {NAME KIND SIZE}... -- {COMMAND}...; the entries lie one after the other.  Commands:
 *
 *     open        open the archive, and print what the bootloader is told by its environment
 *     NAME        load a library, and print what its function `answer` returns, or why it cannot be loaded
 *
 * With NO_MEMFD in its environment there are no files in memory.
 */
#define _GNU_SOURCE
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pyi_archive.h"

const struct _frozen embedded_modules[] = {{"compiled in"}};
const struct _frozen *PyImport_FrozenModules;

static struct ARCHIVE archive;
static struct TOC_ENTRY entries[8];
static size_t count;

struct ARCHIVE *pyi_archive_open(const char *filename);
struct ARCHIVE *__wrap_pyi_archive_open(const char *filename); /* what a call from another file becomes */
const struct TOC_ENTRY *pyi_archive_find_entry_by_name(const struct ARCHIVE *from, const char *name);
int memfd_create(const char *name, unsigned flags);

struct ARCHIVE *pyi_archive_open(const char *filename) {
    return *filename != '\0' ? &archive : NULL;
}

const struct TOC_ENTRY *pyi_archive_find_entry_by_name(const struct ARCHIVE *from, const char *name) {
    for (size_t i = 0; i < count && from == &archive; i++)
        if (strcmp(entries[i].name, name) == 0)
            return &entries[i];
    return NULL;
}

int memfd_create(const char *name, unsigned flags) {
    if (getenv("NO_MEMFD") != NULL) {
        errno = ENOSYS;
        return -1;
    }
    return (int)syscall(SYS_memfd_create, name, flags);
}

static void show(const char *name) {
    const char *value = getenv(name);
    printf("%s=%s\n", name, value != NULL ? value : "");
}

static void load(const char *name) {
    void *handle = dlopen(name, RTLD_NOW);
    int (*answer)(void);

    if (handle == NULL) {
        printf("%s\n", dlerror());
        return;
    }
    *(void **)&answer = dlsym(handle, "answer");
    printf("%d%s\n", answer != NULL ? answer() : -1, dlopen(name, RTLD_NOW) == handle ? "" : ", and loaded twice");
}

int main(int argc, char **argv) {
    uint32_t offset = 0;
    int next = 2;

    archive.pkg_offset = strtoull(argv[1], NULL, 10);
    for (; next + 2 < argc && strcmp(argv[next], "--") != 0; next += 3) {
        snprintf(entries[count].name, sizeof entries[count].name, "%s", argv[next]);
        entries[count].typecode = *argv[next + 1];
        entries[count].uncompressed_length = (uint32_t)atoi(argv[next + 2]);
        entries[count].offset = offset;
        offset += entries[count++].uncompressed_length;
    }
    printf("%s\n", PyImport_FrozenModules->name);
    for (next++; next < argc; next++)
        if (strcmp(argv[next], "open") == 0) {
            __wrap_pyi_archive_open("the binary");
            show("_PYI_ARCHIVE_FILE");
            show("_PYI_PARENT_PROCESS_LEVEL");
        } else
            load(argv[next]);
    return 0;
}
