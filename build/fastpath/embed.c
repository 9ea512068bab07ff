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
#define PY_SSIZE_T_CLEAN
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

/* A file that has no name: in memory, or in the temporary folder where there are none in memory.  -1 if neither. */
static int nameless(const char *name) {
    const char *folder = secure_getenv("TMPDIR");
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_NOEXEC_SEAL); /* to be mapped, never to be executed */

    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0)
        fd = open(folder != NULL && *folder != '\0' ? folder : "/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0700);
    return fd;
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

/* As dlopen, from the archive; an entry is loaded once. */
static void *load(const struct TOC_ENTRY *entry, int flags) {
    size_t size = entry->uncompressed_length, done = 0;
    unsigned char *data;
    void *handle = NULL;
    char path[MOST + 64] = "/proc/self/fd/";
    int fd;

    for (size_t i = 0; i < loaded_count; i++)
        if (loaded[i].entry == entry)
            return loaded[i].handle;
    data = loaded_count < MOST ? contents(entry) : NULL;
    fd = data == NULL ? -1 : nameless(strrchr(entry->name, '/') != NULL ? strrchr(entry->name, '/') + 1 : entry->name);
    if (fd < 0) {
        free(data);
        return __real_dlopen(entry->name, flags); /* which is not there: so dlerror has its name */
    }
    load_needed(data, size);
    for (ssize_t put = 1; done < size && put > 0; done += put > 0 ? (size_t)put : 0)
        put = write(fd, data + done, size - done);
    free(data);
    /* The loader takes what it has loaded by the same path for the same library: each gets one slash more. */
    memset(path + strlen(path), '/', loaded_count);
    snprintf(path + strlen(path), sizeof path - strlen(path), "%d", fd);
    handle = __real_dlopen(path, flags);
    close(fd);
    if (handle != NULL) {
        loaded[loaded_count].entry = entry;
        loaded[loaded_count++].handle = handle;
    }
    return handle;
}

void *__wrap_dlopen(const char *path, int flags) {
    const char *name = path == NULL ? NULL : strrchr(path, '/');
    const struct TOC_ENTRY *entry;

    if (name != NULL && strncmp(name, "/libpython", strlen("/libpython")) == 0)
        return __real_dlopen(NULL, flags);
    if (path == NULL || libraries == NULL)
        return __real_dlopen(path, flags);
    entry = pyi_archive_find_entry_by_name(libraries, path);
    return entry != NULL && entry->typecode == LIBRARY ? load(entry, flags) : __real_dlopen(path, flags);
}
