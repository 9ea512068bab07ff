/* CPython's main loop, which runs code as it finds it: specialized where the image has it so, and never writes to it.
 *
 * The same source, compiled with the switch that CPython has for builds without the GIL.  A page of code that a process
 * does not write to is shared by all that start from the image.
 */
#include <Python.h>
#include <internal/pycore_ceval.h>
#include <internal/pycore_code.h>

#undef ENABLE_SPECIALIZATION
#define ENABLE_SPECIALIZATION 0
/* Its definition alone: all calls of it go to image.c, which chooses. */
PyObject *eval_frozen(PyThreadState *tstate, struct _PyInterpreterFrame *frame, int throwflag);
#define _PyEval_EvalFrameDefault eval_frozen
#include <ceval.c>
