/* Gives code that has just been unmarshalled the equal names, constants and tables that other code has already.
 *
 * marshal itself knows them within one module only; over the modules of a shim they take half a megabyte twice.  Only while
 * an image is made.
 */
#include <Python.h>
#include <internal/pycore_code.h>
#include <sys/mman.h>

#include "image.h"

/* A hash table outside of the heap, which would have a hole by it. */
#define MOST_SHARED ((size_t)1 << 18)
static PyObject **shared;

static int share_one(PyObject **place) {
    Py_hash_t hash = PyObject_Hash(*place);

    if (hash == -1 && PyErr_Occurred())
        return -1;
    if (shared == NULL)
        shared = mmap(NULL, MOST_SHARED * sizeof *shared, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = (size_t)hash % MOST_SHARED, looks = 0; looks < 64; i = (i + 1) % MOST_SHARED, looks++) {
        int is_same;
        if (shared[i] == NULL) {
            shared[i] = Py_NewRef(*place);
            return 0;
        }
        is_same = Py_TYPE(shared[i]) == Py_TYPE(*place) ? PyObject_RichCompareBool(shared[i], *place, Py_EQ) : 0;
        if (is_same < 0)
            return -1;
        if (is_same) {
            if (shared[i] != *place)
                Py_SETREF(*place, Py_NewRef(shared[i]));
            return 0;
        }
    }
    return 0; /* too many of one hash: this one stays as it is */
}

void share_forget(void) {
    for (size_t i = 0; shared != NULL && i < MOST_SHARED; i++)
        Py_XDECREF(shared[i]);
    if (shared != NULL)
        munmap(shared, MOST_SHARED * sizeof *shared);
    shared = NULL;
}

static int is_plain(PyObject *object) { /* of these, what is equal is the same: no 1 is True */
    if (PyTuple_CheckExact(object)) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); i++)
            if (PyTuple_CheckExact(PyTuple_GET_ITEM(object, i)) || !is_plain(PyTuple_GET_ITEM(object, i)))
                return 0;
        return 1;
    }
    return object == Py_None || PyUnicode_CheckExact(object) || PyBytes_CheckExact(object);
}

int share_parts(PyObject *object) {
    PyCodeObject *code = (PyCodeObject *)object;
    PyObject **parts[] = {&code->co_names,        &code->co_localsplusnames, &code->co_localspluskinds,
                          &code->co_linetable,    &code->co_exceptiontable,  &code->co_filename,
                          &code->co_qualname};

    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (share_one(parts[i]))
            return -1;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(code->co_consts); i++) {
        PyObject **place = &((PyTupleObject *)code->co_consts)->ob_item[i];
        if (PyCode_Check(*place) ? share_parts(*place) : is_plain(*place) && share_one(place))
            return -1;
    }
    return is_plain(code->co_consts) ? share_one(&code->co_consts) : 0;
}

/* Gives code that has just been unmarshalled the equal names, constants and tables that other code has: marshal itself knows
 * them within one module only. */
