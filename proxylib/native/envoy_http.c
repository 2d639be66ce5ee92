/* Face 2 again: Envoy's dynamic-module HTTP filter.
 *
 * One call into Python judges a request, with all its headers and no body; one more
 * logs the response. Whatever goes wrong on the way, the request does not pass.
 *
 * All hooks of one stream run on the worker thread of its connection. Envoy's callbacks
 * are made outside Python, since they may call us back (a response of ours).
 */
#include "native.h"

#include "envoy_config.h"
#include "envoy_http_abi.h"

#include <stdlib.h>
#include <string.h>

struct stream {
  envoy_filter envoy;
  PyObject *config;   /* proxylib.http_filter.HttpFilterConfig, borrowed */
  PyObject *exchange; /* what to log of the response; NULL: nothing */
  bool answered;      /* by us */
  bool grpc;          /* the response is one, so its status comes at its end */
  long status, grpc_status;
};

#define VIEW(text) ((envoy_buffer){text, sizeof text - 1})

enum { NO_GRPC_STATUS = -1 };

/* The first header of a name; null if there is none. */
static envoy_buffer header(struct stream *s, int map, envoy_buffer name) {
  envoy_buffer value = {NULL, 0};
  size_t count;
  if (!envoy_dynamic_module_callback_http_get_header(s->envoy, map, name, &value, 0, &count)) {
    value = (envoy_buffer){NULL, 0};
  }
  return value;
}

/* -- the request ------------------------------------------------------------------------ */

/* Envoy's header map as a tuple of pairs of bytes. `headers` was read without the GIL. */
static PyObject *pairs(const envoy_header *headers, size_t n) {
  PyObject *all = PyTuple_New((Py_ssize_t)n);
  for (size_t i = 0; all && i < n; i++) {
    PyObject *pair = Py_BuildValue("(y#y#)", headers[i].key ? headers[i].key : "",
                                   (Py_ssize_t)headers[i].key_length,
                                   headers[i].value ? headers[i].value : "",
                                   (Py_ssize_t)headers[i].value_length);
    if (!pair) {
      Py_CLEAR(all);
      break;
    }
    PyTuple_SET_ITEM(all, (Py_ssize_t)i, pair);
  }
  return all;
}

/* What Python says: (exchange, status, remove, add); status 0 lets the request pass. */
struct verdict {
  PyObject *answer, *remove, *add, *body;
  int status;
};

static struct verdict ask(struct stream *s, const envoy_header *headers, size_t n_headers) {
  struct verdict v = {.status = 403};
  envoy_buffer remote = {"", 0}, local = {"", 0}, protocol = {"", 0};
  PyObject *exchange;
  envoy_dynamic_module_callback_http_get_downstream_direct_remote_address(s->envoy, &remote);
  envoy_dynamic_module_callback_http_filter_get_attribute_string(
      s->envoy, ATTRIBUTE_DESTINATION_ADDRESS, &local);
  envoy_dynamic_module_callback_http_filter_get_attribute_string(s->envoy, ATTRIBUTE_PROTOCOL,
                                                                 &protocol);
  python_enter();
  PyObject *map = pairs(headers, n_headers);
  if (map) {
    v.answer = PyObject_CallMethod(s->config, "request", "(Os#s#y#)", map, remote.ptr,
                                   (Py_ssize_t)remote.length, local.ptr,
                                   (Py_ssize_t)local.length, protocol.ptr,
                                   (Py_ssize_t)protocol.length);
    Py_DECREF(map);
  }
  int status;
  if (v.answer && PyArg_ParseTuple(v.answer, "OiO!O!O!", &exchange, &status, &PyTuple_Type,
                                   &v.remove, &PyTuple_Type, &v.add, &PyBytes_Type, &v.body)) {
    v.status = status;
    if (exchange != Py_None) s->exchange = Py_NewRef(exchange);
  } else {
    envoy_log_exception("judging a request");
    v.remove = v.add = v.body = NULL;
  }
  python_leave();
  return v;
}

static envoy_buffer view(PyObject *bytes) {
  return (envoy_buffer){PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes)};
}

/* Carries out the edits; false if any of them cannot be. The tuples are ours and do not
 * change, so they are read without the GIL. */
static bool edit(struct stream *s, const struct verdict *v) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(v->remove); i++) {
    PyObject *name = PyTuple_GET_ITEM(v->remove, i);
    if (!PyBytes_Check(name)) return false;
    if (!envoy_dynamic_module_callback_http_set_header(s->envoy, REQUEST_HEADERS, view(name),
                                                       (envoy_buffer){NULL, 0})) {
      return false;
    }
  }
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(v->add); i++) {
    PyObject *pair = PyTuple_GET_ITEM(v->add, i);
    if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) return false;
    PyObject *name = PyTuple_GET_ITEM(pair, 0), *value = PyTuple_GET_ITEM(pair, 1);
    if (!PyBytes_Check(name) || !PyBytes_Check(value)) return false;
    if (!envoy_dynamic_module_callback_http_add_header(s->envoy, REQUEST_HEADERS, view(name),
                                                       view(value))) {
      return false;
    }
  }
  return true;
}

/* Whether a content type is gRPC's: application/grpc, alone or with a suffix or parameters. */
static bool is_grpc(envoy_buffer type) {
  static const char grpc[] = "application/grpc";
  size_t n = sizeof grpc - 1;
  if (!type.ptr || type.length < n || memcmp(type.ptr, grpc, n)) return false;
  return type.length == n || strchr("+; ", type.ptr[n]);
}

#define HEADER(name, text) {name, sizeof name - 1, text, sizeof text - 1}

/* An answer that a gRPC client understands: trailers only. Envoy's own would say status OK. */
static void answer_grpc(struct stream *s, int status) {
  envoy_header denied[] = {HEADER(":status", "200"), HEADER("content-type", "application/grpc"),
                           HEADER("grpc-status", "7"), HEADER("grpc-message", "Access denied")};
  envoy_header bad[] = {HEADER(":status", "200"), HEADER("content-type", "application/grpc"),
                        HEADER("grpc-status", "3"), HEADER("grpc-message", "Bad request")};
  envoy_dynamic_module_callback_http_send_response_headers(s->envoy, status == 403 ? denied : bad,
                                                           sizeof bad / sizeof *bad, true);
}

static void answer(struct stream *s, int status, envoy_buffer body) {
  s->answered = true;
  if (is_grpc(header(s, REQUEST_HEADERS, VIEW("content-type")))) {
    answer_grpc(s, status);
    return;
  }
  envoy_dynamic_module_callback_http_send_response(s->envoy, (uint32_t)status, NULL, 0, body,
                                                   VIEW("proxylib"));
}

HOOK(int, http_filter_request_headers)(envoy_filter envoy, void *filter, bool end) {
  (void)envoy, (void)end;
  struct stream *s = filter;
  size_t n = envoy_dynamic_module_callback_http_get_headers_size(s->envoy, REQUEST_HEADERS);
  envoy_header *headers = calloc(n ? n : 1, sizeof *headers);
  static const char denied[] = "Access denied\r\n";
  if (!headers ||
      !envoy_dynamic_module_callback_http_get_headers(s->envoy, REQUEST_HEADERS, headers)) {
    free(headers);
    answer(s, 403, VIEW(denied));
    return HEADERS_STOP_ITERATION;
  }
  struct verdict v = ask(s, headers, n);
  free(headers);
  bool passes = !v.status && edit(s, &v);
  if (!passes) answer(s, v.status ? v.status : 403, v.body ? view(v.body) : VIEW(denied));
  if (v.answer) {
    python_enter();
    Py_DECREF(v.answer);
    python_leave();
  }
  return passes ? HEADERS_CONTINUE : HEADERS_STOP_ITERATION;
}

/* -- the response ----------------------------------------------------------------------- */

/* A header's value as a number; `none` if it is not one of up to three digits. */
static long number(envoy_buffer text, long none) {
  if (!text.ptr || text.length < 1 || text.length > 3) return none;
  long value = 0;
  for (size_t i = 0; i < text.length; i++) {
    if (text.ptr[i] < '0' || text.ptr[i] > '9') return none;
    value = 10 * value + (text.ptr[i] - '0');
  }
  return value;
}

/* Logs the response, once. */
static void complete(struct stream *s) {
  if (!s->exchange) return;
  python_enter();
  if (!s->answered) {
    PyObject *result =
        PyObject_CallMethod(s->exchange, "complete", "ll", s->status, s->grpc_status);
    if (!result) envoy_log_exception("logging a response");
    Py_XDECREF(result);
  }
  Py_CLEAR(s->exchange);
  python_leave();
}

HOOK(int, http_filter_response_headers)(envoy_filter envoy, void *filter, bool end) {
  (void)envoy;
  struct stream *s = filter;
  s->status = number(header(s, RESPONSE_HEADERS, VIEW(":status")), 0);
  s->grpc_status = number(header(s, RESPONSE_HEADERS, VIEW("grpc-status")), NO_GRPC_STATUS);
  s->grpc = is_grpc(header(s, RESPONSE_HEADERS, VIEW("content-type")));
  if (end || !s->grpc) complete(s);
  return HEADERS_CONTINUE;
}

HOOK(int, http_filter_response_trailers)(envoy_filter envoy, void *filter) {
  (void)envoy;
  struct stream *s = filter;
  s->grpc_status = number(header(s, RESPONSE_TRAILERS, VIEW("grpc-status")), s->grpc_status);
  complete(s);
  return HEADERS_CONTINUE;
}

HOOK(void, http_filter_stream_complete)(envoy_filter envoy, void *filter) {
  (void)envoy;
  complete(filter);
}

/* -- configuration and life ----------------------------------------------------------------- */

HOOK(void *, http_filter_config_new)
(envoy_filter_config envoy, envoy_buffer name, envoy_buffer config) {
  (void)envoy;
  if (!envoy_dynamic_module_callback_http_get_downstream_direct_remote_address) return NULL;
  return envoy_new_config("http_filter_config", name, config);
}

HOOK(void, http_filter_config_destroy)(const void *config) { envoy_destroy_config(config); }

HOOK(void *, http_filter_new)(const void *config, envoy_filter envoy) {
  struct stream *s = calloc(1, sizeof *s);
  if (!s) return NULL;
  s->envoy = envoy;
  s->config = (PyObject *)config;
  s->grpc_status = NO_GRPC_STATUS;
  return s;
}

HOOK(void, http_filter_destroy)(void *filter) {
  struct stream *s = filter;
  complete(s);
  free(s);
}

/* A route cannot have rules of its own: policies decide. Envoy refuses such a route. */
HOOK(void *, http_filter_per_route_config_new)(envoy_buffer name, envoy_buffer config) {
  (void)name, (void)config;
  return NULL;
}

/* Envoy asks for these; there is nothing for us in them. Their arguments are not read, and
 * 0 is "continue". */
#define PASSES(name) \
  HOOK(int, http_filter_##name)(void) { return 0; }

PASSES(request_body)
PASSES(request_trailers)
PASSES(response_body)
PASSES(local_reply)
PASSES(per_route_config_destroy)
PASSES(scheduled)
PASSES(http_callout_done)
PASSES(http_stream_headers)
PASSES(http_stream_data)
PASSES(http_stream_trailers)
PASSES(http_stream_complete)
PASSES(http_stream_reset)
PASSES(downstream_above_write_buffer_high_watermark)
PASSES(downstream_below_write_buffer_low_watermark)
PASSES(config_scheduled)
PASSES(config_http_callout_done)
PASSES(config_http_stream_headers)
PASSES(config_http_stream_data)
PASSES(config_http_stream_trailers)
PASSES(config_http_stream_complete)
PASSES(config_http_stream_reset)
