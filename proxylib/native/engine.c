/* One connection: hands bytes to its parser, checks what comes back.
 *
 * The parser sees at most a window of what is there, and more when it asks: a
 * megabyte that it passes unseen is never copied.  To the parser this looks like
 * smaller chunks, which must not matter to it (design: chunking invariance).
 */
#include "isolate.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* Length of the flat op list of a raw parser that was stopped: connection.py's MAX_OPS. */
enum { FULL_LIST = 2 * 16 };

static PyObject *get(PyObject *object, const char *name) {
  return PyObject_GetAttrString(object, name);
}

/* An int attribute of the connection; -1 with a Python error if there is none. */
static int64_t get_number(PyObject *object, const char *name) {
  PyObject *value = get(object, name);
  int64_t number = value ? PyLong_AsLongLong(value) : -1;
  Py_XDECREF(value);
  return number;
}

unsigned reloads;

bool connection_init(struct connection *c, PyObject *object) {
  memset(c, 0, sizeof *c);
  c->code = reloads;
  PyObject *parser = NULL, *injected = NULL;
  bool ok = false;
  c->batch = get_number(object, "batch") > 0;
  c->budget = get_number(object, "budget");
  c->memory = get_number(object, "memory");
  if (get_number(object, "unparsed") > 0) c->settled[0] = c->settled[1] = OP_PASS;
  PyObject *remote = get(object, "remote");
  if (remote && remote != Py_None) {
    c->remote = remote_from(remote);
    c->id = (uint32_t)get_number(object, "remote_id");
  }
  Py_XDECREF(remote);
  if (PyErr_Occurred()) return false;
  if (!(parser = get(object, "parser")) || !(injected = get(object, "injected"))) goto done;
  if (!PyArg_ParseTuple(injected, "O!O!", &PyByteArray_Type, &c->injected[0], &PyByteArray_Type,
                        &c->injected[1])) {
    c->injected[0] = c->injected[1] = NULL;
    goto done;
  }
  Py_INCREF(c->injected[0]);
  Py_INCREF(c->injected[1]);
  c->object = Py_NewRef(object);
  c->call = c->remote || c->settled[0] ? Py_NewRef(Py_None)
            : c->batch                 ? get(parser, "on_batch")
                                       : get(object, "run");
  c->ops = PyList_New(0);
  ok = c->call && c->ops;
done:
  Py_XDECREF(parser);
  Py_XDECREF(injected);
  if (!ok) connection_close(c);
  else memory_add(c);
  return ok;
}

/* Takes up the parser that the Python connection has now. */
static bool take_parser(struct connection *c) {
  PyObject *parser = get(c->object, "parser"), *call = NULL;
  int64_t batch = get_number(c->object, "batch"), budget = get_number(c->object, "budget");
  if (parser && !PyErr_Occurred()) call = batch > 0 ? get(parser, "on_batch") : get(c->object, "run");
  Py_XDECREF(parser);
  if (!call) return false;
  c->batch = batch > 0;
  c->budget = budget;
  Py_SETREF(c->call, call);
  return true;
}

bool connection_refresh(struct connection *c) {
  if (c->code == reloads) return true;
  c->code = reloads;
  /* Without a parser there is nothing to look at. */
  if (!c->remote && c->call == Py_None) return true;
  PyObject *goes_on = PyObject_CallMethod(c->object, "refresh", NULL);
  bool ok = goes_on == Py_True && (c->remote || take_parser(c));
  Py_XDECREF(goes_on);
  if (PyErr_Occurred()) python_print_error("a connection after a reload");
  return ok;
}

void connection_close(struct connection *c) {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  memory_remove(c);
  if (c->remote && c->ops) remote_close(c);
  if (c->object) {
    PyObject *result = PyObject_CallMethod(c->object, "close", NULL);
    if (!result) python_print_error("closing a connection");
    Py_XDECREF(result);
  }
  Py_CLEAR(c->object);
  Py_CLEAR(c->call);
  Py_CLEAR(c->ops);
  Py_CLEAR(c->injected[0]);
  Py_CLEAR(c->injected[1]);
  PyErr_Restore(type, value, trace);
}

size_t connection_injected(const struct connection *c, bool reply) {
  return (size_t)PyByteArray_GET_SIZE(c->injected[reply]);
}

size_t connection_take_injected(struct connection *c, bool reply, char *to, size_t room) {
  PyObject *buffer = c->injected[reply];
  size_t len = (size_t)PyByteArray_GET_SIZE(buffer), n = len < room ? len : room;
  if (n == 0) return 0;
  memcpy(to, PyByteArray_AS_STRING(buffer), n);
  /* A bytearray gives up its front without moving the rest. */
  if (PySequence_DelSlice(buffer, 0, (Py_ssize_t)n) < 0) {
    /* Only possible while somebody holds a view of the buffer. */
    PyErr_Clear();
    return 0;
  }
  return n;
}

static bool spill(struct connection *c, bool reply, size_t len, struct bytes *to) {
  if (!len) return true;
  if (!bytes_reserve(to, len)) return false;
  size_t taken = connection_take_injected(c, reply, to->data + to->len, len);
  to->len += taken;
  return taken == len;
}

bool connection_spill_injected(struct connection *c, bool reply, struct bytes *to) {
  return spill(c, reply, connection_injected(c, reply), to);
}

bool bytes_reserve(struct bytes *b, size_t extra) {
  if (b->len + extra <= b->cap) return true;
  size_t cap = b->cap ? b->cap : 16 << 10;
  while (cap < b->len + extra) cap *= 2;
  char *data = realloc(b->data, cap);
  if (!data) return false;
  b->data = data;
  b->cap = cap;
  return true;
}

void op_list_free(struct op_list *list) {
  free(list->ops);
  memset(list, 0, sizeof *list);
}

static bool op_append(struct op_list *list, int64_t op, int64_t n) {
  if (list->len == list->cap) {
    size_t cap = list->cap ? 2 * list->cap : 32;
    struct op_entry *ops = realloc(list->ops, cap * sizeof *ops);
    if (!ops) return false;
    list->ops = ops;
    list->cap = cap;
  }
  list->ops[list->len++] = (struct op_entry){op, n};
  return true;
}

enum filter_result connection_panic(struct connection *c) {
  PyObject *type, *value, *trace;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  if (trace) PyException_SetTraceback(value, trace);
  PyObject *result = PyObject_CallMethod(c->object, "panic", "O", value);
  if (!result) python_print_error("a parser raised");
  Py_XDECREF(result);
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(trace);
  return RESULT_PARSER_ERROR;
}

void connection_fail(struct connection *c, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  PyObject *text = PyUnicode_FromFormatV(format, arguments);
  va_end(arguments);
  PyObject *result = text ? PyObject_CallMethod(c->object, "fail", "O", text) : NULL;
  if (!result) python_print_error("logging what a parser did");
  Py_XDECREF(result);
  Py_XDECREF(text);
}

/* Logs an answer that cannot be carried out. */
static enum filter_result misbehaved(struct connection *c, const char *what, int64_t op,
                                     int64_t n) {
  connection_fail(c, "Parser error: %s (op %lld, length %lld)", what, (long long)op,
                  (long long)n);
  return RESULT_PARSER_ERROR;
}

/* The bytes [from, from + len) of the input as one object, or as a list of chunks. */
static PyObject *copy_input(const struct connection *c, const struct slice *in, size_t n_in,
                            size_t from, size_t len) {
  PyObject *whole = c->batch ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)len) : PyList_New(0);
  char *to = c->batch && whole ? PyBytes_AS_STRING(whole) : NULL;
  for (size_t i = 0; whole && len > 0 && i < n_in; i++) {
    if (from >= in[i].len) {
      from -= in[i].len;
      continue;
    }
    size_t n = in[i].len - from < len ? in[i].len - from : len;
    if (to) {
      memcpy(to, in[i].data + from, n);
      to += n;
    } else {
      PyObject *chunk = PyBytes_FromStringAndSize(in[i].data + from, (Py_ssize_t)n);
      if (!chunk || PyList_Append(whole, chunk) < 0) Py_CLEAR(whole);
      Py_XDECREF(chunk);
    }
    len -= n;
    from = 0;
  }
  return whole;
}

enum filter_result connection_call(struct connection *c, bool reply, bool end_stream,
                                   const struct slice *in, size_t n_in, size_t from, size_t len) {
  if (c->hoards) return RESULT_PARSER_ERROR; /* which has been logged */
  PyObject *data = copy_input(c, in, n_in, from, len);
  if (!data) return connection_panic(c);
  PyObject *args[5] = {NULL, reply ? Py_True : Py_False, end_stream ? Py_True : Py_False, data,
                       c->ops};
  c->running = true;
  struct guard *guard = guard_begin(c->budget);
  PyObject *answer =
      PyObject_Vectorcall(c->call, args + 1, 4 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
  if (guard_end(guard)) Py_CLEAR(answer);
  c->running = false;
  Py_DECREF(data);
  if (c->hoards) {
    Py_XDECREF(answer);
    PyErr_Clear();
    connection_dispossess(c);
    return RESULT_PARSER_ERROR;
  }
  if (!answer) return connection_panic(c);
  Py_DECREF(answer);
  return RESULT_OK;
}

void connection_watch(struct connection *c, void (*call)(void *), void *argument) {
  c->watcher = (struct watcher){call, argument, NULL};
  if (c->remote) remote_watch(c);
}

void connection_dispossess(struct connection *c) {
  PyObject *result = PyObject_CallMethod(c->object, "dispossess", NULL);
  if (!result) python_print_error("taking a parser from its connection");
  Py_XDECREF(result);
  Py_SETREF(c->call, Py_NewRef(Py_None));
}

bool connection_op(const struct connection *c, Py_ssize_t i, int64_t *value) {
  PyObject *item = PyList_GET_ITEM(c->ops, i);
  int overflow = 0;
  if (!PyLong_Check(item)) {
    PyErr_Format(PyExc_TypeError, "ops hold integers, not %s", Py_TYPE(item)->tp_name);
    return false;
  }
  *value = PyLong_AsLongLongAndOverflow(item, &overflow);
  if (overflow) *value = overflow < 0 ? INT64_MIN : INT64_MAX;
  return true;
}

enum on_error connection_on_error(struct connection *c) {
  if (c->on_error) return c->on_error;
  int64_t value = get_number(c->object, "on_error");
  if (value < 0) python_print_error("what becomes of a stream that cannot be parsed");
  return value < 0 ? ON_ERROR_CLOSE : (enum on_error)value;
}

/* Where connection_run is in its input. */
struct progress {
  size_t total, offset; /* all of it; what the ops so far use up */
  int64_t more;         /* bytes missing behind the end, if the parser said so */
  int64_t injected;     /* that INJECT ops have placed */
  bool terminal;        /* the last op says something about bytes to come */
  bool waits;           /* for an answer */
};

/* Checks the ops of one call and appends them to `out`. Those of a call that `failed`
 * count as far as they can be carried out: they were decided before. */
static enum filter_result read_ops(struct connection *c, bool reply, bool failed,
                                   struct progress *at, struct op_list *out) {
  Py_ssize_t n_ops = PyList_GET_SIZE(c->ops);
  const char *wrong = NULL;
  int64_t op = 0, n = 0;
  for (Py_ssize_t i = 0; i + 1 < n_ops; i += 2) {
    if (!connection_op(c, i, &op) || !connection_op(c, i + 1, &n)) {
      if (!failed) return connection_panic(c);
      PyErr_Clear();
      return RESULT_OK;
    }
    wrong = at->terminal                           ? "an op after a terminal op"
            : n <= 0 || n > limits.max_op_bytes    ? "invalid length"
            : op < OP_MORE || op > OP_WAIT         ? "unknown op"
            : op == OP_WAIT && c->remote           ? "a parser with isolation: process cannot wait for answers"
            : op != OP_INJECT                      ? NULL
            : at->injected > limits.max_inject - n ? "injects without end"
            : at->injected + n > (int64_t)connection_injected(c, reply)
                ? "more than was injected"
                : NULL;
    if (wrong || (failed && (op == OP_MORE || op >= OP_ERROR))) break;
    if (op == OP_WAIT) {
      at->terminal = at->waits = true;
      continue;
    }
    if (op == OP_MORE) {
      at->more = n;
      at->terminal = true;
      continue;
    }
    if (op == OP_PASS || op == OP_DROP) {
      at->terminal = (uint64_t)n > at->total - at->offset;
      at->offset = at->terminal ? at->total : at->offset + (size_t)n;
    } else if (op == OP_INJECT) {
      at->injected += n;
    } else {
      if (n != ERROR_CLOSE) misbehaved(c, "the stream cannot be parsed", op, n);
      if (n != ERROR_CLOSE && connection_on_error(c) != ON_ERROR_CLOSE) {
        return RESULT_PARSER_ERROR;
      }
      at->terminal = true;
    }
    if (!op_append(out, op, n)) return RESULT_UNKNOWN_ERROR;
  }
  if (!wrong && n_ops % 2) wrong = "an op without its length";
  return wrong && !failed ? misbehaved(c, wrong, op, n) : RESULT_OK;
}

/* What becomes of a stream whose parser has failed, which has been logged. */
static enum filter_result settle(struct connection *c, bool reply, enum filter_result result,
                                 bool terminal, struct op_list *out) {
  enum on_error on_error = connection_on_error(c);
  if (on_error == ON_ERROR_CLOSE || (on_error == ON_ERROR_DENY && reply)) return result;
  c->settled[reply] = on_error == ON_ERROR_PASS ? OP_PASS : OP_DROP;
  c->settled[!reply] = OP_PASS;
  if (terminal) return RESULT_OK;
  return op_append(out, c->settled[reply], limits.max_op_bytes) ? RESULT_OK : RESULT_UNKNOWN_ERROR;
}

/* Waits for the answer here, as hosts need that cannot be called back. */
static bool block(struct connection *c) {
  PyObject *done = PyObject_CallMethod(c->object, "block", NULL);
  Py_XDECREF(done);
  return done;
}

enum filter_result connection_run(struct connection *c, bool reply, bool end_stream,
                                  const struct slice *in, size_t n_in, size_t total,
                                  struct bytes *placed, struct bytes *across,
                                  struct op_list *out) {
  struct progress at = {.total = total};
  size_t window = (size_t)limits.window;
  if (c->settled[reply]) {
    return op_append(out, c->settled[reply], limits.max_op_bytes) ? RESULT_OK
                                                                  : RESULT_UNKNOWN_ERROR;
  }
  if (!connection_refresh(c)) return RESULT_PARSER_ERROR;
  for (;;) {
    size_t start = at.offset, left = total - start, seen = left < window ? left : window;
    bool end = end_stream && seen == left;
    enum filter_result result = c->remote ? remote_run(c, reply, end, in, n_in, start, seen)
                                          : connection_call(c, reply, end, in, n_in, start, seen);

    if (placed) at.injected = 0;
    at.more = 0;
    bool failed = result != RESULT_OK;
    Py_ssize_t n_ops = PyList_GET_SIZE(c->ops);
    enum filter_result wrong = read_ops(c, reply, failed, &at, out);
    if (wrong != RESULT_OK) result = wrong;
    if (PyList_SetSlice(c->ops, 0, PyList_GET_SIZE(c->ops), NULL) < 0) return connection_panic(c);
    if (placed && !spill(c, reply, (size_t)at.injected, placed)) return RESULT_UNKNOWN_ERROR;
    if (across && !connection_spill_injected(c, !reply, across)) return RESULT_UNKNOWN_ERROR;
    if (result != RESULT_OK) return settle(c, reply, result, at.terminal && !at.more, out);

    if (at.waits) {
      if (c->waits) return op_append(out, OP_WAIT, 1) ? RESULT_OK : RESULT_UNKNOWN_ERROR;
      if (!block(c)) return settle(c, reply, connection_panic(c), false, out);
      at.waits = at.terminal = false;
      continue;
    }
    size_t seen_to = start + seen;
    if (at.terminal && !at.more) return RESULT_OK;
    at.terminal = false;
    if (seen_to < total && at.offset < total) {
      /* There is more than the parser has seen: show it, if that is what it asked for. */
      size_t unseen = total - seen_to;
      if (at.more <= (int64_t)unseen || end_stream) {
        /* Larger windows are for messages that did not fit, not for those behind them. */
        size_t least = at.offset > start ? (size_t)limits.window : 2 * window;
        size_t wanted = at.offset < seen_to ? seen_to - at.offset : 0;
        wanted += at.more <= (int64_t)unseen ? (size_t)at.more : unseen;
        window = least > wanted ? least : wanted;
        continue;
      }
      at.more -= (int64_t)unseen;
    }
    if (at.more) {
      /* Refused at once: nothing is withheld for what cannot come. */
      if (at.more > limits.max_held - (int64_t)(total - at.offset)) {
        result = misbehaved(c, "more than limits.MAX_HELD bytes wanted", OP_MORE, at.more);
        return settle(c, reply, result, false, out);
      }
      return op_append(out, OP_MORE, at.more) ? RESULT_OK : RESULT_UNKNOWN_ERROR;
    }
    /* A raw parser's op list was full: go on where it stopped. */
    if (!c->batch && n_ops >= FULL_LIST) continue;
    if ((int64_t)(total - at.offset) <= limits.max_held) return RESULT_OK;
    connection_fail(c, "Parser error: more than limits.MAX_HELD bytes withheld");
    return settle(c, reply, RESULT_PARSER_ERROR, false, out);
  }
}
