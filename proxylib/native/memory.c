/* The memory budget of each connection's parser.
 *
 * What a parser holds is what can be reached from it: its attributes, containers in
 * them, generators, closures.  Not counted is what it shares with everybody (types,
 * modules, functions' globals) and what C code hides from Python.
 *
 * Walking costs some microseconds per connection, so it is not done on the data path
 * and not without a reason: a parser cannot outgrow its budget without the process
 * growing.  The watchdog looks at the size of the process, and when that has grown by
 * half a budget it walks all connections, a few at a time.
 */
#include "native.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A walk holds the GIL: so many objects take some ten milliseconds. */
#define MAX_OBJECTS 200000
/* Nanoseconds that several walks may hold it together. */
#define SLICE_NS 1000000

static struct connection *connections, *cursor;
static size_t baseline;

/* -- walking ------------------------------------------------------------------ */

struct walk {
  PyObject **stack, **seen;
  size_t n, cap, n_seen, cap_seen, bytes, limit;
  bool failed;
};

/* Remembers an object; false if it was known. */
static bool remember(struct walk *w, PyObject *object) {
  if (2 * w->n_seen >= w->cap_seen) {
    size_t cap = w->cap_seen ? 2 * w->cap_seen : 256;
    PyObject **old = w->seen, **new = calloc(cap, sizeof *new);
    if (!new) return !(w->failed = true);
    for (size_t i = 0; i < w->cap_seen; i++) {
      if (!old[i]) continue;
      size_t at = ((uintptr_t)old[i] >> 4) * 0x9e3779b97f4a7c15u & (cap - 1);
      while (new[at]) at = (at + 1) & (cap - 1);
      new[at] = old[i];
    }
    free(old);
    w->seen = new;
    w->cap_seen = cap;
  }
  size_t at = ((uintptr_t)object >> 4) * 0x9e3779b97f4a7c15u & (w->cap_seen - 1);
  for (; w->seen[at]; at = (at + 1) & (w->cap_seen - 1)) {
    if (w->seen[at] == object) return false;
  }
  w->seen[at] = object;
  w->n_seen++;
  return true;
}

/* Everybody's, not the parser's. */
static bool shared(PyObject *object) {
  return object == Py_None || PyType_Check(object) || PyModule_Check(object) ||
         PyCode_Check(object) || PyCFunction_Check(object) ||
         strcmp(Py_TYPE(object)->tp_name, "Connection") == 0;
}

static int visit(PyObject *object, void *walk) {
  struct walk *w = walk;
  if (!object || shared(object) || !remember(w, object)) return 0;
  if (w->n == w->cap) {
    size_t cap = w->cap ? 2 * w->cap : 256;
    PyObject **grown = realloc(w->stack, cap * sizeof *grown);
    if (!grown) return w->failed = true;
    w->stack = grown;
    w->cap = cap;
  }
  w->stack[w->n++] = object;
  return 0;
}

/* Its own bytes, as the type says that Python's own code made it of. */
static size_t size_of(PyObject *object) {
  PyTypeObject *type = Py_TYPE(object);
  while (type->tp_flags & Py_TPFLAGS_HEAPTYPE && type->tp_base) type = type->tp_base;
  PyObject *method = PyObject_GetAttrString((PyObject *)type, "__sizeof__");
  PyObject *size = method ? PyObject_CallOneArg(method, object) : NULL;
  size_t n = size ? PyLong_AsSize_t(size) : 0;
  if (PyErr_Occurred()) {
    PyErr_Clear();
    n = (size_t)Py_TYPE(object)->tp_basicsize;
  }
  Py_XDECREF(method);
  Py_XDECREF(size);
  return n;
}

static void follow(struct walk *w, PyObject *object) {
  if (PyFunction_Check(object)) {
    /* Not its globals. */
    visit(PyFunction_GET_CLOSURE(object), w);
    visit(PyFunction_GET_DEFAULTS(object), w);
  } else if (Py_TYPE(object)->tp_traverse && PyObject_IS_GC(object)) {
    Py_TYPE(object)->tp_traverse(object, visit, w);
  }
}

/* Bytes that can be reached from `root`; more than `limit` stands for all beyond. */
static size_t held_by(PyObject *root, size_t limit) {
  struct walk w = {.limit = limit};
  visit(root, &w);
  while (w.n && !w.failed && w.bytes <= limit && w.n_seen <= MAX_OBJECTS) {
    PyObject *object = w.stack[--w.n];
    w.bytes += size_of(object);
    follow(&w, object);
  }
  size_t bytes = w.n_seen > MAX_OBJECTS ? SIZE_MAX : w.bytes;
  free(w.stack);
  free(w.seen);
  return bytes;
}

/* -- whom to look at ---------------------------------------------------------- */

void memory_add(struct connection *c) {
  c->older = connections;
  c->newer = NULL;
  if (connections) connections->newer = c;
  connections = c;
}

void memory_remove(struct connection *c) {
  if (cursor == c) cursor = c->older;
  if (c->newer) c->newer->older = c->older;
  else if (connections == c) connections = c->older;
  if (c->older) c->older->newer = c->newer;
  c->older = c->newer = NULL;
}

static void check(struct connection *c) {
  /* What the factory made: what may stand around it, to record it, is not its fault. */
  PyObject *parser = c->hoards || c->remote ? NULL : PyObject_GetAttrString(c->object, "made");
  if (parser && parser != Py_None && held_by(parser, (size_t)c->memory) > (size_t)c->memory) {
    c->hoards = true;
    if (!c->running) {
      connection_dispossess(c);
      if (c->watcher.call) c->watcher.call(c->watcher.argument);
    }
  }
  Py_XDECREF(parser);
  PyErr_Clear();
}

static size_t resident(void) {
  static int fd = -1;
  char text[128];
  if (fd < 0) fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof text - 1, 0);
  if (n <= 0) return 0;
  text[n] = 0;
  const char *space = strchr(text, ' ');
  return space ? strtoul(space, NULL, 10) * (size_t)sysconf(_SC_PAGESIZE) : 0;
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void memory_watch(PyThreadState *state) {
  size_t now = resident();
  if (now < baseline || !baseline) baseline = now;
  if (now - baseline < (size_t)limits.memory_budget / 2) return;
  baseline = now;
  PyEval_RestoreThread(state);
  int64_t began = now_ns();
  for (cursor = connections; cursor;) {
    struct connection *c = cursor;
    cursor = c->older;
    check(c);
    if (now_ns() - began < SLICE_NS) continue;
    PyEval_SaveThread();
    usleep(1000);
    PyEval_RestoreThread(state);
    began = now_ns();
  }
  PyEval_SaveThread();
}

static PyObject *held(PyObject *module, PyObject *args) {
  PyObject *object;
  Py_ssize_t limit;
  (void)module;
  if (!PyArg_ParseTuple(args, "On", &object, &limit)) return NULL;
  return PyLong_FromSize_t(held_by(object, (size_t)limit));
}

static PyMethodDef methods[] = {
    {"held", held, METH_VARARGS,
     "held(object, limit): bytes that can be reached from it; counts no further than limit."},
    {NULL, NULL, 0, NULL},
};

bool memory_start(PyObject *module) { return PyModule_AddFunctions(module, methods) == 0; }
