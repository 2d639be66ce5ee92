/* Face 2: Envoy's dynamic-module network filter.
 *
 * This is the host of the C ABI in miniature: it keeps what a parser withholds,
 * passes and drops ahead without calling Python, and carries out ops on Envoy's
 * own buffers.  What goes through unchanged is never copied.
 *
 * All hooks of one connection run on its worker thread. Envoy's callbacks are made
 * outside Python, since they may call us back (a close, a write).
 */
#include "native.h"

#include "envoy_buffer.h"
#include "envoy_config.h"
#include "isolate.h"
#include "live.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct filter {
  envoy_filter envoy;
  PyObject *config;
  struct connection connection;
  struct direction directions[2]; /* original (read), reply (write) */
  struct live live;
  bool open, dead;
  bool full;       /* more waits for the client than Envoy's high watermark */
  bool answers;    /* the parser has answered in the server's place */
  bool unreadable; /* so we have stopped reading from the client */
};

/* Reads checked ops: how much of the input they use up, and whether all of it
 * passes as it is. Remembers what they say about bytes to come. */
static bool read_ops(struct direction *d, const struct op_list *list, size_t total, size_t *used) {
  size_t offset = 0;
  bool unchanged = true;
  for (size_t i = 0; i < list->len; i++) {
    int64_t op = list->ops[i].op;
    uint64_t n = (uint64_t)list->ops[i].n, left = total - offset;
    if (op == OP_MORE) d->need = (size_t)(left + n);
    if (op == OP_WAIT) d->waiting = true;
    if (op == OP_DROP || op == OP_INJECT) unchanged = false;
    if (op != OP_PASS && op != OP_DROP) continue;
    if (n > left) *(op == OP_PASS ? &d->passing : &d->dropping) = n - left;
    offset += (size_t)(n < left ? n : left);
  }
  *used = offset;
  return unchanged && offset == total;
}

/* Adds what the ops let through. */
static bool output_add_ops(const struct input *in, const struct op_list *list,
                           const struct bytes *placed) {
  size_t offset = 0;
  struct slice injected = {placed->data, placed->len};
  bool ok = true;
  for (size_t i = 0; ok && i < list->len; i++) {
    int64_t op = list->ops[i].op;
    size_t n = (size_t)list->ops[i].n, left = in->total - offset;
    if (op == OP_INJECT) {
      ok = output_add_slices(&injected, 1, 0, n);
      injected = (struct slice){injected.data + n, injected.len - n};
    }
    if (op != OP_PASS && op != OP_DROP) continue;
    if (n > left) n = left;
    if (op == OP_PASS) ok = output_add_slices(in->slices, in->n, offset, n);
    offset += n;
  }
  return ok;
}

/* -- closing -------------------------------------------------------------------- */

enum { SCHEDULED_CLOSE = 1, SCHEDULED_DEATH, SCHEDULED_REFRESH, SCHEDULED_ANSWER };

static void close_connection(struct filter *f, int how) {
  static const char details[] = "proxylib";
  envoy_dynamic_module_callback_network_filter_close_with_details(
      f->envoy, how, (envoy_buffer){details, sizeof details - 1});
}

/* Ends a connection whose parser gave up; what it let through before, which is in
 * `output`, still goes on. A close inside a write would pull the upstream connection
 * from under its caller, and one now would overtake what goes on: those are scheduled. */
static int fail(struct filter *f, bool reply, size_t len) {
  f->dead = true;
  if (len) envoy_buffer_calls[reply].drain(f->envoy, len);
  if (!reply && !output.len) {
    close_connection(f, CLOSE_FLUSH_WRITE);
    return STATUS_STOP_ITERATION;
  }
  live_tell_here(&f->live, SCHEDULED_CLOSE);
  if (!output.len) return STATUS_STOP_ITERATION;
  envoy_buffer_calls[reply].append(f->envoy, (envoy_buffer){output.data, output.len});
  return STATUS_CONTINUE;
}

/* -- data ------------------------------------------------------------------------ */

/* What a judgement leaves to be done once Python is left. */
struct outcome {
  bool ok;       /* false: close */
  bool rewrite;  /* Envoy's buffer becomes `output` */
  struct bytes across; /* to send in the other direction */
};

/* Nobody will ask any more for what a direction withholds: it goes on. */
static bool release(struct direction *d, struct bytes *to) {
  if (!d->held_len) return true;
  if (!bytes_reserve(to, d->held_len)) return false;
  memcpy(to->data + to->len, d->held, d->held_len);
  to->len += d->held_len;
  d->held_len = d->need = 0;
  return true;
}

/* Runs the parser over the input and works out what goes on. `skip` bytes at the
 * front of Envoy's buffer, not part of the input, pass in any case; `apart`: the input
 * is not in Envoy's buffer at all. */
static struct outcome judge(struct filter *f, bool reply, bool end_stream, const struct input *in,
                            size_t skip, bool call, bool apart) {
  struct direction *d = &f->directions[reply];
  struct connection *c = &f->connection;
  struct outcome o = {.ok = true};
  struct op_list ops = {0};
  struct bytes placed = {0};
  /* The other direction can be sent to now if it is at a frame boundary. */
  const struct direction *other = &f->directions[!reply];
  struct bytes *across = other->passing || other->dropping ? NULL : &o.across;
  size_t injected = connection_injected(c, reply), used = 0;
  bool unchanged = !call;
  o.rewrite = injected || !call || apart;
  if (o.rewrite) {
    o.ok = output_add_front(f->envoy, reply, skip) &&
           connection_spill_injected(c, reply, &output);
  }
  bool judged = o.ok && call;
  if (judged) {
    d->need = 0;
    enum filter_result result = connection_run(c, reply, end_stream, in->slices, in->n, in->total,
                                               &placed, across, &ops);
    o.ok = result == RESULT_OK && (!ops.len || ops.ops[ops.len - 1].op != OP_ERROR);
    unchanged = read_ops(d, &ops, in->total, &used) && o.ok;
  }
  if (judged && (o.rewrite || !unchanged)) {
    if (!o.rewrite && !output_add_front(f->envoy, reply, skip)) o.ok = false;
    o.rewrite = true;
    if (!output_add_ops(in, &ops, &placed)) o.ok = false;
  }
  size_t goes = end_stream && !d->waiting ? in->total : used;
  if (o.ok && o.rewrite && !input_hold(d, in, goes)) o.ok = false;
  if (across && !connection_spill_injected(c, !reply, across)) o.ok = false;
  if (across && c->settled[!reply] == OP_PASS && !release(&f->directions[!reply], across)) {
    o.ok = false;
  }
  op_list_free(&ops);
  free(placed.data);
  return o;
}

/* A client that does not read its replies is not read either: what a parser answers
 * in the server's place would gather in Envoy without bound. Replies of the server
 * are held back by tcp_proxy, so that without such answers nothing is to be done. Nor
 * is a client read while its request waits for an answer. */
static void hold_back_client(struct filter *f) {
  bool wanted = (f->full && f->answers) || f->directions[0].waiting;
  if (f->dead || f->unreadable == wanted) return;
  f->unreadable = wanted;
  envoy_dynamic_module_callback_network_filter_read_disable(f->envoy, wanted);
}

static void send_across(struct filter *f, bool reply, struct bytes *across) {
  envoy_buffer bytes = {across->data, across->len};
  if (bytes.length && reply) {
    envoy_dynamic_module_callback_network_filter_inject_read_data(f->envoy, bytes, false);
  } else if (bytes.length) {
    f->answers = true;
    envoy_dynamic_module_callback_network_filter_inject_write_data(f->envoy, bytes, false);
  }
  free(across->data);
  hold_back_client(f);
}

/* Sends what the parser has let through of a direction outside of Envoy's own call. */
static void send_apart(struct filter *f, bool reply, bool end_stream) {
  if (!output.len && !end_stream) return;
  /* Ours: sending may lead back into a hook, which needs the output itself. */
  struct bytes mine = output;
  output = (struct bytes){0};
  envoy_buffer bytes = {mine.data, mine.len};
  if (reply) {
    envoy_dynamic_module_callback_network_filter_inject_write_data(f->envoy, bytes, end_stream);
  } else {
    envoy_dynamic_module_callback_network_filter_inject_read_data(f->envoy, bytes, end_stream);
  }
  free(mine.data);
}

/* The parser has its answer: it is called again with what has waited. */
static void resume(struct filter *f, bool reply) {
  struct direction *d = &f->directions[reply];
  if (f->dead || !d->waiting) return;
  bool ended = d->ended;
  d->waiting = d->ended = false;
  struct input in = {.n = d->held_len > 0, .total = d->held_len};
  in.slices = in.few;
  in.few[0] = (struct slice){d->held, d->held_len};
  output_reset();
  python_enter();
  struct outcome o = judge(f, reply, ended, &in, 0, true, true);
  python_leave();
  d->ended = ended && d->waiting;
  send_apart(f, reply, ended && !d->waiting && o.ok);
  send_across(f, reply, &o.across);
  if (o.ok || f->dead) return;
  f->dead = true;
  close_connection(f, CLOSE_FLUSH_WRITE);
}

static int on_io(struct filter *f, bool reply, size_t len, bool end_stream) {
  struct direction *d = &f->directions[reply];
  if (f->dead || !f->open) {
    if (len) envoy_buffer_calls[reply].drain(f->envoy, len);
    return STATUS_STOP_ITERATION;
  }
  if (d->passing > len) {
    d->passing -= len;
    return STATUS_CONTINUE;
  }
  if (d->dropping) {
    size_t n = d->dropping < len ? (size_t)d->dropping : len;
    if (n) envoy_buffer_calls[reply].drain(f->envoy, n);
    len -= n;
    d->dropping -= n;
    if (d->dropping) return end_stream ? STATUS_CONTINUE : STATUS_STOP_ITERATION;
  }
  size_t skip = (size_t)d->passing;
  d->passing = 0;

  struct input in;
  output_reset();
  if (!input_read(&in, f->envoy, reply, d, skip)) return fail(f, reply, len);
  if (d->waiting) {
    d->ended |= end_stream;
    bool held = input_hold(d, &in, 0);
    input_free(&in);
    if (!held) return fail(f, reply, len);
    if (len) envoy_buffer_calls[reply].drain(f->envoy, len);
    return STATUS_STOP_ITERATION;
  }
  /* Nobody but this thread changes the buffer, so its size is read without the GIL. */
  bool call = in.total >= d->need || end_stream;
  struct outcome o = {.ok = true};
  if (call || connection_injected(&f->connection, reply)) {
    python_enter();
    o = judge(f, reply, end_stream, &in, skip, call, false);
    python_leave();
  } else {
    o.ok = input_hold(d, &in, 0);
    o.rewrite = true;
  }
  input_free(&in);

  send_across(f, reply, &o.across);
  if (d->waiting && end_stream && o.ok) {
    /* The end waits too, with what comes before it. */
    d->ended = true;
    if (len) envoy_buffer_calls[reply].drain(f->envoy, len);
    send_apart(f, reply, false);
    return STATUS_STOP_ITERATION;
  }
  if (!o.ok) return fail(f, reply, len);
  if (o.rewrite) {
    if (len) envoy_buffer_calls[reply].drain(f->envoy, len);
    if (output.len) {
      envoy_buffer_calls[reply].append(f->envoy, (envoy_buffer){output.data, output.len});
    } else if (!end_stream) {
      return STATUS_STOP_ITERATION;
    }
  } else if (d->held_len) {
    envoy_buffer_calls[reply].prepend(f->envoy, (envoy_buffer){d->held, d->held_len});
    d->held_len = 0;
  }
  return STATUS_CONTINUE;
}

void envoy_reloaded(void) { live_tell_all(SCHEDULED_REFRESH); }

/* The connection has lost its parser. Called on any thread, with the GIL. */
static void parser_lost(void *filter) {
  live_tell(&((struct filter *)filter)->live, SCHEDULED_DEATH);
}

/* The connection has lost its parser, whether bytes were under way or not. */
static void on_death(struct filter *f) {
  struct connection *c = &f->connection;
  if (f->dead || !f->open || c->settled[0]) return;
  python_enter();
  if (c->remote) remote_died(c);
  bool goes_on = connection_on_error(c) == ON_ERROR_PASS;
  struct bytes held[2] = {0};
  if (goes_on) {
    c->settled[0] = c->settled[1] = OP_PASS;
    release(&f->directions[0], &held[0]);
    release(&f->directions[1], &held[1]);
  }
  python_leave();
  if (!goes_on) {
    f->dead = true;
    close_connection(f, CLOSE_FLUSH_WRITE);
  }
  if (held[0].len) {
    envoy_buffer bytes = {held[0].data, held[0].len};
    envoy_dynamic_module_callback_network_filter_inject_read_data(f->envoy, bytes, false);
  }
  if (held[1].len) {
    envoy_buffer bytes = {held[1].data, held[1].len};
    envoy_dynamic_module_callback_network_filter_inject_write_data(f->envoy, bytes, false);
  }
  free(held[0].data);
  free(held[1].data);
}

/* -- hooks ------------------------------------------------------------------------- */

HOOK(const char *, program_init)(void) {
  /* This callback is new in the first release that we fit; later releases than the
   * last one refuse our ABI version themselves. */
  if (!envoy_dynamic_module_callback_network_filter_start_downstream_secure_transport) {
    fprintf(stderr, "proxylib: this library fits Envoy %s; the running Envoy lacks parts of that "
                    "release's dynamic-module ABI\n",
            PROXYLIB_ENVOY_RELEASES);
    return NULL;
  }
  return ENVOY_ABI_VERSION;
}

HOOK(void *, network_filter_config_new)
(envoy_filter_config envoy, envoy_buffer name, envoy_buffer config) {
  (void)envoy;
  return envoy_new_config("filter_config", name, config);
}

HOOK(void, network_filter_config_destroy)(const void *config) { envoy_destroy_config(config); }

HOOK(void *, network_filter_new)(const void *config, envoy_filter envoy) {
  struct filter *f = calloc(1, sizeof *f);
  if (!f) return NULL;
  f->envoy = envoy;
  f->config = (PyObject *)config;
  return f;
}

static PyObject *wake(PyObject *capsule, PyObject *none) {
  (void)none;
  struct ticket *ticket = PyCapsule_GetPointer(capsule, NULL);
  if (!ticket) return NULL;
  ticket_tell(ticket, SCHEDULED_ANSWER);
  Py_RETURN_NONE;
}

static void free_ticket(PyObject *capsule) { ticket_free(PyCapsule_GetPointer(capsule, NULL)); }

/* Sets `wake` of the connection, for the threads that answer what its parser asks. */
static bool give_waker(struct filter *f, PyObject *connection) {
  static PyMethodDef method = {"wake", wake, METH_NOARGS, "There is an answer."};
  struct ticket *ticket = ticket_new(&f->live);
  PyObject *capsule = ticket ? PyCapsule_New(ticket, NULL, free_ticket) : NULL;
  if (!capsule) return ticket ? (ticket_free(ticket), false) : (PyErr_NoMemory(), false);
  PyObject *waker = PyCFunction_New(&method, capsule);
  bool ok = waker && PyObject_SetAttrString(connection, "wake", waker) == 0;
  Py_XDECREF(waker);
  Py_DECREF(capsule);
  if (!ok) connection_close(&f->connection);
  return ok;
}

HOOK(int, network_filter_new_connection)(envoy_filter envoy, void *filter) {
  struct filter *f = filter;
  envoy_buffer remote = {"", 0}, local = {"", 0};
  uint32_t remote_port = 0, local_port = 0;
  envoy_dynamic_module_callback_network_filter_get_remote_address(f->envoy, &remote, &remote_port);
  envoy_dynamic_module_callback_network_filter_get_local_address(f->envoy, &local, &local_port);
  python_enter();
  PyObject *connection = PyObject_CallMethod(
      f->config, "open", "s#Is#I", remote.ptr ? remote.ptr : "", (Py_ssize_t)remote.length,
      remote_port, local.ptr ? local.ptr : "", (Py_ssize_t)local.length, local_port);
  if (connection && connection != Py_None) {
    f->open = connection_init(&f->connection, connection) && give_waker(f, connection);
  }
  if (PyErr_Occurred()) envoy_log_exception("opening a connection");
  Py_XDECREF(connection);
  if (f->open && !live_add(&f->live, envoy)) {
    connection_close(&f->connection);
    f->open = false;
  }
  if (f->open) {
    f->connection.waits = true;
    connection_watch(&f->connection, parser_lost, f);
  }
  python_leave();
  if (f->open) return STATUS_CONTINUE;
  close_connection(f, CLOSE_NO_FLUSH);
  return STATUS_STOP_ITERATION;
}

HOOK(int, network_filter_read)(envoy_filter envoy, void *filter, size_t length, bool end_stream) {
  (void)envoy;
  return on_io(filter, false, length, end_stream);
}

HOOK(int, network_filter_write)(envoy_filter envoy, void *filter, size_t length, bool end_stream) {
  (void)envoy;
  return on_io(filter, true, length, end_stream);
}

HOOK(void, network_filter_event)(envoy_filter envoy, void *filter, int event) {
  (void)envoy;
  struct filter *f = filter;
  if (event == EVENT_REMOTE_CLOSE || event == EVENT_LOCAL_CLOSE) f->dead = true;
}

HOOK(void, network_filter_scheduled)(envoy_filter envoy, void *filter, uint64_t event) {
  (void)envoy;
  struct filter *f = filter;
  if (event == SCHEDULED_CLOSE) close_connection(f, CLOSE_FLUSH_WRITE);
  if (event == SCHEDULED_DEATH) on_death(f);
  if (event == SCHEDULED_ANSWER) {
    resume(f, false);
    resume(f, true);
  }
  if (event != SCHEDULED_REFRESH || f->dead) return;
  python_enter();
  f->dead = !connection_refresh(&f->connection);
  python_leave();
  if (f->dead) close_connection(f, CLOSE_FLUSH_WRITE);
}

HOOK(void, network_filter_destroy)(void *filter) {
  struct filter *f = filter;
  if (f->open) {
    python_enter();
    connection_close(&f->connection);
    python_leave();
  }
  live_remove(&f->live);
  free(f->directions[0].held);
  free(f->directions[1].held);
  free(f);
}

HOOK(void, network_filter_above_write_buffer_high_watermark)(envoy_filter envoy, void *filter) {
  struct filter *f = filter;
  (void)envoy;
  f->full = true;
  hold_back_client(f);
}

HOOK(void, network_filter_below_write_buffer_low_watermark)(envoy_filter envoy, void *filter) {
  struct filter *f = filter;
  (void)envoy;
  f->full = f->answers = false;
  hold_back_client(f);
}

/* Envoy asks for these; there is nothing for us in them. */
HOOK(void, network_filter_http_callout_done)
(envoy_filter envoy, void *filter, uint64_t id, int result, void *headers, size_t n_headers,
 envoy_buffer *body, size_t n_body) {
  (void)envoy, (void)filter, (void)id, (void)result, (void)headers, (void)n_headers, (void)body,
      (void)n_body;
}

HOOK(void, network_filter_config_scheduled)(const void *config, uint64_t event) {
  (void)config, (void)event;
}
