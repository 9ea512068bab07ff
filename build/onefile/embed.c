/* Python in the bootloader: one process that runs from the binary itself, where PyInstaller would unpack two dozen files
 * into a temporary folder and start a second process beside them.
 *
 * The bootloader stays as it is.  It is linked with Python's static library, and the linker puts the functions below in
 * the place of two that it calls (build/spec/bootloader.py: --wrap):
 *
 *     pyi_archive_open   an archive that is marked (build/spec/freezer.py) has nothing to unpack.  The bootloader takes
 *                        itself for the program as it is after its restart, which there is no need for.
 *     dlopen             the interpreter is this program; what the archive has under the name of a library is loaded from
 *                        a file without a name, after the libraries it needs.
 *
 * Whatever else the bootloader does, it does as ever: an archive without the mark is unpacked.
 */
#define _GNU_SOURCE
#include <Python.h>
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pyi_archive.h"
#include "pyi_main.h"

/* What the freezer puts into an archive with nothing to unpack, and the kind of the entries that are libraries. */
#define MARK "shim-embedded"
#define LIBRARY 'a'
#define MOST 256 /* libraries in one process */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

struct ARCHIVE *__wrap_pyi_archive_open(const char *filename);
void *__wrap_dlopen(const char *path, int flags);
/* Weak, since the programs by which the bootloader's build finds out about the compiler have none of them. */
struct ARCHIVE *__real_pyi_archive_open(const char *filename) __attribute__((weak));
void *__real_dlopen(const char *path, int flags) __attribute__((weak));
const struct TOC_ENTRY *pyi_archive_find_entry_by_name(const struct ARCHIVE *archive, const char *name)
    __attribute__((weak));

/* Modules that the interpreter needs before it can read the archive: build/spec/bootloader.py writes them. */
extern const struct _frozen embedded_modules[];

static const struct ARCHIVE *libraries;
/* All that is loaded, in the order in which that began; one that is still being loaded has no handle yet, and one that could
 * not be loaded no entry any more.  The interpreter holds its lock around every call, so there is one at a time. */
static struct {
    const struct TOC_ENTRY *entry;
    void *handle;
} loaded[MOST];
static size_t loaded_count;

static void *load(const struct TOC_ENTRY *entry, int flags);

__attribute__((constructor)) static void embed(void) {
    PyImport_FrozenModules = embedded_modules;
}

struct ARCHIVE *__wrap_pyi_archive_open(const char *filename) {
    struct ARCHIVE *archive = __real_pyi_archive_open(filename);
    char level[8];

    if (archive == NULL || libraries != NULL || pyi_archive_find_entry_by_name(archive, MARK) == NULL)
        return archive;
    libraries = archive;
    snprintf(level, sizeof level, "%d", PYI_PROCESS_LEVEL_PARENT_NEEDS_RESTART);
    setenv("_PYI_ARCHIVE_FILE", filename, 1);
    setenv("_PYI_PARENT_PROCESS_LEVEL", level, 1);
    unsetenv("PYINSTALLER_RESET_ENVIRONMENT");
    unsetenv("_PYI_LINUX_PROCESS_NAME");
    return archive;
}

/* A file that has no name, in memory or in the temporary folder; -1 if there cannot be one. */
static int nameless(const char *name, int is_in_memory) {
    const char *folder = secure_getenv("TMPDIR");
    int fd;

    if (!is_in_memory)
        return open(folder != NULL && *folder != '\0' ? folder : "/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0700);
    fd = memfd_create(name, MFD_CLOEXEC | MFD_NOEXEC_SEAL); /* to be mapped, never to be executed */
    return fd < 0 && errno == EINVAL ? memfd_create(name, MFD_CLOEXEC) : fd; /* before Linux 6.3 */
}

/* An entry's bytes, to be freed; NULL if they cannot be read. */
static unsigned char *contents(const struct TOC_ENTRY *entry) {
    size_t size = entry->uncompressed_length, done = 0;
    unsigned char *data = malloc(size);
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC); /* still this file after an upgrade */
    ssize_t got = 1;

    while (fd >= 0 && data != NULL && done < size && got > 0) {
        got = pread(fd, data + done, size - done, (off_t)(libraries->pkg_offset + entry->offset + done));
        if (got > 0)
            done += (size_t)got;
    }
    if (fd >= 0)
        close(fd);
    if (done == size)
        return data;
    free(data);
    return NULL;
}

/* What an address of the library's means in its file, or NULL. */
static const void *at(const unsigned char *data, size_t size, ElfW(Addr) address) {
    const ElfW(Ehdr) *head = (const void *)data;
    const ElfW(Phdr) *part = (const void *)(data + head->e_phoff);

    for (size_t i = 0; i < head->e_phnum; i++)
        if (part[i].p_type == PT_LOAD && address >= part[i].p_vaddr && address - part[i].p_vaddr < part[i].p_filesz &&
            address - part[i].p_vaddr + part[i].p_offset < size)
            return data + (address - part[i].p_vaddr + part[i].p_offset);
    return NULL;
}

/* Loads those of the libraries that a library needs that are in the archive: the loader takes a library that is loaded
 * already for one that is needed if it has its name. */
static void load_needed(const unsigned char *data, size_t size) {
    const ElfW(Ehdr) *head = (const void *)data;
    const ElfW(Phdr) *part = (const void *)(data + head->e_phoff);
    const ElfW(Dyn) *dynamic = NULL;
    const char *names = NULL;

    for (size_t i = 0; i < head->e_phnum; i++)
        if (part[i].p_type == PT_DYNAMIC)
            dynamic = (const void *)(data + part[i].p_offset);
    for (const ElfW(Dyn) *each = dynamic; each != NULL && each->d_tag != DT_NULL; each++)
        if (each->d_tag == DT_STRTAB)
            names = at(data, size, each->d_un.d_ptr);
    for (const ElfW(Dyn) *each = dynamic; names != NULL && each->d_tag != DT_NULL; each++) {
        if (each->d_tag != DT_NEEDED)
            continue;
        const struct TOC_ENTRY *entry = pyi_archive_find_entry_by_name(libraries, names + each->d_un.d_val);
        if (entry != NULL && entry->typecode == LIBRARY)
            load(entry, RTLD_NOW | RTLD_LOCAL);
    }
}

/* Fails as dlopen of a file that is not there, so that dlerror has its name. */
static void *fail(const char *name, int flags) {
    char path[sizeof "/dev/null/" + 256];

    snprintf(path, sizeof path, "/dev/null/%s", name);
    return __real_dlopen(path, flags);
}

/* As dlopen, from a file of these bytes.  The number makes the path another one for each library, since the loader takes
 * what it has loaded by the same path for the same. */
static void *load_from(int fd, const unsigned char *data, size_t size, size_t number, int flags, int *is_tried) {
    char path[MOST + 64] = "/proc/self/fd/";
    void *handle = NULL;
    size_t done = 0;

    if (fd < 0)
        return NULL;
    for (ssize_t put = 1; done < size && put > 0; done += put > 0 ? (size_t)put : 0)
        put = write(fd, data + done, size - done);
    if (done == size) { /* of half a library, the loader would map what is not there */
        memset(path + strlen(path), '/', number);
        snprintf(path + strlen(path), sizeof path - strlen(path), "%d", fd);
        *is_tried = 1;
        handle = __real_dlopen(path, flags);
    }
    close(fd);
    return handle;
}

/* As dlopen, from the archive; an entry is loaded once.  NULL also for one that is being loaded, which nobody asks for but
 * what it needs itself. */
static void *load(const struct TOC_ENTRY *entry, int flags) {
    const char *name = strrchr(entry->name, '/') != NULL ? strrchr(entry->name, '/') + 1 : entry->name;
    size_t size = entry->uncompressed_length, number = loaded_count;
    unsigned char *data;
    void *handle;
    int is_tried = 0;

    for (size_t i = 0; i < loaded_count; i++)
        if (loaded[i].entry == entry)
            return loaded[i].handle;
    data = number < MOST ? contents(entry) : NULL;
    if (data == NULL)
        return fail(name, flags);
    loaded[loaded_count++].entry = entry;
    load_needed(data, size);
    handle = load_from(nameless(name, 1), data, size, number, flags, &is_tried);
    if (handle == NULL)
        handle = load_from(nameless(name, 0), data, size, number, flags, &is_tried);
    if (handle == NULL && !is_tried)
        fail(name, flags);
    loaded[number].handle = handle;
    if (handle == NULL)
        loaded[number].entry = NULL;
    free(data);
    return handle;
}

void *__wrap_dlopen(const char *path, int flags) {
    const char *name = path == NULL ? NULL : strrchr(path, '/');
    const struct TOC_ENTRY *entry;

    if (name != NULL && strncmp(name, "/libpython", strlen("/libpython")) == 0)
        return __real_dlopen(NULL, flags);
    if (path == NULL || libraries == NULL)
        return __real_dlopen(path, flags);
    /* The interpreter puts "./" before a name without a folder. */
    entry = pyi_archive_find_entry_by_name(libraries, strncmp(path, "./", 2) == 0 ? path + 2 : path);
    return entry != NULL && entry->typecode == LIBRARY ? load(entry, flags) : __real_dlopen(path, flags);
}
