/* What image.c touches of CPython's insides, and that it is as it was when docs/launch.md was written.
 *
 * A name that is gone does not compile; here is what a name does not tell: what has been added to a structure, whose
 * parts have moved, or which way of two was compiled in.
 */
#ifndef INTERNALS_H
#define INTERNALS_H
#include <Python.h>
#include <internal/pycore_ceval.h>
#include <internal/pycore_gc.h>
#include <internal/pycore_interp.h>
#include <internal/pycore_long.h>
#include <internal/pycore_object.h>
#include <internal/pycore_obmalloc.h>
#include <internal/pycore_pystate.h>
#include <internal/pycore_runtime.h>

#define IS(what, kind) _Generic((what), kind : 1, default : 0)
#define OF(type, member) (((type *)0)->member)

_Static_assert(PY_VERSION_HEX >> 16 == 0x030d, "the internals that are used were looked at in 3.13");
#if defined(Py_GIL_DISABLED) || defined(Py_DEBUG) || defined(WITH_MIMALLOC) || !WITH_PYMALLOC_RADIX_TREE
#error "Python has the GIL, no checks, and pymalloc, which knows its arenas by a tree of their addresses"
#endif

/* Threads: all of a thread's state is repaired by image_run or PyOS_AfterFork_Child, or is none of a thread's. */
_Static_assert(sizeof(PyThreadState) == 304 && sizeof(_PyThreadStateImpl) == 336, "the state of a thread");
_Static_assert(IS(OF(PyThreadState, thread_id), unsigned long), "what pthread_self says");
_Static_assert(IS(OF(PyThreadState, native_thread_id), unsigned long), "what gettid says");
_Static_assert(IS(OF(PyThreadState, current_frame), struct _PyInterpreterFrame *), "NULL outside Python code");
_Static_assert(IS(OF(PyThreadState, prev), PyThreadState *) && IS(OF(PyThreadState, next), PyThreadState *),
               "the list of threads");
_Static_assert(IS(OF(PyThreadState, datastack_top), PyObject **), "the first free word of Python's stack");
_Static_assert(IS(OF(PyThreadState, datastack_limit), PyObject **), "the end of Python's stack");
_Static_assert(sizeof(Py_tss_t) == 8 && IS(OF(_PyRuntimeState, autoTSSkey), Py_tss_t) &&
                   IS(OF(_PyRuntimeState, trashTSSkey), Py_tss_t), "two keys of thread-specific storage");

/* Signals. */
_Static_assert(sizeof OF(_PyRuntimeState, signals.handlers) == Py_NSIG * 2 * sizeof(void *) && Py_NSIG == 65 &&
                   IS(OF(_PyRuntimeState, signals.handlers[0].func), PyObject *), "a flag and a function for each signal");

/* pymalloc: what seal_pools makes full. */
_Static_assert(ARENA_SIZE == 1 << 20 && POOL_SIZE == 1 << 14, "arenas of 1 MiB in pools of 16 KiB");
_Static_assert(NB_SMALL_SIZE_CLASSES == 32 && ALIGNMENT == 16, "32 sizes in steps of 16 bytes");
_Static_assert(IS(OF(PyInterpreterState, obmalloc), struct _obmalloc_state *), "one state for each interpreter");
_Static_assert(sizeof(struct _obmalloc_pools) == 2 * NB_SMALL_SIZE_CLASSES * sizeof(poolp), "pools of each size");
_Static_assert(sizeof(struct _obmalloc_mgmt) == (MAX_POOLS_IN_ARENA + 1 + 8) * sizeof(void *), "the arenas' lists");
_Static_assert(sizeof(struct arena_object) == 48 && sizeof(struct pool_header) == 48, "one arena, one pool");

/* Objects that are never freed. */
_Static_assert(_Py_IMMORTAL_REFCNT == UINT_MAX && sizeof(PyObject) == 16, "immortal by their count (PEP 683)");
_Static_assert(sizeof(PyCodeObject) == 208, "the parts of code that the collector does not visit");
_Static_assert(sizeof(PyTypeObject) == 416 && sizeof(PyHeapTypeObject) == 928, "and those of types");

#undef IS
#undef OF
#endif
