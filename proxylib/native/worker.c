/* Parsers in a process of their own: the side of that process (isolate.c is the host's).
 *
 * One thread serves the channels in turn.  It runs the same engine over the same
 * Parser class, and leaves to the host what becomes of the answers.
 */
#define _GNU_SOURCE
#include "isolate.h"

#include "channel.h"
#include "log.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static struct connection **served;
static size_t n_served;
static struct bytes collected;

static struct connection **slot(uint32_t id) {
  if (id >= n_served) {
    size_t size = n_served ? n_served : 1024;
    while (size <= id) size *= 2;
    struct connection **grown = realloc(served, size * sizeof *grown);
    if (!grown) return NULL;
    memset(grown + n_served, 0, (size - n_served) * sizeof *grown);
    served = grown;
    n_served = size;
  }
  return &served[id];
}

static void forget(uint32_t id) {
  struct connection **at = slot(id);
  if (!at || !*at) return;
  connection_close(*at);
  free(*at);
  *at = NULL;
}

/* Puts bytes at the end of the answer; false if there is no room. */
static bool put(struct channel *ch, size_t *len, const void *data, size_t n) {
  if (n > AREA - *len) return false;
  memcpy(ch->area + *len, data, n);
  *len += n;
  return true;
}

static void put_log(struct channel *ch, size_t *len) {
  if (put(ch, len, collected.data, collected.len)) ch->logged = collected.len;
  collected.len = 0;
}

static void serve_open(struct channel *ch, PyObject *open) {
  size_t len = 0;
  PyObject *made = PyObject_CallFunction(open, "y#", ch->area, (Py_ssize_t)ch->len);
  PyObject *connection = NULL;
  const char *facts;
  Py_ssize_t n;
  ch->result = RESULT_POLICY_DROP;
  forget(ch->id);
  if (made && made != Py_None && PyArg_ParseTuple(made, "Oy#", &connection, &facts, &n)) {
    struct connection *c = calloc(1, sizeof *c), **at = slot(ch->id);
    if (c && at && connection_init(c, connection) && put(ch, &len, facts, (size_t)n)) {
      *at = c;
      ch->injected[0] = (uint64_t)n;
      ch->batch = c->batch;
      ch->result = RESULT_OK;
    } else {
      free(c);
    }
  }
  if (PyErr_Occurred()) python_print_error("opening a connection");
  Py_XDECREF(made);
  put_log(ch, &len);
}

/* Forgets injected bytes that the host has sent on. */
static void trim(struct connection *c, bool reply, uint64_t waiting) {
  Py_ssize_t gone = PyByteArray_GET_SIZE(c->injected[reply]) - (Py_ssize_t)waiting;
  if (gone > 0 && PySequence_DelSlice(c->injected[reply], 0, gone) < 0) PyErr_Clear();
}

static void serve_data(struct channel *ch) {
  struct connection **at = slot(ch->id), *c = at ? *at : NULL;
  ch->result = RESULT_UNKNOWN_CONNECTION;
  if (!c) return;
  trim(c, false, ch->waiting[0]);
  trim(c, true, ch->waiting[1]);
  size_t before[2] = {connection_injected(c, false), connection_injected(c, true)}, len = 0;
  struct slice in = {ch->area, ch->len};
  enum filter_result result = connection_call(c, ch->reply, ch->end_stream, &in, 1, 0, ch->len);
  Py_ssize_t n_ops = PyList_GET_SIZE(c->ops);
  for (Py_ssize_t i = 0; i < n_ops; i++) {
    int64_t word;
    if (!connection_op(c, i, &word) || !put(ch, &len, &word, sizeof word)) {
      result = connection_panic(c);
      n_ops = i & ~(Py_ssize_t)1;
      len = (size_t)n_ops * sizeof word;
      break;
    }
  }
  ch->n_ops = (uint64_t)n_ops;
  PyList_SetSlice(c->ops, 0, PyList_GET_SIZE(c->ops), NULL);
  for (int way = 0; way < 2; way++) {
    size_t have = connection_injected(c, way);
    size_t fresh = have > before[way] ? have - before[way] : 0;
    if (put(ch, &len, PyByteArray_AS_STRING(c->injected[way]) + (have - fresh), fresh)) {
      ch->injected[way] = fresh;
    }
  }
  ch->result = (int32_t)result;
  if (result != RESULT_OK) {
    PyObject *panicked = PyObject_GetAttrString(c->object, "panicked");
    ch->panicked = panicked == Py_True;
    ch->on_error = (uint8_t)connection_on_error(c);
    Py_XDECREF(panicked);
  }
  PyErr_Clear();
  put_log(ch, &len);
}

static void serve_one(struct channel *ch, PyObject *open) {
  ch->n_ops = ch->injected[0] = ch->injected[1] = ch->logged = 0;
  ch->panicked = ch->batch = ch->on_error = 0;
  size_t len = 0;
  switch (ch->request) {
  case REQUEST_OPEN:
    serve_open(ch, open);
    break;
  case REQUEST_DATA:
    serve_data(ch);
    break;
  default:
    forget(ch->id);
    ch->result = RESULT_OK;
    put_log(ch, &len);
  }
  atomic_store(&ch->state, ANSWER);
  futex_wake(&ch->state);
}

/* serve(memory, open): serves the host until the process ends. */
static PyObject *serve(PyObject *module, PyObject *args) {
  int fd;
  PyObject *open;
  (void)module;
  if (!PyArg_ParseTuple(args, "iO", &fd, &open)) return NULL;
  if (!read_limits()) return NULL;
  struct shared *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (s == MAP_FAILED) return PyErr_SetFromErrno(PyExc_OSError);
  for (uint32_t seen = 0;;) {
    uint32_t rung = atomic_load(&s->doorbell);
    if (rung == seen) {
      Py_BEGIN_ALLOW_THREADS;
      for (int i = 0; i < SPINS && (rung = atomic_load(&s->doorbell)) == seen; i++) {
        pause_a_little();
      }
      while (rung == seen) {
        atomic_store(&s->asleep, 1);
        futex_wait(&s->doorbell, seen, -1);
        atomic_store(&s->asleep, 0);
        rung = atomic_load(&s->doorbell);
      }
      Py_END_ALLOW_THREADS;
    }
    seen = rung;
    for (int i = 0; i < CHANNELS; i++) {
      if (atomic_load(&s->channels[i].state) == REQUEST) serve_one(&s->channels[i], open);
    }
  }
}

/* collect_log(): from now on, log entries go with the answers to the host. */
static PyObject *collect_log(PyObject *module, PyObject *ignored) {
  (void)module, (void)ignored;
  log_collected = &collected;
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"serve", serve, METH_VARARGS, "serve(memory, open): serve the host's requests, for ever."},
    {"collect_log", collect_log, METH_NOARGS, "Have log entries go with the answers."},
    {NULL, NULL, 0, NULL},
};

bool worker_add(PyObject *module) { return PyModule_AddFunctions(module, methods) == 0; }
