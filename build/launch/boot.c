/* Inside PyInstaller's bootloader, whose sources are compiled as they are: its `main` comes here first, and where it asks
 * the dynamic linker for Python, it gets the Python that is part of this program (build/spec/toolchain.py renames
 * pyi_main, pyi_archive_open, dlopen, dlsym and dlclose when it compiles them).
 */
#define _GNU_SOURCE
#include <Python.h>
#include <marshal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "image.h"
#include "pyi_archive.h"
#include "pyi_global.h"
#include "pyi_main.h"

/* Set by the build alone: where the image is to be written. */
#define IMAGE_VARIABLE "SHIM_BUILD_IMAGE"

extern const struct _frozen embedded_modules[]; /* build/spec/toolchain.py writes them */
PyMODINIT_FUNC PyInit__shim_libc(void);
PyMODINIT_FUNC PyInit__message(void);

int boot_main(struct PYI_CONTEXT *context);
struct ARCHIVE *boot_archive_open(const char *path);
void *boot_dlopen(const char *path, int flags);
void *boot_dlsym(void *handle, const char *name);
int boot_dlclose(void *handle);

static const char *image_path;
static PyObjectArenaAllocator arenas = {NULL, heap_arena_alloc, heap_arena_free};

int boot_main(struct PYI_CONTEXT *context) {
    if (image_is_made)
        _exit(image_run(context->argc, context->argv));
    image_path = getenv(IMAGE_VARIABLE);
    heap_start(image_path != NULL);
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

    if (image_path == NULL || !image_is_wanted())
        return result;
    Py_XDECREF(result);
    PyErr_Clear();
    if (image_write(image_path)) {
        perror("image");
        _exit(1);
    }
    _exit(0);
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
