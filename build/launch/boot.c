/* Inside PyInstaller's bootloader, whose sources are compiled as they are: its `main` comes here first, and where it asks
 * the dynamic linker for Python, it gets the Python that is part of this program (build/spec/static.py renames
 * pyi_main, pyi_archive_open, realpath, dlopen, dlsym and dlclose when it compiles them).
 */
#define _GNU_SOURCE
#include <Python.h>
#include <fcntl.h>
#include <marshal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "image.h"
#include "pyi_archive.h"
#include "pyi_global.h"
#include "pyi_main.h"

/* Set by the build alone: the image is to be written to stdout.  What scripts print goes to stderr then. */
#define IMAGE_VARIABLE "SHIM_BUILD_IMAGE"

#define OWN_FILE "/proc/self/exe"

extern const struct _frozen embedded_modules[]; /* build/spec/static.py writes them */
PyMODINIT_FUNC PyInit__shim_libc(void);
PyMODINIT_FUNC PyInit__message(void);

int boot_main(struct PYI_CONTEXT *context);
struct ARCHIVE *boot_archive_open(const char *path);
char *boot_realpath(const char *path, char *resolved);
void *boot_dlopen(const char *path, int flags);
void *boot_dlsym(void *handle, const char *name);
int boot_dlclose(void *handle);

static int image_fd = -1;
static PyObjectArenaAllocator arenas = {NULL, heap_arena_alloc, heap_arena_free};

int boot_main(struct PYI_CONTEXT *context) {
    if (image_is_made)
        _exit(image_run(context->argc, context->argv));
    if (getenv(IMAGE_VARIABLE) != NULL) {
        image_fd = fcntl(1, F_DUPFD_CLOEXEC, 3);
        dup2(2, 1);
        image_begin();
    }
    heap_start(image_fd >= 0);
    PyObject_SetArenaAllocator(&arenas);
    PyImport_FrozenModules = embedded_modules;
    PyImport_AppendInittab("_shim_image", image_init_module);
    PyImport_AppendInittab("_shim_libc", PyInit__shim_libc);
    PyImport_AppendInittab("google._upb._message", PyInit__message);
    return pyi_main(context);
}

/* There is nothing to unpack: the bootloader takes itself for the program after its restart, which is not needed. */
struct ARCHIVE *boot_archive_open(const char *path) {
    struct ARCHIVE *archive = pyi_archive_open(path);
    char level[8];

    if (archive != NULL) {
        snprintf(level, sizeof level, "%d", PYI_PROCESS_LEVEL_PARENT_NEEDS_RESTART);
        setenv("_PYI_ARCHIVE_FILE", path, 1);
        setenv("_PYI_PARENT_PROCESS_LEVEL", level, 1);
        unsetenv("PYINSTALLER_RESET_ENVIRONMENT");
        unsetenv("_PYI_LINUX_PROCESS_NAME");
    }
    return archive;
}

/* Runs a script; when it has come to its entry, that is where the image is made, now that none of its frames is left. */
static PyObject *run_script(PyObject *code, PyObject *globals, PyObject *locals) {
    PyObject *result = PyEval_EvalCode(code, globals, locals);

    if (image_fd < 0 || !image_is_wanted())
        return result;
    Py_XDECREF(result);
    PyErr_Clear();
    _exit(image_write(image_fd) ? 1 : 0);
}

/* The image must not know where it was made. */
char *boot_realpath(const char *path, char *resolved) {
    if (heap_is_recording() && strcmp(path, OWN_FILE) == 0)
        return strcpy(resolved, OWN_FILE);
    return realpath(path, resolved);
}

/* Python asks the kernel itself, so this stands in the place of libc's. */
ssize_t readlink(const char *path, char *buffer, size_t size) {
    static const char name[] = "/shim";

    if (!heap_is_recording() || strcmp(path, OWN_FILE) != 0 || size < sizeof name)
        return readlinkat(AT_FDCWD, path, buffer, size);
    memcpy(buffer, name, sizeof name - 1);
    return sizeof name - 1;
}

void *boot_dlopen(const char *path, int flags) {
    (void)path;
    (void)flags;
    return &arenas; /* any address: there is one library */
}

int boot_dlclose(void *handle) {
    (void)handle;
    return 0;
}

#define FUNCTION(name) {#name, (void (*)(void))name}
static const struct {
    const char *name;
    void (*function)(void);
} functions[] = {
    {"PyEval_EvalCode", (void (*)(void))run_script},
#include "functions.inc"
};

void *boot_dlsym(void *handle, const char *name) {
    (void)handle;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (strcmp(functions[i].name, name) == 0)
            return (void *)functions[i].function;
    return NULL;
}
