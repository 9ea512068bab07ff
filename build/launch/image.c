/* The image: write down what Python has in memory, and be a process that goes on from there.
 *
 * Rule: a restored process is as the child of a fork: PyOS_AfterFork_Child repairs what depends on threads and locks.
 * What a fork keeps and an exec loses is repaired here by hand.  Every internal of CPython that is used stands in
 * docs/launch.md, and internals.h checks what a name does not tell.
 * Spec: CPython 3.13, Python/pystate.c, Objects/obmalloc.c, Modules/posixmodule.c (PyOS_AfterFork_Child).
 */
#define _GNU_SOURCE
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "image.h"
#include "internals.h"

extern char image_data_start[], image_data_end[];
extern char **environ;

int image_is_made;
static PyThreadState *main_tstate;
static PyObject *resume;       /* called with argv and the path of this program, once Python is repaired */
static PyObject *places;       /* of what the archive keeps, for build/spec/image.py */
static PyObject *environ_data; /* what os.environ keeps its bytes in */
static fd_set own_fds;         /* what was open before Python started */
static nlink_t own_threads;    /* how many there were then: an emulator has some of its own */

/* ---- Which main loop runs ---- */

PyObject *eval_adaptive(PyThreadState *tstate, struct _PyInterpreterFrame *frame, int throwflag);
PyObject *eval_frozen(PyThreadState *tstate, struct _PyInterpreterFrame *frame, int throwflag);

static int is_code_frozen; /* the image has been warmed up, and its code is not rewritten any more */

PyObject *_PyEval_EvalFrameDefault(PyThreadState *tstate, struct _PyInterpreterFrame *frame, int throwflag) {
    if (is_code_frozen && image_is_made)
        return eval_frozen(tstate, frame, throwflag);
    return eval_adaptive(tstate, frame, throwflag);
}

/* ---- Python's small objects ---- */

static PyMemAllocatorEx pymalloc[2]; /* what Python itself has */

/* A block of the image is never given back: its pool would be used again, and its page written to. */
static void free_outside(void *context, void *pointer) {
    PyMemAllocatorEx *own = context;

    if (!heap_is_sealed(pointer))
        own->free(own->ctx, pointer);
}

static void *realloc_outside(void *context, void *pointer, size_t size) {
    PyMemAllocatorEx *own = context;
    void *moved;
    size_t have;

    if (!heap_is_sealed(pointer) || !heap_is_arena(pointer)) /* malloc looks after its own */
        return own->realloc(own->ctx, pointer, size);
    have = ((size_t)((poolp)((uintptr_t)pointer & ~(uintptr_t)POOL_SIZE_MASK))->szidx + 1) * ALIGNMENT;
    moved = own->malloc(own->ctx, size);
    if (moved != NULL)
        memcpy(moved, pointer, have < size ? have : size);
    return moved;
}

static void *plain_malloc(void *context, size_t size) {
    PyMemAllocatorEx *own = context;

    return own->malloc(own->ctx, size);
}

static void *plain_calloc(void *context, size_t count, size_t size) {
    PyMemAllocatorEx *own = context;

    return own->calloc(own->ctx, count, size);
}

/* While an image is made, Python gets all its memory zeroed: what it leaves of a block, at its end or between fields,
 * would else have what was there before, such as the number of a file. */
static void *zeroed_malloc(void *context, size_t size) {
    PyMemAllocatorEx *own = context;

    if (size < PY_SSIZE_T_MAX)
        size = (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    return own->calloc(own->ctx, 1, size);
}

static void *zeroed_calloc(void *context, size_t count, size_t size) {
    if (size != 0 && count > (size_t)PY_SSIZE_T_MAX / size)
        return NULL;
    return zeroed_malloc(context, count * size);
}

static void set_allocators(void *(*malloc)(void *, size_t), void *(*calloc)(void *, size_t, size_t)) {
    static const PyMemAllocatorDomain domains[] = {PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};

    for (size_t i = 0; i < 2; i++) {
        PyMemAllocatorEx mine = {&pymalloc[i], malloc, calloc, realloc_outside, free_outside};
        if (pymalloc[i].malloc == NULL)
            PyMem_GetAllocator(domains[i], &pymalloc[i]);
        PyMem_SetAllocator(domains[i], &mine);
    }
}

/* ---- Making it ---- */

static nlink_t count_threads(void) {
    struct stat about;

    return stat("/proc/self/task", &about) ? 0 : about.st_nlink; /* the folder's own two more */
}

void image_begin(void) {
    set_allocators(zeroed_malloc, zeroed_calloc);
    own_threads = count_threads();
    for (int fd = 0; fd < FD_SETSIZE; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            FD_SET(fd, &own_fds);
}

static int next_opened(int fd) {
    while (fd < FD_SETSIZE && (FD_ISSET(fd, &own_fds) || fcntl(fd, F_GETFD) < 0))
        fd++;
    return fd < FD_SETSIZE ? fd : -1;
}

int image_is_wanted(void) {
    return resume != NULL;
}

/* Takes every hole in the pools, and leaves no arena with free ones: what comes later lies on pages of its own. */
static void seal_pools(void) {
    struct _obmalloc_state *state = _PyInterpreterState_GET()->obmalloc;

    for (int size_class = 0; size_class < NB_SMALL_SIZE_CLASSES; size_class++) {
        size_t size = ((size_t)size_class + 1) * ALIGNMENT;
        poolp *first = &state->pools.used[size_class + size_class];
        while (*first != (*first)->nextpool) /* as pymalloc asks whether there is a hole */
            memset(PyObject_Malloc(size), 0, size);
    }
    for (unsigned i = 0; i < state->mgmt.maxarenas; i++) {
        struct arena_object *arena = &state->mgmt.arenas[i];
        if (arena->address == 0)
            continue;
        for (poolp pool = arena->freepools, next; pool != NULL; pool = next) {
            next = pool->nextpool;
            memset(pool, 0, POOL_SIZE);
        }
        arena->nfreepools = 0;
        arena->freepools = NULL;
        arena->pool_address = (pymem_block *)(arena->address + ARENA_SIZE);
    }
    state->mgmt.usable_arenas = NULL;
    memset(state->mgmt.nfp2lasta, 0, sizeof state->mgmt.nfp2lasta);
}

static int put(int fd, const void *data, size_t size) {
    const char *at = data;

    while (size > 0) {
        ssize_t written = write(fd, at, size);
        if (written <= 0) {
            perror("the image cannot be written");
            return -1;
        }
        at += written;
        size -= (size_t)written;
    }
    return 0;
}

/* What a new process does not have, whatever Python believes. */
static const char *what_is_left(void) {
    if (main_tstate->current_frame != NULL)
        return "a Python frame";
    if (main_tstate->prev != NULL || main_tstate->next != NULL || count_threads() > own_threads)
        return "a second thread";
    if (next_opened(0) >= 0)
        return "an open descriptor";
    if (waitpid(-1, NULL, WNOHANG) >= 0)
        return "a child process";
    return NULL;
}

/* Writes the image, of which build/spec/image.py makes the program.  Only without a Python frame on
 * the stack, with the GIL, and with one thread. */
int image_write(int fd) {
    struct image_extent parts[4];
    uint64_t thread = PyThread_get_thread_ident();
    const char *left;

    main_tstate = PyThreadState_Get();
    left = what_is_left();
    if (left != NULL) {
        fprintf(stderr, "it has %s that an image cannot hold\n", left);
        return -1;
    }
    main_tstate->native_thread_id = 0;
    for (char **each = environ; each != NULL && *each != NULL; each++)
        *each = NULL; /* libc's array lies in the heap */
    for (int signum = 1; signum < Py_NSIG; signum++) /* which are ignored where this is built is nothing to a launch */
        _PyRuntime.signals.handlers[signum].func = _PyLong_GetZero();
    set_allocators(plain_malloc, plain_calloc);
    PyOS_BeforeFork(); /* takes the import lock, which PyOS_AfterFork_Child gives back; calls what was registered */
    if (main_tstate->datastack_top != NULL)
        memset(main_tstate->datastack_top, 0,
               (size_t)((char *)main_tstate->datastack_limit - (char *)main_tstate->datastack_top));
    seal_pools();
    heap_seal(&parts[2], &parts[3]);
    FD_ZERO(&own_fds);
    own_threads = 0;
    image_is_made = 1;
    parts[0] = (struct image_extent){PyBytes_AS_STRING(places), (size_t)PyBytes_GET_SIZE(places)};
    parts[1] = (struct image_extent){image_data_start, (size_t)(image_data_end - image_data_start)};
    if (put(fd, &thread, sizeof thread))
        return -1;
    for (const struct image_extent *each = parts; each < parts + 4; each++) {
        uint64_t head[2] = {(uintptr_t)each->start, each->size};
        if (put(fd, head, sizeof head) || put(fd, each->start, each->size))
            return -1;
    }
    return close(fd);
}

#define MOST_OBJECTS ((size_t)16 << 20)

struct todo {
    PyObject **objects;
    size_t count, room;
};

static int is_passing(PyObject *object) {
    return PyFrame_Check(object) || PyGen_Check(object);
}

static int add(PyObject *object, void *argument) {
    struct todo *todo = argument;

    if (object == NULL || _Py_IsImmortal(object) || is_passing(object))
        return 0;
    if (todo->objects == NULL) { /* not in the heap, which would have a hole by it */
        todo->room = MOST_OBJECTS;
        todo->objects = mmap(NULL, todo->room * sizeof object, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    if (todo->objects == MAP_FAILED || todo->count == todo->room)
        Py_FatalError("too many objects for an image");
    _Py_SetImmortalUntracked(object);
    todo->objects[todo->count++] = object;
    return 0;
}

/* What the collector does not ask code, classes and functions for. */
static void add_parts(PyObject *object, struct todo *todo) {
    if (PyCode_Check(object)) {
        PyCodeObject *code = (PyCodeObject *)object;
        PyObject *parts[] = {code->co_consts,    code->co_names,          code->co_name,
                             code->co_qualname,  code->co_filename,       code->co_linetable,
                             code->co_exceptiontable, code->co_localsplusnames, code->co_localspluskinds};
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
            add(parts[i], todo);
    } else if (Py_TYPE(object)->tp_traverse != NULL) {
        Py_TYPE(object)->tp_traverse(object, add, todo);
    }
    add((PyObject *)Py_TYPE(object), todo);
    if (PyType_Check(object)) {
        PyTypeObject *type = (PyTypeObject *)object;
        add(type->tp_dict, todo);
        add(type->tp_bases, todo);
        add(type->tp_mro, todo);
        if (type->tp_flags & Py_TPFLAGS_HEAPTYPE) {
            PyHeapTypeObject *heap_type = (PyHeapTypeObject *)object;
            add(heap_type->ht_name, todo);
            add(heap_type->ht_qualname, todo);
            add(heap_type->ht_slots, todo);
        }
    }
}

static int add_found(PyObject *object, void *todo) {
    add(object, todo);
    return 1;
}

/* Counting references writes to the objects; what is never freed needs no count (PEP 683). */
static PyObject *immortalize(PyObject *module, PyObject *unused) {
    struct todo todo = {NULL, 0, 0};
    size_t made = 0;

    (void)module;
    (void)unused;
    PyUnstable_GC_VisitObjects(add_found, &todo);
    for (; todo.count > 0; made++)
        add_parts(todo.objects[--todo.count], &todo);
    munmap(todo.objects, todo.room * sizeof *todo.objects);
    return PyLong_FromSize_t(made);
}

static PyObject *share(PyObject *module, PyObject *code) {
    (void)module;
    if (heap_is_recording() && PyCode_Check(code) && share_parts(code))
        return NULL;
    return Py_NewRef(code);
}

static PyObject *is_being_made(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyBool_FromLong(heap_is_recording());
}

static PyObject *opened(PyObject *module, PyObject *unused) {
    PyObject *list = PyList_New(0);

    (void)module;
    (void)unused;
    for (int fd = next_opened(0); list != NULL && fd >= 0; fd = next_opened(fd + 1)) {
        PyObject *number = PyLong_FromLong(fd);
        if (number == NULL || PyList_Append(list, number))
            Py_CLEAR(list);
        Py_XDECREF(number);
    }
    return list;
}

static PyObject *has_more_threads(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyBool_FromLong(count_threads() > own_threads);
}

static PyObject *set_resume(PyObject *module, PyObject *args) {
    PyObject *function, *data, *kept;

    (void)module;
    if (!PyArg_ParseTuple(args, "OO!pS", &function, &PyDict_Type, &data, &is_code_frozen, &kept))
        return NULL;
    Py_XSETREF(places, Py_NewRef(kept));
    Py_XSETREF(resume, Py_NewRef(function));
    Py_XSETREF(environ_data, Py_NewRef(data));
    share_forget(); /* now: what is freed lies in Python's lists of free objects until the next collection */
    Py_RETURN_NONE;
}

/* ---- Starting from it ---- */

static int fail(const char *what) {
    dprintf(2, "shim: cannot start: %s\n", what);
    return 1;
}

static int fill_environ(void) {
    for (char **each = environ; *each != NULL; each++) {
        const char *equals = strchr(*each, '=');
        PyObject *name, *value;
        int failed;

        if (equals == NULL || equals == *each)
            continue;
        name = PyBytes_FromStringAndSize(*each, equals - *each);
        value = PyBytes_FromString(equals + 1);
        failed = name == NULL || value == NULL || PyDict_SetDefaultRef(environ_data, name, value, NULL) < 0;
        Py_XDECREF(name);
        Py_XDECREF(value);
        if (failed)
            return -1;
    }
    return 0;
}

static PyObject *decode_all(int count, char **words) {
    PyObject *list = PyList_New(count);

    for (int i = 0; list != NULL && i < count; i++) {
        PyObject *word = PyUnicode_DecodeFSDefault(words[i]);
        if (word == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, word);
    }
    return list;
}

/* As Python does when it starts, and the signal module when it is imported: which signals are ignored is the parent's
 * choice. */
static void read_signals(void) {
    PyOS_setsig(SIGPIPE, SIG_IGN);
    PyOS_setsig(SIGXFSZ, SIG_IGN);
    for (int signum = 1; signum < Py_NSIG; signum++) {
        struct sigaction now;
        PyObject *is;

        if (sigaction(signum, NULL, &now))
            continue;
        is = now.sa_handler == SIG_IGN ? _PyLong_GetOne() : _PyLong_GetZero();
        if ((PyObject *)_PyRuntime.signals.handlers[signum].func != is)
            _PyRuntime.signals.handlers[signum].func = is;
    }
}

int image_run(int argc, char **argv) {
    _PyRuntimeState *runtime = &_PyRuntime;
    PyObject *words;

    heap_start(0);
    words = malloc(1);
    if (words == NULL) /* what follows would end with a page of text */
        return fail("not enough memory");
    free(words);
    _Py_tss_tstate = main_tstate;
    runtime->autoTSSkey._is_initialized = 0;
    runtime->trashTSSkey._is_initialized = 0;
    if (PyThread_tss_create(&runtime->autoTSSkey) || PyThread_tss_set(&runtime->autoTSSkey, main_tstate))
        return fail("no thread-specific storage");
    main_tstate->thread_id = PyThread_get_thread_ident();
    setlocale(LC_CTYPE, ""); /* as Python does when it starts */
    read_signals();
    PyOS_AfterFork_Child();
    words = decode_all(argc, argv);
    if (words == NULL || fill_environ())
        return fail("not enough memory");
    if (PyObject_CallOneArg(resume, words) == NULL) { /* it ends the process, unless it fails */
        PyErr_Print();
        Py_Finalize(); /* what is still buffered, and atexit */
    }
    return 1;
}

static PyMethodDef methods[] = {
    {"is_being_made", is_being_made, METH_NOARGS, PyDoc_STR("Is this the process that becomes the image?")},
    {"opened", opened, METH_NOARGS, PyDoc_STR("The descriptors that are open and were not when the program started.")},
    {"has_more_threads", has_more_threads, METH_NOARGS, PyDoc_STR("Are there more threads than when the program started?")},
    {"immortalize", immortalize, METH_NOARGS, PyDoc_STR("Never free what there is by now; return how many objects.")},
    {"share", share, METH_O, PyDoc_STR("Let code share its parts with other code, while an image is made; return it.")},
    {"set_resume", set_resume, METH_VARARGS, PyDoc_STR("Choose what a start from the image calls.")},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_shim_image", .m_size = -1, .m_methods = methods};

PyObject *image_init_module(void) {
    return PyModule_Create(&definition);
}
