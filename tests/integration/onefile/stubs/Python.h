/* What embed.c has of Python. */
#ifndef STUB_PYTHON_H
#define STUB_PYTHON_H
struct _frozen {
    const char *name;
};
extern const struct _frozen *PyImport_FrozenModules;
#endif
