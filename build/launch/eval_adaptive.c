/* CPython's main loop as it is: it rewrites code while it runs it (PEP 659).  image.c chooses between this one and
 * eval_frozen.c. */
#include <Python.h>
#include <internal/pycore_ceval.h>

/* Its definition alone: all calls of it go to image.c, which chooses. */
PyObject *eval_adaptive(PyThreadState *tstate, struct _PyInterpreterFrame *frame, int throwflag);
#define _PyEval_EvalFrameDefault eval_adaptive
#include <ceval.c>
