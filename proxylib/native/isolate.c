/* Parsers in a process of their own: the host's side (worker.c is the other).
 *
 * The host's process and the worker share memory with a few channels.  A thread of the
 * host that has bytes to judge takes a free channel, writes them there, rings the
 * worker and sleeps on the channel's futex, without the GIL and for no longer than
 * the connection's budget.  The worker has one thread that serves the channels in turn:
 * it runs the same engine over the same Parser class, and writes ops, injected bytes
 * and log entries where the request was.
 *
 * All checks of ops are engine.c's, in the host: it believes nothing that it reads.
 * Log entries come with the answer, so that those of a message that was forwarded
 * are never lost with the worker.
 *
 * A worker that dies or gives no answer in time is killed; its connections learn of
 * it at once (remote_watch), and everything else goes on.  sandbox/isolation.py starts
 * the next one.
 */
#define _GNU_SOURCE
#include "isolate.h"

#include "channel.h"
#include "log.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct remote {
  PyObject_HEAD
  struct shared *shared;
  PyObject *log; /* AccessLog, or None */
  int pidfd;
  clockid_t cpu;
  char stat[64]; /* its file in /proc */
  _Atomic bool dead;
  char why[200]; /* it died; with the GIL */
  _Atomic bool busy[CHANNELS];
  uint32_t next_id, n_free, cap_free, *free_ids; /* with the GIL */
  struct watcher *watchers;                      /* with the GIL */
};

static PyTypeObject *remote_type;

static int64_t clock_ns(clockid_t clock) {
  struct timespec t;
  return clock_gettime(clock, &t) ? 0 : (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

struct remote *remote_from(PyObject *object) { return (struct remote *)object; }

static void kill_worker(struct remote *r, const char *why) {
  if (!r->why[0]) snprintf(r->why, sizeof r->why, "%s", why);
  atomic_store(&r->dead, true);
  syscall(SYS_pidfd_send_signal, r->pidfd, SIGKILL, NULL, 0);
}

static struct channel *take_channel(struct remote *r, int64_t deadline) {
  for (;;) {
    for (int i = 0; i < CHANNELS; i++) {
      bool no = false;
      if (atomic_compare_exchange_strong(&r->busy[i], &no, true)) return &r->shared->channels[i];
    }
    if (now_ns() > deadline) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    sched_yield();
    Py_END_ALLOW_THREADS;
  }
}

static void give_channel(struct remote *r, struct channel *ch) {
  atomic_store(&ch->state, IDLE);
  atomic_store(&r->busy[ch - r->shared->channels], false);
}

/* Waits for the answer. A worker that would have run, but got no processor in the
 * second half of the time, is given as much again, some times. */
static uint32_t await_answer(struct remote *r, struct channel *ch, int64_t budget) {
  uint32_t state = REQUEST;
  for (int i = 0; i < SPINS && (state = atomic_load(&ch->state)) == REQUEST; i++) pause_a_little();
  int64_t until = state == REQUEST ? now_ns() + budget / 2 : 0, used = -1;
  for (int halves = 1; state == REQUEST && !atomic_load(&r->dead);) {
    int64_t left = until - now_ns(), now_used;
    if (left > 0) {
      futex_wait(&ch->state, REQUEST, left);
      state = atomic_load(&ch->state);
      continue;
    }
    now_used = clock_ns(r->cpu);
    bool starved = used < 0 || task_starved(r->stat, now_used - used, budget / 2);
    if (!starved || ++halves > 2 * STARVED_MOST) break;
    used = now_used;
    until += budget / 2;
  }
  return state;
}

/* Sends the request that is in the channel, and waits for its answer, without the GIL. */
static bool exchange(struct remote *r, struct channel *ch, int64_t budget) {
  uint32_t state;
  Py_BEGIN_ALLOW_THREADS;
  atomic_store(&ch->state, REQUEST);
  atomic_fetch_add(&r->shared->doorbell, 1);
  if (atomic_load(&r->shared->asleep)) futex_wake(&r->shared->doorbell);
  state = await_answer(r, ch, budget);
  Py_END_ALLOW_THREADS;
  if (state == ANSWER) return true;
  if (!atomic_load(&r->dead)) kill_worker(r, "gave no answer within its time budget");
  return false;
}

/* The parts of an answer, copied out of the worker's reach, and checked to be in it. */
struct answer {
  size_t n_ops, injected[2], logged;
  const char *ops, *bytes[2], *log;
};

static bool read_answer(const struct channel *ch, struct answer *a) {
  const volatile struct channel *v = ch;
  a->n_ops = v->n_ops;
  a->injected[0] = v->injected[0];
  a->injected[1] = v->injected[1];
  a->logged = v->logged;
  if (a->n_ops > AREA / 8 || a->injected[0] > AREA || a->injected[1] > AREA || a->logged > AREA ||
      a->n_ops * 8 + a->injected[0] + a->injected[1] + a->logged > AREA) {
    return false;
  }
  a->ops = ch->area;
  a->bytes[0] = a->ops + a->n_ops * 8;
  a->bytes[1] = a->bytes[0] + a->injected[0];
  a->log = a->bytes[1] + a->injected[1];
  return true;
}

/* Queues the log entries of an answer: each a length and an encoded entry. */
static void queue_log(struct remote *r, const struct answer *a) {
  const char *at = a->log, *end = a->log + a->logged;
  uint32_t len;
  while ((size_t)(end - at) >= sizeof len) {
    memcpy(&len, at, sizeof len);
    at += sizeof len;
    if (len > (size_t)(end - at) || len > (size_t)limits.max_log_entry + 8192) return;
    accesslog_append(r->log, at, len);
    at += len;
  }
}

void remote_died(struct connection *c) {
  if (c->told) return;
  c->told = true;
  PyObject *result =
      PyObject_CallMethod(c->object, "crashed", "s", c->remote->why[0] ? c->remote->why : "died");
  if (!result) python_print_error("a parser's process has died");
  Py_XDECREF(result);
}

/* Puts what the answer says where call_parser would have put it. */
static bool take_answer(struct connection *c, const struct answer *a) {
  for (size_t i = 0; i < a->n_ops; i++) {
    int64_t word;
    memcpy(&word, a->ops + 8 * i, sizeof word);
    PyObject *number = PyLong_FromLongLong(word);
    int failed = number ? PyList_Append(c->ops, number) : -1;
    Py_XDECREF(number);
    if (failed) return false;
  }
  for (int way = 0; way < 2; way++) {
    Py_ssize_t have = PyByteArray_GET_SIZE(c->injected[way]);
    if (!a->injected[way]) continue;
    if (have + (int64_t)a->injected[way] > limits.max_inject) {
      PyErr_SetString(PyExc_ValueError, "the parser's process injects without end");
      return false;
    }
    if (PyByteArray_Resize(c->injected[way], have + (Py_ssize_t)a->injected[way]) < 0) return false;
    memcpy(PyByteArray_AS_STRING(c->injected[way]) + have, a->bytes[way], a->injected[way]);
  }
  return true;
}

enum filter_result remote_run(struct connection *c, bool reply, bool end_stream,
                              const struct slice *in, size_t n_in, size_t from, size_t len) {
  struct remote *r = c->remote;
  int64_t deadline = now_ns() + c->budget;
  struct channel *ch = atomic_load(&r->dead) || len > AREA ? NULL : take_channel(r, deadline);
  struct answer a;
  if (!ch) {
    remote_died(c);
    return RESULT_PARSER_ERROR;
  }
  ch->request = REQUEST_DATA;
  ch->id = c->id;
  ch->reply = reply;
  ch->end_stream = end_stream;
  ch->waiting[0] = connection_injected(c, false);
  ch->waiting[1] = connection_injected(c, true);
  ch->len = len;
  char *to = ch->area;
  for (size_t i = 0; i < n_in && len > 0; i++) {
    if (from >= in[i].len) {
      from -= in[i].len;
      continue;
    }
    size_t n = in[i].len - from < len ? in[i].len - from : len;
    memcpy(to, in[i].data + from, n);
    to += n;
    len -= n;
    from = 0;
  }
  enum filter_result result = RESULT_PARSER_ERROR;
  if (!exchange(r, ch, c->budget) || !read_answer(ch, &a)) {
    remote_died(c);
  } else {
    result = ch->result == RESULT_OK ? RESULT_OK : RESULT_PARSER_ERROR;
    bool panicked = ch->panicked;
    if (result != RESULT_OK && ch->on_error <= ON_ERROR_PASS) c->on_error = ch->on_error;
    queue_log(r, &a);
    if (!take_answer(c, &a)) {
      PyErr_Clear();
      kill_worker(r, "has sent an impossible answer");
      remote_died(c);
      result = RESULT_PARSER_ERROR;
    } else if (panicked) {
      PyObject *counted = PyObject_CallMethod(c->object, "count_panic", NULL);
      if (!counted) python_print_error("counting a panic");
      Py_XDECREF(counted);
    }
  }
  give_channel(r, ch);
  return result;
}

static void free_id(struct remote *r, uint32_t id) {
  if (r->n_free == r->cap_free) {
    uint32_t cap = r->cap_free ? 2 * r->cap_free : 64;
    uint32_t *grown = realloc(r->free_ids, cap * sizeof *grown);
    if (!grown) return; /* one number less */
    r->free_ids = grown;
    r->cap_free = cap;
  }
  r->free_ids[r->n_free++] = id;
}

void remote_close(struct connection *c) {
  struct remote *r = c->remote;
  int64_t deadline = now_ns() + c->budget;
  struct channel *ch = atomic_load(&r->dead) ? NULL : take_channel(r, deadline);
  struct answer a;
  if (ch) {
    ch->request = REQUEST_CLOSE;
    ch->id = c->id;
    ch->len = 0;
    if (exchange(r, ch, c->budget) && read_answer(ch, &a)) queue_log(r, &a);
    give_channel(r, ch);
    free_id(r, c->id);
  }
  for (struct watcher **at = &r->watchers; *at; at = &(*at)->next) {
    if (*at != &c->watcher) continue;
    *at = c->watcher.next;
    break;
  }
}

void remote_watch(struct connection *c) {
  struct remote *r = c->remote;
  c->watcher.next = r->watchers;
  r->watchers = &c->watcher;
  if (atomic_load(&r->dead)) c->watcher.call(c->watcher.argument);
}

static PyObject *remote_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  int fd, pid, pidfd;
  PyObject *log;
  (void)keywords;
  if (!PyArg_ParseTuple(args, "iiiO", &fd, &pid, &pidfd, &log)) return NULL;
  struct remote *r = (struct remote *)type->tp_alloc(type, 0);
  if (!r) return NULL;
  r->pidfd = -1;
  r->shared = mmap(NULL, sizeof *r->shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (r->shared == MAP_FAILED || (r->pidfd = dup(pidfd)) < 0) {
    if (r->shared == MAP_FAILED) r->shared = NULL;
    PyErr_SetFromErrno(PyExc_OSError);
    Py_DECREF(r);
    return NULL;
  }
  snprintf(r->stat, sizeof r->stat, "/proc/%d/stat", pid);
  clock_getcpuclockid(pid, &r->cpu);
  r->log = Py_NewRef(log);
  return (PyObject *)r;
}

static void remote_dealloc(PyObject *object) {
  struct remote *r = (struct remote *)object;
  PyTypeObject *type = Py_TYPE(object);
  if (r->shared) munmap(r->shared, sizeof *r->shared);
  if (r->pidfd >= 0) close(r->pidfd);
  free(r->free_ids);
  Py_XDECREF(r->log);
  type->tp_free(object);
  Py_DECREF(type);
}

/* open(request, budget) -> (id, batch, what the worker says of it), or None if refused. */
static PyObject *remote_open(PyObject *object, PyObject *args) {
  struct remote *r = (struct remote *)object;
  const char *request;
  Py_ssize_t len;
  long long budget;
  if (!PyArg_ParseTuple(args, "y#L", &request, &len, &budget)) return NULL;
  int64_t deadline = now_ns() + budget;
  /* First of all, so that it counts: without a connection the process may be ended. */
  uint32_t id = r->n_free ? r->free_ids[--r->n_free] : r->next_id++;
  struct channel *ch =
      atomic_load(&r->dead) || (size_t)len > AREA ? NULL : take_channel(r, deadline);
  struct answer a;
  if (!ch) {
    free_id(r, id);
    return PyErr_Format(PyExc_ConnectionError, "%s", r->why[0] ? r->why : "is busy");
  }
  ch->request = REQUEST_OPEN;
  ch->id = id;
  ch->len = (size_t)len;
  memcpy(ch->area, request, (size_t)len);
  PyObject *result = NULL;
  if (exchange(r, ch, budget) && read_answer(ch, &a)) {
    queue_log(r, &a);
    if (ch->result == RESULT_OK) {
      result = Py_BuildValue("(IOy#)", id, ch->batch ? Py_True : Py_False, a.bytes[0],
                             (Py_ssize_t)a.injected[0]);
    } else {
      free_id(r, id);
      result = Py_NewRef(Py_None);
    }
  } else {
    PyErr_Format(PyExc_ConnectionError, "%s", r->why);
  }
  give_channel(r, ch);
  return result;
}

/* died(why): the process has ended. Wakes all who wait, and tells all connections. */
static PyObject *remote_has_died(PyObject *object, PyObject *why) {
  struct remote *r = (struct remote *)object;
  const char *text = PyUnicode_AsUTF8(why);
  if (!text) return NULL;
  if (!r->why[0]) snprintf(r->why, sizeof r->why, "%s", text);
  atomic_store(&r->dead, true);
  for (int i = 0; i < CHANNELS; i++) {
    uint32_t request = REQUEST;
    atomic_compare_exchange_strong(&r->shared->channels[i].state, &request, DEAD);
    futex_wake(&r->shared->channels[i].state);
  }
  for (struct watcher *w = r->watchers; w; w = w->next) w->call(w->argument);
  Py_RETURN_NONE;
}

static PyMethodDef remote_methods[] = {
    {"open", remote_open, METH_VARARGS, "open(request, budget): have the worker open a connection."},
    {"died", remote_has_died, METH_O, "died(why): the worker's process has ended."},
    {NULL, NULL, 0, NULL},
};

static PyObject *remote_connections(PyObject *object, void *none) {
  struct remote *r = (struct remote *)object;
  (void)none;
  return PyLong_FromUnsignedLong(r->next_id - r->n_free);
}

static PyGetSetDef remote_attributes[] = {
    {"connections", remote_connections, NULL, "How many it has.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot remote_slots[] = {
    {Py_tp_doc, "Remote(memory, pid, pidfd, log): a worker process, seen from its host."},
    {Py_tp_new, remote_new},
    {Py_tp_dealloc, remote_dealloc},
    {Py_tp_methods, remote_methods},
    {Py_tp_getset, remote_attributes},
    {0, NULL},
};

static PyType_Spec remote_spec = {"proxylib_native.Remote", sizeof(struct remote), 0,
                                  Py_TPFLAGS_DEFAULT, remote_slots};

bool isolate_add(PyObject *module) {
  remote_type = (PyTypeObject *)PyType_FromSpec(&remote_spec);
  return remote_type && PyModule_AddObjectRef(module, "Remote", (PyObject *)remote_type) == 0 &&
         worker_add(module) &&
         PyModule_AddIntConstant(module, "SHARED_BYTES", (long)sizeof(struct shared)) == 0;
}
