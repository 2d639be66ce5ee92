/* The access-log client's Python face: what a connection's `log` is.
 *
 * The data path only encodes an entry (log_entry.c) and appends it to a queue; a
 * thread of ours sends what has gathered (log_sender.c), many packets per system call.
 *
 * What all entries of a connection have in common is encoded once, in Python, and
 * copied in front of each: protobuf fields may come in any order.
 */
#include "log.h"

#include <structmember.h>

typedef struct {
  PyObject_HEAD
  struct log *log;
} AccessLog;

typedef struct {
  PyObject_HEAD
  vectorcallfunc vectorcall;
  AccessLog *owner;
  PyObject *prefix; /* bytes: the connection's constant fields */
  PyObject *proto;  /* str: the default protocol name */
} LogStream;

struct bytes *log_collected;

/* What a worker gathers for its host in one answer is bounded like the host's queue. */
static void collect(PyObject *prefix, const char *entry, size_t len) {
  uint32_t length = (uint32_t)((size_t)PyBytes_GET_SIZE(prefix) + len);
  struct bytes *to = log_collected;
  if (to->len + length > (size_t)limits.log_queue || !bytes_reserve(to, sizeof length + length)) {
    return;
  }
  memcpy(to->data + to->len, &length, sizeof length);
  memcpy(to->data + to->len + sizeof length, PyBytes_AS_STRING(prefix), length - len);
  memcpy(to->data + to->len + sizeof length + length - len, entry, len);
  to->len += sizeof length + length;
}

void accesslog_append(PyObject *log, const char *entry, size_t len) {
  struct log *queue = log == Py_None ? NULL : ((AccessLog *)log)->log;
  if (queue) log_append(queue, "", 0, entry, len);
}

static PyObject *stream_call(PyObject *callable, PyObject *const *args, size_t flags,
                             PyObject *keywords) {
  LogStream *self = (LogStream *)callable;
  Py_ssize_t n = PyVectorcall_NARGS(flags);
  if (n < 2 || n > 4 || (keywords && PyTuple_GET_SIZE(keywords))) {
    PyErr_SetString(PyExc_TypeError, "log(entry_type, fields, proto='', latency=0)");
    return NULL;
  }
  long type = PyLong_AsLong(args[0]);
  if (type == -1 && PyErr_Occurred()) return NULL;
  if (!PyDict_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "log: fields must be a dict");
    return NULL;
  }
  bool named = n >= 3 && PyObject_IsTrue(args[2]) > 0;
  PyObject *proto = named ? args[2] : self->proto;
  long long latency = n == 4 ? PyLong_AsLongLong(args[3]) : 0;
  if (latency == -1 && PyErr_Occurred()) return NULL;
  if (!PyUnicode_Check(proto)) {
    PyErr_SetString(PyExc_TypeError, "log: proto must be a str");
    return NULL;
  }
  struct log *log = self->owner->log;
  if (!log && !log_collected) Py_RETURN_NONE;

  char entry[LOG_ENTRY_ROOM];
  struct log_fields own = {type, proto, args[1], named, latency};
  size_t length = log_encode(entry, sizeof entry, &own);
  if (!length) return NULL;
  if (log_collected) {
    collect(self->prefix, entry, length);
    Py_RETURN_NONE;
  }
  log_append(log, PyBytes_AS_STRING(self->prefix), (size_t)PyBytes_GET_SIZE(self->prefix), entry,
             length);
  Py_RETURN_NONE;
}

static void stream_dealloc(PyObject *object) {
  LogStream *self = (LogStream *)object;
  PyTypeObject *type = Py_TYPE(object);
  Py_XDECREF(self->owner);
  Py_XDECREF(self->prefix);
  Py_XDECREF(self->proto);
  type->tp_free(object);
  Py_DECREF(type);
}

static PyMemberDef stream_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(LogStream, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, "log(entry_type, fields, proto='', latency=0, /): queues one access-log entry."},
    {Py_tp_dealloc, stream_dealloc},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_members, stream_members},
    {0, NULL},
};

static PyType_Spec stream_spec = {
    "proxylib_native.LogStream", sizeof(LogStream), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    stream_slots};

static PyTypeObject *stream_type;

static PyObject *accesslog_stream(PyObject *object, PyObject *args) {
  PyObject *prefix, *proto;
  if (!PyArg_ParseTuple(args, "SU", &prefix, &proto)) return NULL;
  if (PyBytes_GET_SIZE(prefix) > 4096) {
    PyErr_SetString(PyExc_ValueError, "the prefix is longer than 4096 bytes");
    return NULL;
  }
  LogStream *self = (LogStream *)stream_type->tp_alloc(stream_type, 0);
  if (!self) return NULL;
  self->vectorcall = stream_call;
  self->owner = (AccessLog *)Py_NewRef(object);
  self->prefix = Py_NewRef(prefix);
  self->proto = Py_NewRef(proto);
  return (PyObject *)self;
}

static PyObject *accesslog_close(PyObject *object, PyObject *ignored) {
  AccessLog *self = (AccessLog *)object;
  struct log *log = self->log;
  (void)ignored;
  self->log = NULL;
  if (log) {
    Py_BEGIN_ALLOW_THREADS;
    log_close(log);
    Py_END_ALLOW_THREADS;
  }
  Py_RETURN_NONE;
}

static PyObject *accesslog_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  const char *path;
  (void)keywords;
  if (!PyArg_ParseTuple(args, "s", &path)) return NULL;
  AccessLog *self = (AccessLog *)type->tp_alloc(type, 0);
  if (!self) return NULL;
  if (!log_collected) self->log = log_open(path);
  if (self->log || log_collected) return (PyObject *)self;
  PyErr_SetFromErrnoWithFilename(PyExc_OSError, path);
  Py_DECREF(self);
  return NULL;
}

static void accesslog_dealloc(PyObject *object) {
  PyTypeObject *type = Py_TYPE(object);
  Py_XDECREF(accesslog_close(object, NULL));
  type->tp_free(object);
  Py_DECREF(type);
}

static PyMethodDef accesslog_methods[] = {
    {"stream", accesslog_stream, METH_VARARGS,
     "stream(prefix: bytes, proto: str): the log of one connection; prefix holds the "
     "LogEntry fields that all its entries share."},
    {"close", accesslog_close, METH_NOARGS, "Sends what is queued and ends the sender."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot accesslog_slots[] = {
    {Py_tp_doc, "AccessLog(path): a client of the access-log socket at `path`."},
    {Py_tp_new, accesslog_new},
    {Py_tp_dealloc, accesslog_dealloc},
    {Py_tp_methods, accesslog_methods},
    {0, NULL},
};

static PyType_Spec accesslog_spec = {"proxylib_native.AccessLog", sizeof(AccessLog), 0,
                                     Py_TPFLAGS_DEFAULT, accesslog_slots};

PyObject *accesslog_type(void) {
  if (!stream_type) stream_type = (PyTypeObject *)PyType_FromSpec(&stream_spec);
  return stream_type ? PyType_FromSpec(&accesslog_spec) : NULL;
}
