/* The libc calls that Python lacks, as the module _shim_libc: what shim/host/libc.py is made of in a frozen shim.
 *
 * Its twin is shim/host/libc_ctypes.py; tests/host/test_libc.py runs over both.  Each call releases the GIL, and raises
 * OSError as `os` does.  Public Python API only, no call that glibc or musl has alone, and no state: the program that
 * has this linked in writes its memory into a file and starts from there.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Named anew, since headers may be older than the kernel, and linux/ and sys/ ones do not go together everywhere. */
enum {
    CALL_OPEN_TREE = 428, /* Linux 5.2; these three numbers are those of every architecture but Alpha */
    CALL_MOVE_MOUNT = 429,
    CALL_MOUNT_SETATTR = 442, /* Linux 5.12 */
    AT_CURRENT_FOLDER = -100,
    AT_EMPTY = 0x1000,
    AT_WHOLE_TREE = 0x8000,
    TREE_CLONE = 0x1,
    MOVE_FROM_DESCRIPTOR = 0x4,
    ATTRIBUTE_IDMAP = 0x100000,
    PROPAGATION_PRIVATE = 1 << 18,
    WITH_MEMORY = 0x100, /* CLONE_* */
    WITH_PIDFD = 0x1000,
    AS_VFORK = 0x4000,
    NEW_USER_NAMESPACE = 0x10000000,
    SUBREAPER = 36, /* PR_* */
    CORE_SCHEDULING = 62,
};

static const unsigned long CORE_CREATE = 1, FOR_PROCESS_GROUP = 2;

enum {
    STACK_SIZE = 64 << 10,
    LAST_SIGNAL = 64,
    MASK_SIZE = 8, /* of the kernel's signal set; libc's is larger, and leaves out the signals that libc keeps */
};

struct mount_attributes {
    uint64_t set, cleared, propagation, userns_fd;
};

/* A path as it was given, for errors, and as the system wants it. */
struct path {
    PyObject *given, *bytes;
};

/* For "O&". */
static int to_path(PyObject *value, void *target)
{
    struct path *path = target;

    path->given = value;
    return PyUnicode_FSConverter(value, &path->bytes);
}

static const char *text(const struct path *path)
{
    return PyBytes_AS_STRING(path->bytes);
}

static PyObject *fail_on(PyObject *path, int error)
{
    errno = error;
    return PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
}

/* Where there is no path, the error names the call. */
static PyObject *fail_in(const char *call, int error)
{
    PyObject *message = PyUnicode_FromFormat("%s: %s", call, strerror(error));
    PyObject *exception = message != NULL ? PyObject_CallFunction(PyExc_OSError, "iO", error, message) : NULL;

    if (exception != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    Py_XDECREF(exception);
    Py_XDECREF(message);
    return NULL;
}

/* Runs a call without the GIL; `error` is 0 if it has worked. */
#define WITHOUT_GIL(result, error, call)                                                                               \
    do {                                                                                                               \
        Py_BEGIN_ALLOW_THREADS;                                                                                        \
        (result) = (call);                                                                                             \
        (error) = (result) < 0 ? errno : 0;                                                                            \
        Py_END_ALLOW_THREADS;                                                                                          \
    } while (0)

static PyObject *set_child_subreaper(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arguments))
{
    int result, error;

    WITHOUT_GIL(result, error, prctl(SUBREAPER, 1UL, 0UL, 0UL, 0UL));
    if (error != 0)
        return fail_in("prctl", error);
    Py_RETURN_NONE;
}

static PyObject *sched_core_create(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arguments))
{
    int result, error;

    WITHOUT_GIL(result, error, prctl(CORE_SCHEDULING, CORE_CREATE, 0UL, FOR_PROCESS_GROUP, 0UL));
    if (error != 0)
        return fail_in("prctl", error);
    Py_RETURN_NONE;
}

static PyObject *shim_mount(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    struct path source = {0}, target = {0}, fstype = {0}, data = {0};
    PyObject *done = NULL;
    unsigned long flags;
    int result, error;

    if (!PyArg_ParseTuple(arguments, "O&O&O&kO&:mount", to_path, &source, to_path, &target, to_path, &fstype, &flags,
                          to_path, &data))
        return NULL;
    WITHOUT_GIL(result, error, mount(text(&source), text(&target), text(&fstype), flags, text(&data)));
    done = error != 0 ? fail_on(target.given, error) : Py_NewRef(Py_None);
    Py_DECREF(source.bytes);
    Py_DECREF(target.bytes);
    Py_DECREF(fstype.bytes);
    Py_DECREF(data.bytes);
    return done;
}

static PyObject *shim_umount(PyObject *Py_UNUSED(module), PyObject *arguments, PyObject *keywords)
{
    char *names[] = {"target", "flags", NULL};
    struct path target = {0};
    PyObject *done;
    int flags = 0, result, error;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&|i:umount", names, to_path, &target, &flags))
        return NULL;
    WITHOUT_GIL(result, error, umount2(text(&target), flags));
    done = error != 0 ? fail_on(target.given, error) : Py_NewRef(Py_None);
    Py_DECREF(target.bytes);
    return done;
}

static PyObject *shim_unshare(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    int flags, result, error;

    if (!PyArg_ParseTuple(arguments, "i:unshare", &flags))
        return NULL;
    WITHOUT_GIL(result, error, unshare(flags));
    if (error != 0)
        return fail_in("unshare", error);
    Py_RETURN_NONE;
}

static PyObject *clone_mount(PyObject *Py_UNUSED(module), PyObject *arguments, PyObject *keywords)
{
    char *names[] = {"path", "is_recursive", NULL};
    struct path path = {0};
    PyObject *done;
    int is_recursive, error;
    long fd;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&$p:clone_mount", names, to_path, &path, &is_recursive))
        return NULL;
    WITHOUT_GIL(fd, error, syscall(CALL_OPEN_TREE, AT_CURRENT_FOLDER, text(&path),
                                   TREE_CLONE | O_CLOEXEC | (is_recursive ? AT_WHOLE_TREE : 0)));
    done = error != 0 ? fail_on(path.given, error) : PyLong_FromLong(fd);
    Py_DECREF(path.bytes);
    return done;
}

static PyObject *map_ids(PyObject *Py_UNUSED(module), PyObject *arguments, PyObject *keywords)
{
    char *names[] = {"mount_fd", "userns_fd", "attributes", "is_recursive", NULL};
    struct mount_attributes wanted = {ATTRIBUTE_IDMAP, 0, PROPAGATION_PRIVATE, 0};
    unsigned long long attributes = 0;
    int mount_fd, userns_fd, is_recursive = -1, error;
    long result;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "ii|$Kp:map_ids", names, &mount_fd, &userns_fd, &attributes,
                                     &is_recursive))
        return NULL;
    if (is_recursive < 0) { /* a parser of formats knows no optional argument before a needed one */
        PyErr_SetString(PyExc_TypeError, "map_ids() missing argument 'is_recursive'");
        return NULL;
    }
    wanted.set |= attributes;
    wanted.userns_fd = (uint64_t)userns_fd;
    WITHOUT_GIL(result, error, syscall(CALL_MOUNT_SETATTR, mount_fd, "", AT_EMPTY | (is_recursive ? AT_WHOLE_TREE : 0),
                                       &wanted, sizeof wanted));
    if (error != 0)
        return fail_in("mount_setattr", error);
    Py_RETURN_NONE;
}

static PyObject *attach_mount(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    struct path target = {0};
    PyObject *done;
    int mount_fd, error;
    long result;

    if (!PyArg_ParseTuple(arguments, "iO&:attach_mount", &mount_fd, to_path, &target))
        return NULL;
    WITHOUT_GIL(result, error,
                syscall(CALL_MOVE_MOUNT, mount_fd, "", AT_CURRENT_FOLDER, text(&target), MOVE_FROM_DESCRIPTOR));
    done = error != 0 ? fail_on(target.given, error) : Py_NewRef(Py_None);
    Py_DECREF(target.bytes);
    return done;
}

static PyObject *inotify_open(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arguments))
{
    int fd, error;

    WITHOUT_GIL(fd, error, inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    return error != 0 ? fail_in("inotify_init1", error) : PyLong_FromLong(fd);
}

static PyObject *inotify_watch(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    struct path path = {0};
    PyObject *done;
    unsigned int mask;
    int fd, result, error;

    if (!PyArg_ParseTuple(arguments, "iO&I:inotify_watch", &fd, to_path, &path, &mask))
        return NULL;
    WITHOUT_GIL(result, error, inotify_add_watch(fd, text(&path), mask));
    done = error != 0 ? fail_on(path.given, error) : Py_NewRef(Py_None);
    Py_DECREF(path.bytes);
    return done;
}

/* Runs `child(about)` in a new process that shares our memory, on a stack of its own, until it ends or becomes another
 * program; only this thread stands still meanwhile.  No GIL is needed. */
static pid_t run_in_child(int (*child)(void *), void *about, int flags, int *pidfd)
{
    void *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    pid_t pid;
    int error;

    if (stack == MAP_FAILED)
        return -1;
    pid = clone(child, (char *)stack + STACK_SIZE, flags | WITH_MEMORY | AS_VFORK, about, pidfd, NULL, NULL);
    error = errno;
    munmap(stack, STACK_SIZE);
    errno = error;
    return pid;
}

static int end_at_once(void *about)
{
    (void)about;
    _exit(2);
}

static PyObject *make_user_namespace(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arguments))
{
    pid_t pid;
    int error;

    WITHOUT_GIL(pid, error, run_in_child(end_at_once, NULL, NEW_USER_NAMESPACE, NULL));
    return error != 0 ? fail_in("clone", error) : PyLong_FromLong(pid);
}

struct descriptor {
    int target, source; /* a source of -1 is /dev/null */
    bool is_in_the_way; /* the source's number is another's target */
};

enum step { STEP_FOLDER = 1, STEP_OTHER };

/* What a child has to do, and what it tells. */
struct order {
    const char *file, *folder;
    char **argv, **env;
    struct descriptor *descriptors;
    Py_ssize_t descriptor_count;
    uint64_t blocked;
    int new_group, new_session;
    int lowest_free; /* above all targets */
    volatile int *pid;
    volatile int error;
    volatile enum step step;
};

static int place(const struct descriptor *each)
{
    int fd;

    if (each->source == each->target)
        return fcntl(each->target, F_SETFD, 0);
    if (each->source >= 0)
        return dup2(each->source, each->target);
    syscall(SYS_close, each->target); /* so that there is room for another, whatever the limit */
    fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -1;
    if (fd == each->target)
        return fcntl(fd, F_SETFD, 0);
    if (dup2(fd, each->target) < 0)
        return -1;
    return (int)syscall(SYS_close, fd);
}

static int place_all(struct order *order)
{
    struct descriptor *each, *end = order->descriptors + order->descriptor_count;

    for (each = order->descriptors; each < end; each++) {
        if (each->is_in_the_way) {
            each->source = fcntl(each->source, F_DUPFD_CLOEXEC, order->lowest_free);
            if (each->source < 0)
                return -1;
        }
    }
    for (each = order->descriptors; each < end; each++)
        if (place(each) < 0)
            return -1;
    return 0;
}

/* Runs in the child, in our memory: nothing here may allocate, lock, or return. */
static int become(void *about)
{
    struct order *order = about;
    /* Larger than the kernel's struct sigaction, and all zero: the default action, whatever the order of its fields. */
    const unsigned long standard[8] = {0};
    int number;

    *order->pid = (int)syscall(SYS_getpid);
    order->step = STEP_OTHER;
    /* Not by sigaction, which refuses the signals that libc keeps to itself: a new program has its own use for them. */
    for (number = 1; number <= LAST_SIGNAL; number++)
        syscall(SYS_rt_sigaction, number, standard, NULL, (size_t)MASK_SIZE);
    if (order->new_session && setsid() < 0)
        goto failed;
    if (order->new_group && setpgid(0, 0) < 0)
        goto failed;
    if (place_all(order) < 0)
        goto failed;
    if (order->folder != NULL) {
        order->step = STEP_FOLDER;
        if (chdir(order->folder) < 0)
            goto failed;
        order->step = STEP_OTHER;
    }
    if (syscall(SYS_rt_sigprocmask, SIG_SETMASK, &order->blocked, NULL, (size_t)MASK_SIZE) < 0)
        goto failed;
    execve(order->file, order->argv, order->env);
failed:
    order->error = errno;
    _exit(127);
}

/* Returns the child's pid, or -1 with order->error and order->step set.  No GIL is needed. */
static pid_t start(struct order *order, int *pidfd)
{
    const uint64_t all = ~(uint64_t)0;
    uint64_t before;
    pid_t pid;

    /* No handler of ours may run in the child. */
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, (size_t)MASK_SIZE);
    pid = run_in_child(become, order, WITH_PIDFD | SIGCHLD, pidfd);
    if (pid < 0 && (errno == EMFILE || errno == ENFILE || errno == EINVAL)) {
        *pidfd = -1; /* a child without it is better than none; emulators do not know the flag */
        pid = run_in_child(become, order, SIGCHLD, NULL);
    }
    if (pid < 0)
        order->error = errno;
    else
        *order->pid = (int)pid; /* again, for an emulator, which gives the child a memory of its own */
    /* A reaper of all children may come first, which is as good. */
    if (pid >= 0 && order->error != 0) {
        waitpid(pid, NULL, 0);
        if (*pidfd >= 0)
            syscall(SYS_close, *pidfd);
        pid = -1;
    }
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, (size_t)MASK_SIZE);
    return pid;
}

/* Returns a NULL-terminated array of pointers into the bytes that `kept` becomes a list of; to be freed. */
static char **to_texts(PyObject *given, PyObject **kept)
{
    PyObject *items = PySequence_Fast(given, "argv and env are sequences of str");
    char **texts = NULL;
    Py_ssize_t count, i;

    *kept = NULL;
    if (items == NULL)
        return NULL;
    count = PySequence_Fast_GET_SIZE(items);
    *kept = PyList_New(count);
    texts = PyMem_New(char *, (size_t)count + 1);
    if (*kept == NULL || texts == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    for (i = 0; i < count; i++) {
        PyObject *bytes = NULL;

        if (!PyUnicode_FSConverter(PySequence_Fast_GET_ITEM(items, i), &bytes))
            goto failed;
        texts[i] = PyBytes_AS_STRING(bytes);
        PyList_SET_ITEM(*kept, i, bytes);
    }
    texts[count] = NULL;
    Py_DECREF(items);
    return texts;
failed:
    Py_DECREF(items);
    Py_CLEAR(*kept);
    PyMem_Free(texts);
    return NULL;
}

static bool to_descriptors(PyObject *given, struct order *order)
{
    PyObject *items = PySequence_Fast(given, "fds is a sequence of pairs of int");
    struct descriptor *all;
    Py_ssize_t count, i, other;

    if (items == NULL)
        return false;
    count = PySequence_Fast_GET_SIZE(items);
    all = order->descriptors = PyMem_New(struct descriptor, (size_t)count + 1);
    if (all == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    order->descriptor_count = count;
    for (i = 0; i < count; i++) {
        all[i].is_in_the_way = false;
        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(items, i), "ii;fds is a sequence of pairs of int",
                              &all[i].target, &all[i].source))
            goto failed;
        if (all[i].target >= order->lowest_free)
            order->lowest_free = all[i].target + 1;
    }
    for (i = 0; i < count; i++)
        for (other = 0; other < count; other++)
            if (i != other && all[i].source == all[other].target)
                all[i].is_in_the_way = true;
    Py_DECREF(items);
    return true;
failed:
    Py_DECREF(items);
    return false;
}

static PyObject *spawn(PyObject *Py_UNUSED(module), PyObject *arguments, PyObject *keywords)
{
    char *names[] = {"file", "argv", "env", "fds", "folder", "blocked", "new_group", "new_session", "told", NULL};
    struct path file = {0}, folder = {0};
    PyObject *argv, *env, *fds, *folder_given, *kept_argv = NULL, *kept_env = NULL, *done = NULL;
    struct order order = {0};
    unsigned long long blocked;
    Py_buffer told = {0};
    int pidfd = -1;
    pid_t pid;

    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&OO$OOKppw*:spawn", names, to_path, &file, &argv, &env,
                                     &fds, &folder_given, &blocked, &order.new_group, &order.new_session, &told))
        return NULL;
    if (told.len != sizeof(int) || (uintptr_t)told.buf % sizeof(int) != 0) {
        PyErr_SetString(PyExc_ValueError, "told has the size of an int");
        goto out;
    }
    if (folder_given != Py_None && !to_path(folder_given, &folder))
        goto out;
    order.argv = to_texts(argv, &kept_argv);
    order.env = order.argv != NULL ? to_texts(env, &kept_env) : NULL;
    if (order.env == NULL || !to_descriptors(fds, &order))
        goto out;
    order.file = text(&file);
    order.folder = folder.bytes != NULL ? text(&folder) : NULL;
    order.blocked = blocked;
    order.pid = told.buf;
    Py_BEGIN_ALLOW_THREADS;
    pid = start(&order, &pidfd);
    Py_END_ALLOW_THREADS;
    if (pid < 0)
        fail_on(order.step == STEP_FOLDER ? folder.given : file.given, order.error);
    else
        done = Py_BuildValue("(ii)", (int)pid, pidfd);
out:
    PyBuffer_Release(&told);
    PyMem_Free(order.argv);
    PyMem_Free(order.env);
    PyMem_Free(order.descriptors);
    Py_XDECREF(kept_argv);
    Py_XDECREF(kept_env);
    Py_XDECREF(folder.bytes);
    Py_DECREF(file.bytes);
    return done;
}

#define WITH_KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS, NULL

static PyMethodDef methods[] = {
    {"set_child_subreaper", set_child_subreaper, METH_NOARGS, NULL},
    {"sched_core_create", sched_core_create, METH_NOARGS, NULL},
    {"mount", shim_mount, METH_VARARGS, NULL},
    {"umount", WITH_KEYWORDS(shim_umount)},
    {"unshare", shim_unshare, METH_VARARGS, NULL},
    {"clone_mount", WITH_KEYWORDS(clone_mount)},
    {"map_ids", WITH_KEYWORDS(map_ids)},
    {"attach_mount", attach_mount, METH_VARARGS, NULL},
    {"make_user_namespace", make_user_namespace, METH_NOARGS, NULL},
    {"inotify_open", inotify_open, METH_NOARGS, NULL},
    {"inotify_watch", inotify_watch, METH_VARARGS, NULL},
    {"spawn", WITH_KEYWORDS(spawn)},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_shim_libc",
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__shim_libc(void)
{
    return PyModuleDef_Init(&module);
}
