/* The time budget of calls into parsers.
 *
 * A call costs two stores of its thread's counter, odd while a call is under way.
 * A thread of ours looks at the counters every tick; a call that has used up its
 * budget is interrupted by an exception set from outside.  It is set and taken back
 * only with the GIL, and a call ends with the GIL: so it never hits anything but the
 * call that it is meant for.
 *
 * What is counted is time on the clock, since that is how long the other connections
 * of the thread wait.  Not counted is how long we ourselves have waited for the GIL:
 * somebody else had it then, and the call could not run (unless the call's thread
 * has been computing all the while, inside C).  On a machine that is short of
 * processors a thread that wants to run and may not is given more time, too.
 *
 * An exception can be caught.  After a few ticks it is therefore raised again at
 * every line, handlers and finally blocks included, until the call is over.  Only C
 * code that does not return cannot be interrupted; `isolation: process` is for that.
 */
#define _GNU_SOURCE
#include "native.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TICK_NS 5000000
/* Interruptions that leave `finally` and `with` alone, before those that do not. */
#define POLITE 3
/* Ticks after which a call that cannot be interrupted is complained about. */
#define COMPLAIN 200
#define MAX_FRAMES 32
#define MEMORY_TICKS 10

struct guard {
  _Atomic uint64_t serial; /* odd: in a call */
  _Atomic bool taken;
  int64_t budget; /* of the call, nanoseconds */
  PyThreadState *state;
  char stat[64]; /* its file in /proc */
  clockid_t cpu;
  /* Written with the GIL. */
  int fired; /* interruptions of this call */
  PyObject *frames;
  bool tracing;
  /* The watchdog's own. */
  uint64_t seen;
  int64_t since, cpu_since;
  struct guard *next;
};

PyObject *budget_exceeded;

static PyObject *nothing; /* a function of Python that does nothing */

static _Atomic(struct guard *) guards;
static __thread struct guard *mine;
static pthread_key_t thread_end;
static int recursion_limit;

static int64_t now_ns(clockid_t clock) {
  struct timespec t;
  return clock_gettime(clock, &t) ? 0 : (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* -- the calls' side ---------------------------------------------------------- */

static void give_back(void *guard) { atomic_store(&((struct guard *)guard)->taken, false); }

/* This thread's guard. They are never freed, so that the watchdog may look at any. */
static struct guard *guard_new(void) {
  struct guard *g = atomic_load(&guards);
  for (bool no = false; g; g = g->next, no = false) {
    if (atomic_compare_exchange_strong(&g->taken, &no, true)) break;
  }
  if (!g) {
    if (!(g = calloc(1, sizeof *g))) return NULL;
    atomic_store(&g->taken, true);
    g->next = atomic_load(&guards);
    while (!atomic_compare_exchange_weak(&guards, &g->next, g)) {
    }
  }
  g->state = PyThreadState_Get();
  pthread_getcpuclockid(pthread_self(), &g->cpu);
  snprintf(g->stat, sizeof g->stat, "/proc/self/task/%d/stat", (int)syscall(SYS_gettid));
  pthread_setspecific(thread_end, g);
  return mine = g;
}

struct guard *guard_begin(int64_t budget) {
  struct guard *g = mine ? mine : guard_new();
  uint64_t serial = g ? atomic_load_explicit(&g->serial, memory_order_relaxed) : 1;
  /* Within a guarded call: the outer budget is the one that counts. */
  if (serial & 1) return NULL;
  g->budget = budget;
  atomic_store_explicit(&g->serial, serial + 1, memory_order_relaxed);
  return g;
}

bool guard_active(void) {
  return mine && atomic_load_explicit(&mine->serial, memory_order_relaxed) & 1;
}

/* Has an exception that was set from outside, and has not been raised, raised now.
 * Taking it back would leave the interpreter's "something is pending" set for good:
 * CPython 3.11 then loops without end in the next function that is traced. */
static void raise_pending(void) {
  PyObject *result = PyObject_CallNoArgs(nothing);
  Py_XDECREF(result);
  PyErr_Clear();
}

/* Takes back what was set, and sets BudgetExceeded in place of what the call raised. */
static bool late(struct guard *g) {
  if (g->tracing) {
    PyEval_SetTrace(NULL, NULL);
    g->tracing = false;
  }
  PyErr_Clear();
  raise_pending();
  /* A handler that was interrupted may not have put this back. */
  PyErr_SetHandledException(NULL);
  PyObject *frames = g->frames, *text, *error;
  g->frames = NULL;
  g->fired = 0;
  text = PyUnicode_FromFormat("a call ran longer than its %lld ms",
                              (long long)(g->budget / 1000000));
  error = text ? PyObject_CallOneArg(budget_exceeded, text) : NULL;
  if (error && frames && PyObject_SetAttrString(error, "frames", frames) < 0) PyErr_Clear();
  if (error) PyErr_SetObject(budget_exceeded, error);
  Py_XDECREF(text);
  Py_XDECREF(error);
  Py_XDECREF(frames);
  return true;
}

bool guard_end(struct guard *g) {
  if (!g) return false;
  uint64_t serial = atomic_load_explicit(&g->serial, memory_order_relaxed);
  atomic_store_explicit(&g->serial, serial + 1, memory_order_relaxed);
  if (Py_GetRecursionLimit() != recursion_limit) Py_SetRecursionLimit(recursion_limit);
  return g->fired ? late(g) : false;
}

/* -- the watchdog ------------------------------------------------------------- */

static int raise_again(PyObject *self, PyFrameObject *frame, int what, PyObject *argument) {
  (void)self, (void)frame, (void)argument;
  if (what != PyTrace_LINE && what != PyTrace_CALL) return 0;
  PyErr_SetNone(budget_exceeded);
  return -1;
}

/* Where a thread is, innermost first: ((file, line), ...). */
static PyObject *frames_of(PyThreadState *state) {
  PyObject *list = PyList_New(0);
  PyFrameObject *frame = PyThreadState_GetFrame(state);
  for (int depth = 0; list && frame && depth < MAX_FRAMES; depth++) {
    PyCodeObject *code = PyFrame_GetCode(frame);
    PyObject *pair = Py_BuildValue("(Oi)", code->co_filename, PyFrame_GetLineNumber(frame));
    if (!pair || PyList_Append(list, pair) < 0) Py_CLEAR(list);
    Py_XDECREF(pair);
    Py_DECREF(code);
    PyFrameObject *back = PyFrame_GetBack(frame);
    Py_DECREF(frame);
    frame = back;
  }
  Py_XDECREF(frame);
  PyErr_Clear();
  return list;
}

static void interrupt(struct guard *g) {
  PyThreadState *state = g->state;
  /* Somebody stands in it with a debugger. */
  if (state->c_tracefunc && !g->tracing) return;
  if (!g->fired++) g->frames = frames_of(state);
  PyThreadState_SetAsyncExc(state->thread_id, budget_exceeded);
#if PY_VERSION_HEX < 0x030d0000
  if (g->fired > POLITE && !g->tracing) {
    g->tracing = _PyEval_SetTrace(state, raise_again, Py_None) == 0;
  }
#endif
  if (g->fired == COMPLAIN) {
    PyObject *place = g->frames && PyList_GET_SIZE(g->frames) ? PyList_GET_ITEM(g->frames, 0) : NULL;
    PySys_FormatStderr("proxylib: ERROR: a parser cannot be interrupted, since it is in C code or "
                       "asleep, called from %S\n", place ? place : Py_None);
  }
}

bool task_starved(const char *stat, int64_t used, int64_t wall) {
  if (2 * used >= wall) return false;
  char line[256];
  int fd = open(stat, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
  if (fd >= 0) close(fd);
  if (n <= 0) return false;
  line[n] = 0;
  /* "pid (name) state ...", and the name may be anything. */
  const char *end = strrchr(line, ')');
  return end && end[1] == ' ' && end[2] == 'R';
}

/* Whether the call that is under way has used up its budget. */
static bool overdue(struct guard *g, int64_t now) {
  uint64_t serial = atomic_load_explicit(&g->serial, memory_order_relaxed);
  if (!(serial & 1)) return false;
  if (serial != g->seen) {
    g->seen = serial;
    g->since = now;
    g->cpu_since = now_ns(g->cpu);
    return false;
  }
  int64_t wall = now - g->since, used = now_ns(g->cpu) - g->cpu_since;
  if (used >= g->budget || wall >= STARVED_MOST * g->budget) return true;
  return wall >= g->budget && !task_starved(g->stat, used, wall);
}

static void *watch(void *ignored) {
  PyThreadState *state = PyThreadState_New(PyInterpreterState_Main());
  (void)ignored;
  for (unsigned tick = 0;; tick++) {
    if (tick % MEMORY_TICKS == 0 && limits.memory_budget) memory_watch(state);
    clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){.tv_nsec = TICK_NS}, NULL);
    int64_t before = now_ns(CLOCK_MONOTONIC);
    bool any = false;
    for (struct guard *g = atomic_load(&guards); g; g = g->next) any |= overdue(g, before);
    if (!any) continue;
    PyEval_RestoreThread(state);
    int64_t now = now_ns(CLOCK_MONOTONIC);
    for (struct guard *g = atomic_load(&guards); g; g = g->next) {
      g->since += now - before;
      if (overdue(g, now)) interrupt(g);
    }
    PyEval_SaveThread();
  }
  return NULL;
}

/* -- what parsers may not do in a call ---------------------------------------- */

/* A child of the host would go on as a second host; a wait holds up the whole thread. */
static const char *const refused[] = {
    "os.fork",       "os.forkpty",       "os.exec",        "os.posix_spawn",     "os.spawn",
    "os.system",     "subprocess.Popen", "os.kill",        "os.killpg",          "pty.spawn",
    "socket.bind",   "socket.connect",   "socket.sendto",  "socket.getaddrinfo", "time.sleep",
    "signal.pthread_kill", "os.chdir",
};

static int audit(const char *event, PyObject *arguments, void *ignored) {
  (void)arguments, (void)ignored;
  if (!guard_active()) return 0;
  for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
    if (strcmp(event, refused[i]) == 0) {
      PyErr_Format(PyExc_PermissionError, "a parser must not use %s", event);
      return -1;
    }
  }
  return 0;
}

/* -- for Python --------------------------------------------------------------- */

static PyObject *guarded(PyObject *module, PyObject *const *args, Py_ssize_t n) {
  (void)module;
  int64_t budget = n < 2 ? -1 : PyLong_AsLongLong(args[0]);
  if (budget <= 0) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "guarded(nanoseconds > 0, call, ...)");
    return NULL;
  }
  PyObject *handled = PyErr_GetHandledException();
  struct guard *g = guard_begin(budget);
  PyObject *result = PyObject_Vectorcall(args[1], args + 2, (size_t)(n - 2), NULL);
  if (guard_end(g)) {
    Py_CLEAR(result);
    PyErr_SetHandledException(handled);
  }
  Py_XDECREF(handled);
  return result;
}

static PyObject *guard_ns(PyObject *module, PyObject *count) {
  long n = PyLong_AsLong(count);
  (void)module;
  if (n <= 0) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "count > 0");
    return NULL;
  }
  int64_t began = now_ns(CLOCK_MONOTONIC);
  for (long i = 0; i < n; i++) {
    if (guard_end(guard_begin(60000000000))) return NULL;
  }
  return PyFloat_FromDouble((double)(now_ns(CLOCK_MONOTONIC) - began) / (double)n);
}

static PyMethodDef methods[] = {
    {"guard_ns", guard_ns, METH_O, "guard_ns(count): nanoseconds that a budget adds to a call."},
    {"guarded", (PyCFunction)(void (*)(void))guarded, METH_FASTCALL,
     "guarded(budget, call, /, *args): call(*args), interrupted after `budget` nanoseconds: "
     "raises BudgetExceeded then, whatever the call made of it."},
    {NULL, NULL, 0, NULL},
};

static PyObject *make_nothing(void) {
  PyObject *names = PyDict_New();
  PyObject *done = names ? PyRun_String("lambda: None", Py_eval_input, names, names) : NULL;
  Py_XDECREF(names);
  return done;
}

bool guard_start(PyObject *module) {
  pthread_t thread;
  sigset_t all, before;
  recursion_limit = Py_GetRecursionLimit();
  budget_exceeded = PyErr_NewExceptionWithDoc(
      "proxylib_native.BudgetExceeded",
      "A call into a parser has used up its time budget. `frames`: where it was.",
      PyExc_BaseException, NULL);
  nothing = make_nothing();
  if (!nothing || !budget_exceeded || PyModule_AddObjectRef(module, "BudgetExceeded", budget_exceeded) < 0 ||
      PyModule_AddFunctions(module, methods) < 0 || pthread_key_create(&thread_end, give_back)) {
    return false;
  }
  /* The host's signals are not for this thread. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(&thread, NULL, watch, NULL);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error == 0) return pthread_detach(thread) == 0;
  PyErr_SetString(PyExc_RuntimeError, "no thread for the watchdog");
  return false;
}

bool guard_refuse_processes(void) { return PySys_AddAuditHook(audit, NULL) == 0; }
