/* Face 1: the proxylib C ABI, symbol by symbol (x86-64 System V).
 *
 * The host keeps what a connection withholds and carries out the ops; we keep the
 * parsers.  Everything here happens under the GIL, which also guards the table of
 * connections.
 */
#include "native.h"
#include "proxylib.h"

#include <stdlib.h>
#include <string.h>

/* One open connection. `pending` are ops that did not fit the host's list. */
struct entry {
  struct connection connection;
  GoSlice *inject[2]; /* the host's buffers: original direction, reply direction */
  struct op_list pending[2];
  size_t next[2];
  enum filter_result failed; /* what the next call is answered with */
  uint64_t id;
  struct entry *link;
};

/* Chained hash table; grows with the number of connections. */
static struct entry **table;
static size_t table_size, n_entries;

static struct entry **find(uint64_t id) {
  struct entry **at = &table[(id * 0x9e3779b97f4a7c15u) >> 32 & (table_size - 1)];
  while (*at && (*at)->id != id) at = &(*at)->link;
  return at;
}

static bool grow_table(void) {
  if (n_entries < table_size) return true;
  size_t old_size = table_size, size = old_size ? 2 * old_size : 1024;
  struct entry **old = table, **new = calloc(size, sizeof *new);
  if (!new) return old != NULL;
  table = new;
  table_size = size;
  for (size_t i = 0; i < old_size; i++) {
    for (struct entry *e = old[i], *next; e; e = next) {
      next = e->link;
      e->link = NULL;
      *find(e->id) = e;
    }
  }
  free(old);
  return true;
}

static void remove_entry(uint64_t id) {
  struct entry **at = table_size ? find(id) : NULL;
  struct entry *e = at ? *at : NULL;
  if (!e) return;
  *at = e->link;
  n_entries--;
  connection_close(&e->connection);
  op_list_free(&e->pending[0]);
  op_list_free(&e->pending[1]);
  free(e);
}

static PyObject *to_bytes(GoString s) {
  return PyBytes_FromStringAndSize(s.n > 0 ? s.p : "", s.n > 0 ? s.n : 0);
}

static PyObject *params_list(GoSlice params) {
  GoKeyValue *pairs = params.data;
  PyObject *list = PyList_New(0);
  for (int64_t i = 0; list && i < params.len; i++) {
    PyObject *pair = Py_BuildValue("(NN)", to_bytes(pairs[i].key), to_bytes(pairs[i].value));
    if (!pair || PyList_Append(list, pair) < 0) Py_CLEAR(list);
    Py_XDECREF(pair);
  }
  return list;
}

/* The declared types are the promise; a definition that strays does not compile. */
EXPORT open_module_fn OpenModule;
EXPORT close_module_fn CloseModule;
EXPORT on_new_connection_fn OnNewConnection;
EXPORT on_data_fn OnData;
EXPORT close_fn Close;

EXPORT uint64_t OpenModule(GoSlice params, uint8_t debug) {
  if (!python_start()) return 0;
  python_enter();
  PyObject *list = params_list(params);
  PyObject *result =
      list ? PyObject_CallMethod(embed_module, "open_module", "OO", list, debug ? Py_True : Py_False)
           : NULL;
  uint64_t instance = result ? PyLong_AsUnsignedLongLong(result) : 0;
  if (PyErr_Occurred()) {
    python_print_error("OpenModule");
    instance = 0;
  }
  Py_XDECREF(result);
  Py_XDECREF(list);
  python_leave();
  return instance;
}

EXPORT void CloseModule(uint64_t instance) {
  if (!python_start()) return;
  python_enter();
  PyObject *result = PyObject_CallMethod(embed_module, "close_module", "K", instance);
  if (!result) python_print_error("CloseModule");
  Py_XDECREF(result);
  python_leave();
}

/* A FilterResult for a refused connection, or a new entry in the table. */
static enum filter_result open_entry(PyObject *answer, uint64_t id, GoSlice *orig, GoSlice *reply) {
  if (PyLong_Check(answer)) return (enum filter_result)PyLong_AsLong(answer);
  struct entry *e = calloc(1, sizeof *e);
  if (!e || !grow_table() || !connection_init(&e->connection, answer)) {
    if (PyErr_Occurred()) python_print_error("OnNewConnection");
    free(e);
    return RESULT_UNKNOWN_ERROR;
  }
  remove_entry(id);
  e->id = id;
  e->inject[0] = orig;
  e->inject[1] = reply;
  *find(id) = e;
  n_entries++;
  return RESULT_OK;
}

EXPORT int32_t OnNewConnection(uint64_t instance, GoString proto, uint64_t connection,
                               uint8_t ingress, uint32_t src_id, uint32_t dst_id,
                               GoString src_addr, GoString dst_addr, GoString policy_name,
                               GoSlice *orig_buf, GoSlice *reply_buf) {
  if (!python_start()) return RESULT_INVALID_INSTANCE;
  python_enter();
  PyObject *answer = PyObject_CallMethod(
      embed_module, "new_connection", "KNOIINNN", instance, to_bytes(proto),
      ingress ? Py_True : Py_False, src_id, dst_id, to_bytes(src_addr), to_bytes(dst_addr),
      to_bytes(policy_name));
  enum filter_result result = RESULT_UNKNOWN_ERROR;
  if (answer) {
    result = open_entry(answer, connection, orig_buf, reply_buf);
    Py_DECREF(answer);
  } else {
    python_print_error("OnNewConnection");
  }
  python_leave();
  return result;
}

/* Moves injected bytes of a direction to the host's buffer; returns their number. */
static size_t fill(struct entry *e, bool reply, size_t most) {
  GoSlice *to = e->inject[reply];
  if (!to || to->cap <= to->len) return 0;
  size_t room = (size_t)(to->cap - to->len);
  size_t n = connection_take_injected(&e->connection, reply, (char *)to->data + to->len,
                                      most < room ? most : room);
  to->len += (int64_t)n;
  return n;
}

static bool add_op(GoSlice *ops, int64_t op, int64_t n) {
  if (ops->len >= ops->cap) return false;
  ((FilterOp *)ops->data)[ops->len++] = (FilterOp){(uint64_t)op, n};
  return true;
}

/* Hands pending ops to the host; false while some are left. */
static bool flush_pending(struct entry *e, bool reply, GoSlice *ops) {
  struct op_list *list = &e->pending[reply];
  while (e->next[reply] < list->len) {
    struct op_entry *op = &list->ops[e->next[reply]];
    if (ops->len >= ops->cap) return false;
    /* A host forwards nothing of a call that ends in an error: that one comes next. */
    if (op->op == OP_ERROR && ops->len > 0) return false;
    if (op->op == OP_INJECT) {
      size_t n = fill(e, reply, (size_t)op->n);
      if (n > 0) add_op(ops, OP_INJECT, (int64_t)n);
      op->n -= (int64_t)n;
      if (op->n > 0) return false;
    } else {
      add_op(ops, op->op, op->n);
    }
    e->next[reply]++;
  }
  list->len = e->next[reply] = 0;
  return true;
}

static enum filter_result run(struct entry *e, bool reply, bool end_stream, GoSlice *data,
                              GoSlice *ops) {
  if (!flush_pending(e, reply, ops)) return RESULT_OK;
  if (ops->len > 0) return RESULT_OK;
  /* What the other direction's parser run has injected and the buffer had no room for. */
  size_t left = connection_injected(&e->connection, reply);
  if (left > 0) {
    size_t n = fill(e, reply, left);
    if (n > 0) add_op(ops, OP_INJECT, (int64_t)n);
    if (n < left) return RESULT_OK;
  }
  int64_t n_slices = data && data->len > 0 ? data->len : 0;
  const GoSlice *host = n_slices ? data->data : NULL;
  struct slice few[16], *slices = few;
  if (n_slices > 16 && !(slices = malloc((size_t)n_slices * sizeof *slices))) {
    return RESULT_UNKNOWN_ERROR;
  }
  size_t total = 0;
  for (int64_t i = 0; i < n_slices; i++) {
    slices[i] = (struct slice){host[i].data, (size_t)host[i].len};
    total += slices[i].len;
  }
  /* An empty write only fetches what was injected. */
  enum filter_result result =
      e->failed ? (total || end_stream ? e->failed : RESULT_OK)
                : connection_run(&e->connection, reply, end_stream, slices, (size_t)n_slices, total,
                                 NULL, NULL, &e->pending[reply]);
  if (slices != few) free(slices);
  flush_pending(e, reply, ops);
  fill(e, !reply, SIZE_MAX);
  if (result == RESULT_OK || ops->len == 0) return result;
  /* What was decided before is forwarded first; with the next call, the host closes. */
  e->failed = result;
  return RESULT_OK;
}

EXPORT int32_t OnData(uint64_t connection, uint8_t reply, uint8_t end_stream, GoSlice *data,
                      GoSlice *ops) {
  if (!python_start()) return RESULT_UNKNOWN_CONNECTION;
  python_enter();
  struct entry *e = table_size ? *find(connection) : NULL;
  enum filter_result result =
      e ? run(e, reply != 0, end_stream != 0, data, ops) : RESULT_UNKNOWN_CONNECTION;
  python_leave();
  return result;
}

EXPORT void Close(uint64_t connection) {
  if (!python_start()) return;
  python_enter();
  remove_entry(connection);
  python_leave();
}
