/* What the C files of libproxylib share.
 *
 * start.c      starts Python once, and enters and leaves it on any thread
 * accesslog.c  the access-log client as Python sees it (log_entry.c encodes,
 *              log_sender.c queues and sends off the data path)
 * guard.c      the time budget of calls into parsers
 * memory.c     the memory budget of each parser
 * engine.c     one connection: calls its parser, checks the ops
 * isolate.c    the same parser in a process of its own (worker.c is that process's side)
 * cabi.c       face 1: the proxylib C ABI (OpenModule ... Close)
 * envoy.c      face 2: Envoy's dynamic-module network filter (envoy_buffer.c reads
 *              and rewrites Envoy's buffers; live.c knows which filters there are)
 * envoy_http.c face 2: the HTTP filter (envoy_config.c has what both filters need)
 *
 * Python objects are touched only between python_enter and python_leave.
 */
#ifndef PROXYLIB_NATIVE_H
#define PROXYLIB_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* Numbers of the C ABI; proxylib/ops.py has their meaning. */
enum op { OP_MORE, OP_PASS, OP_DROP, OP_INJECT, OP_ERROR, OP_WAIT };
enum { ERROR_CLOSE = 100 }; /* the parser closes, and has logged why */
enum filter_result {
  RESULT_OK,
  RESULT_POLICY_DROP,
  RESULT_PARSER_ERROR,
  RESULT_UNKNOWN_PARSER,
  RESULT_UNKNOWN_CONNECTION,
  RESULT_INVALID_ADDRESS,
  RESULT_INVALID_INSTANCE,
  RESULT_UNKNOWN_ERROR,
};

/* What becomes of a stream that its parser cannot parse; sandbox/settings.py has the names. */
enum on_error { ON_ERROR_CLOSE, ON_ERROR_DENY, ON_ERROR_PASS };

/* start.c */

/* Starts Python and imports proxylib.embed, once; false (with the reason on
 * stderr) if that failed. Call it before python_enter, without the GIL. */
bool python_start(void);
void python_enter(void);
void python_leave(void);

/* proxylib.embed, after python_start. */
extern PyObject *embed_module;

/* The bounds of proxylib/limits.py that C keeps. */
struct limits {
  int64_t max_held, max_inject, max_op_bytes, window;
  int64_t max_log_value, max_log_entry, log_queue;
  int64_t memory_budget;
};
extern struct limits limits;
/* Takes them over. False with a Python error. */
bool read_limits(void);

/* Prints the current Python exception to stderr and clears it. */
void python_print_error(const char *where);

/* guard.c */

struct guard;

/* Marks the begin of a call on this thread that may take `budget` nanoseconds. */
struct guard *guard_begin(int64_t budget);

/* Marks its end. True, with BudgetExceeded set in place of what it raised, if it was
 * interrupted; its result is to be thrown away then. */
bool guard_end(struct guard *guard);

/* Whether a task that has `used` so much processor time in so much time on the clock
 * would have wanted more; `stat`: its file in /proc. */
bool task_starved(const char *stat, int64_t used, int64_t wall);

/* What a starved task gets at most: so many budgets. */
#define STARVED_MOST 8

/* Starts the watchdog; adds its functions to the module. False with a Python error. */
bool guard_start(PyObject *module);

/* Refuses, from now on, what a parser must not do inside a call. */
bool guard_refuse_processes(void);

/* memory.c */

struct connection;

/* Whose parser is to be looked at, and no longer. */
void memory_add(struct connection *c);
void memory_remove(struct connection *c);

/* Looks whether a parser holds too much, if the process has grown. Called now and then
 * by the watchdog, without the GIL. */
void memory_watch(PyThreadState *state);

/* Adds `held` to the module. False with a Python error. */
bool memory_start(PyObject *module);

/* accesslog.c: the AccessLog type for the module proxylib_native. */
PyObject *accesslog_type(void);

/* engine.c */

struct slice {
  const char *data;
  size_t len;
};

struct op_entry {
  int64_t op, n;
};

struct op_list {
  struct op_entry *ops;
  size_t len, cap;
};

/* Bytes being put together. */
struct bytes {
  char *data;
  size_t len, cap;
};

/* Who is to hear that a connection has lost its parser while nothing was going on. */
struct watcher {
  void (*call)(void *);
  void *argument;
  struct watcher *next;
};

struct connection {
  PyObject *object;      /* proxylib.connection.Connection */
  PyObject *call;        /* the parser's on_batch, or the connection's on_data */
  PyObject *ops;         /* scratch list handed to `call` */
  PyObject *injected[2]; /* bytearrays: original direction, reply direction */
  int64_t budget;        /* of one call, nanoseconds */
  enum op settled[2];    /* OP_PASS or OP_DROP: all that comes, without the parser */
  enum on_error on_error; /* if another process has said so */
  unsigned code;          /* `reloads` when the parser's code was last looked at */
  bool batch;
  bool waits;      /* the host calls again after WAIT; else a call takes until the answer */
  int64_t memory;  /* that the parser may hold, bytes */
  bool running;    /* its parser is being called */
  bool hoards;     /* it holds more */
  struct connection *newer, *older;
  /* Of a parser in another process. */
  struct remote *remote; /* `object` keeps it alive */
  uint32_t id;
  bool told; /* that it has died */
  struct watcher watcher; /* called with the GIL, on any thread */
};

/* How often parsers have been reloaded. With the GIL. */
extern unsigned reloads;

/* Lets reloaded code take over; false if the connection is to be closed, which has been
 * logged. Needs the GIL. */
bool connection_refresh(struct connection *c);

/* envoy.c: has every connection look at reloaded code. From any thread. */
void envoy_reloaded(void);

/* Takes a new reference of `object`. False, with a Python error set, on failure. */
bool connection_init(struct connection *c, PyObject *object);

/* Tells Python that the connection is gone, and forgets it. */
void connection_close(struct connection *c);

/* Logs why a parser has failed; `format` as PyUnicode_FromFormat has it. */
void connection_fail(struct connection *c, const char *format, ...);

/* Bytes waiting to be injected in a direction. */
size_t connection_injected(const struct connection *c, bool reply);

/* Moves up to `room` such bytes to `to`; returns their number. */
size_t connection_take_injected(struct connection *c, bool reply, char *to, size_t room);

/* Moves all of them to the end of `to`. */
bool connection_spill_injected(struct connection *c, bool reply, struct bytes *to);

/* Runs the parser over `total` bytes in `in` and appends checked ops to `out`. The
 * bytes of its INJECT ops move on to `placed`, and what it injects into the other
 * direction to `across`, if these are not NULL: an inject buffer's limit then is one
 * for each window. Anything but RESULT_OK closes the connection, once the ops that are
 * in `out` have been carried out, and has been logged. Needs the GIL. */
enum filter_result connection_run(struct connection *c, bool reply, bool end_stream,
                                  const struct slice *in, size_t n_in, size_t total,
                                  struct bytes *placed, struct bytes *across,
                                  struct op_list *out);

/* One call of the parser, within its budget, with the bytes [from, from + len) of the
 * input; its ops are in c->ops afterwards, also those that it appended before it
 * failed, which has been logged. */
enum filter_result connection_call(struct connection *c, bool reply, bool end_stream,
                                   const struct slice *in, size_t n_in, size_t from, size_t len);

/* The number at `i` in c->ops; false with a Python error if it is none. */
bool connection_op(const struct connection *c, Py_ssize_t i, int64_t *value);

/* Hands the current exception to Connection.panic, which logs it. */
enum filter_result connection_panic(struct connection *c);

/* Has `call(argument)` called, with the GIL, when the connection loses its parser while
 * nothing is going on. */
void connection_watch(struct connection *c, void (*call)(void *), void *argument);

/* Takes its parser away from a connection that holds too much memory, and logs it. */
void connection_dispossess(struct connection *c);

/* What is to become of the connection if its parser fails now. */
enum on_error connection_on_error(struct connection *c);

void op_list_free(struct op_list *list);

/* Makes room for `extra` more bytes; false if there is no memory. */
bool bytes_reserve(struct bytes *b, size_t extra);

#endif
