/* The access-log client: cilium.LogEntry messages to a Unix SEQPACKET socket.
 *
 * The data path only encodes an entry and appends it to a queue; a thread of ours
 * sends what has gathered, many packets per system call.  A consumer that is gone
 * or slow never holds anybody up: the queue is bounded, and what did not fit is
 * counted and reported in the stream when there is room again.
 *
 * What all entries of a connection have in common is encoded once, in Python, and
 * copied in front of each: protobuf fields may come in any order.
 */
#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Entries of this much time share a wake-up and a system call. */
#define GATHER_NS (2 * 1000 * 1000)
/* Between two attempts to reach a consumer that is not there. */
#define RETRY_MS 200
/* How long closing waits for a slow consumer to take what is queued. */
#define CLOSE_MS 500
#define BATCH 256

struct queue {
  char *data;
  size_t len, cap;
};

struct log {
  struct sockaddr_un address;
  pthread_t thread;
  pthread_mutex_t mutex; /* guards what follows, up to `sent` */
  pthread_cond_t wake;
  struct queue queue;
  uint64_t lost;
  bool idle, stop;
  int fd; /* the sender's alone, as all below */
  struct queue sending;
  int64_t close_deadline;
  struct log *next; /* in the list of open logs */
};

/* Open logs, for a process that exits without closing its modules. */
static pthread_mutex_t logs_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct log *logs;

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

/* -- encoding ------------------------------------------------------------- */

struct encoder {
  char *at, *end;
};

static inline bool put_varint(struct encoder *e, uint64_t value) {
  char bytes[10];
  size_t n = 0;
  do {
    bytes[n++] = (char)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
    value >>= 7;
  } while (value);
  if ((size_t)(e->end - e->at) < n) return false;
  memcpy(e->at, bytes, n);
  e->at += n;
  return true;
}

static inline bool put_raw(struct encoder *e, const char *data, size_t n) {
  if ((size_t)(e->end - e->at) < n) return false;
  memcpy(e->at, data, n);
  e->at += n;
  return true;
}

static inline size_t varint_size(uint64_t value) {
  size_t n = 1;
  while (value >>= 7) n++;
  return n;
}

/* Length of the well-formed UTF-8 sequence at `s`, or 0. */
static size_t utf8_sequence(const unsigned char *s, size_t left) {
  size_t n = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
  if (n == 0 || n > left) return 0;
  for (size_t i = 1; i < n; i++) {
    if ((s[i] & 0xc0) != 0x80) return 0;
  }
  if (n == 3 && ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f))) return 0;
  if (n == 4 && ((s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))) return 0;
  return n;
}

/* Appends bytes as text: what is not UTF-8 becomes \xNN, so nothing is lost. */
static void put_text(struct encoder *e, const char *data, size_t n) {
  static const char hex[] = "0123456789abcdef";
  const unsigned char *s = (const unsigned char *)data;
  size_t ascii = 0;
  while (ascii < n && s[ascii] < 0x80) ascii++;
  if (ascii == n && put_raw(e, data, n)) return;
  for (size_t i = 0; i < n;) {
    size_t step = utf8_sequence(s + i, n - i);
    char escaped[4] = {'\\', 'x', hex[s[i] >> 4], hex[s[i] & 15]};
    if (!(step ? put_raw(e, data + i, step) : put_raw(e, escaped, 4))) {
      put_raw(e, "...", 3);
      return;
    }
    i += step ? step : 1;
  }
}

/* Appends one property; several byte strings are joined by ", ". */
static bool put_value(struct encoder *e, PyObject *value) {
  Py_ssize_t n;
  const char *text;
  char number[24];
  if (PyBytes_Check(value)) {
    put_text(e, PyBytes_AS_STRING(value), (size_t)PyBytes_GET_SIZE(value));
  } else if (PyUnicode_Check(value)) {
    text = PyUnicode_AsUTF8AndSize(value, &n);
    if (!text) {
      /* Lone surrogates: written as Python would. */
      PyErr_Clear();
      PyObject *bytes = PyUnicode_AsEncodedString(value, "utf-8", "backslashreplace");
      if (!bytes) return false;
      put_text(e, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
      Py_DECREF(bytes);
      return true;
    }
    put_text(e, text, (size_t)n);
  } else if (PyLong_Check(value)) {
    int overflow;
    long long integer = PyLong_AsLongLongAndOverflow(value, &overflow);
    snprintf(number, sizeof number, "%lld", overflow ? (overflow < 0 ? INT64_MIN : INT64_MAX) : integer);
    put_text(e, number, strlen(number));
  } else if (PyTuple_Check(value) || PyList_Check(value)) {
    PyObject **items = PySequence_Fast_ITEMS(value);
    n = PySequence_Fast_GET_SIZE(value);
    for (Py_ssize_t i = 0; i < n && e->at < e->end; i++) {
      if (PyTuple_Check(items[i]) || PyList_Check(items[i])) {
        PyErr_SetString(PyExc_TypeError, "a property holds bytes, not nested sequences");
        return false;
      }
      if (i) put_text(e, ", ", 2);
      if (!put_value(e, items[i])) return false;
    }
  } else {
    PyErr_Format(PyExc_TypeError, "a property is str, bytes, int or a sequence of bytes, not %s",
                 Py_TYPE(value)->tp_name);
    return false;
  }
  return true;
}

/* L7LogEntry {proto 1, fields 2 map<string, string>}; fields that do not fit are left out. */
static bool put_generic(struct encoder *e, PyObject *proto, PyObject *fields, char *scratch) {
  Py_ssize_t n, position = 0;
  PyObject *key, *value;
  const char *text = PyUnicode_AsUTF8AndSize(proto, &n);
  if (!text) return false;
  if (n > 255) n = 255;
  put_raw(e, "\x0a", 1);
  put_varint(e, (uint64_t)n);
  put_raw(e, text, (size_t)n);
  while (PyDict_Next(fields, &position, &key, &value)) {
    struct encoder v = {scratch, scratch + limits.max_log_value};
    text = PyUnicode_Check(key) ? PyUnicode_AsUTF8AndSize(key, &n) : NULL;
    if (!text) {
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "property names are str");
      return false;
    }
    if (!put_value(&v, value)) return false;
    size_t length = (size_t)(v.at - scratch);
    size_t entry = 1 + varint_size((uint64_t)n) + (size_t)n + 1 + varint_size(length) + length;
    if ((size_t)(e->end - e->at) < 1 + varint_size(entry) + entry) continue;
    put_raw(e, "\x12", 1);
    put_varint(e, entry);
    put_raw(e, "\x0a", 1);
    put_varint(e, (uint64_t)n);
    put_raw(e, text, (size_t)n);
    put_raw(e, "\x12", 1);
    put_varint(e, length);
    put_raw(e, scratch, length);
  }
  return true;
}

static uint64_t now_ns(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Timestamp 1, entry_type 3, generic_l7 102: what differs from entry to entry. */
static size_t put_entry(char *to, size_t room, long type, const char *l7, size_t l7_len) {
  struct encoder e = {to, to + room};
  put_raw(&e, "\x08", 1);
  put_varint(&e, now_ns(CLOCK_REALTIME));
  put_raw(&e, "\x18", 1);
  put_varint(&e, (uint64_t)type);
  put_raw(&e, "\xb2\x06", 2);
  put_varint(&e, l7_len);
  return put_raw(&e, l7, l7_len) ? (size_t)(e.at - to) : 0;
}

/* -- the queue ------------------------------------------------------------ */

static bool queue_reserve(struct queue *q, size_t extra) {
  if (q->len + extra <= q->cap) return true;
  size_t cap = q->cap ? q->cap : 64 << 10;
  while (cap < q->len + extra) cap *= 2;
  char *data = realloc(q->data, cap);
  if (!data) return false;
  q->data = data;
  q->cap = cap;
  return true;
}

/* Queues one entry, in front of which goes its length; counts it if it does not fit. */
static void log_append(struct log *log, const char *prefix, size_t prefix_len, const char *entry,
                       size_t entry_len) {
  uint32_t length = (uint32_t)(prefix_len + entry_len);
  pthread_mutex_lock(&log->mutex);
  struct queue *q = &log->queue;
  if (q->len + sizeof length + length > (size_t)limits.log_queue ||
      !queue_reserve(q, sizeof length + length)) {
    log->lost++;
  } else {
    memcpy(q->data + q->len, &length, sizeof length);
    memcpy(q->data + q->len + sizeof length, prefix, prefix_len);
    memcpy(q->data + q->len + sizeof length + prefix_len, entry, entry_len);
    q->len += sizeof length + length;
  }
  /* The sender sleeps on the condition only when nothing came for a while. */
  if (log->idle) {
    log->idle = false;
    pthread_cond_signal(&log->wake);
  }
  pthread_mutex_unlock(&log->mutex);
}

/* -- the sender ------------------------------------------------------------ */

static bool stopping(struct log *log) {
  pthread_mutex_lock(&log->mutex);
  bool stop = log->stop;
  pthread_mutex_unlock(&log->mutex);
  if (stop && !log->close_deadline) {
    log->close_deadline = (int64_t)now_ns(CLOCK_MONOTONIC) + CLOSE_MS * 1000000LL;
  }
  return stop && (int64_t)now_ns(CLOCK_MONOTONIC) > log->close_deadline;
}

static void disconnect(struct log *log) {
  if (log->fd >= 0) close(log->fd);
  log->fd = -1;
}

static bool connected(struct log *log) {
  if (log->fd >= 0) return true;
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return false;
  if (connect(fd, (struct sockaddr *)&log->address, sizeof log->address) < 0) {
    close(fd);
    return false;
  }
  log->fd = fd;
  return true;
}

/* Sends `count` packets; false when the sender must stop. Reconnects as needed. */
static bool send_packets(struct log *log, struct mmsghdr *packets, unsigned count) {
  unsigned sent = 0;
  while (sent < count) {
    if (stopping(log)) return false;
    if (!connected(log)) {
      pthread_mutex_lock(&log->mutex);
      bool stop = log->stop;
      pthread_mutex_unlock(&log->mutex);
      if (stop) return false;
      poll(NULL, 0, RETRY_MS);
      continue;
    }
    int n = sendmmsg(log->fd, packets + sent, count - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      sent += (unsigned)n;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) {
      struct pollfd slow = {log->fd, POLLOUT, 0};
      poll(&slow, 1, RETRY_MS);
    } else if (errno == EMSGSIZE) {
      sent++;
    } else if (errno != EINTR) {
      disconnect(log);
    }
  }
  return true;
}

static bool send_queue(struct log *log) {
  struct mmsghdr packets[BATCH];
  struct iovec parts[BATCH];
  for (size_t at = 0; at < log->sending.len;) {
    unsigned count = 0;
    memset(packets, 0, sizeof packets);
    while (count < BATCH && at < log->sending.len) {
      uint32_t length;
      memcpy(&length, log->sending.data + at, sizeof length);
      parts[count] = (struct iovec){log->sending.data + at + sizeof length, length};
      packets[count].msg_hdr.msg_iov = &parts[count];
      packets[count++].msg_hdr.msg_iovlen = 1;
      at += sizeof length + length;
    }
    if (!send_packets(log, packets, count)) return false;
  }
  log->sending.len = 0;
  return true;
}

/* One entry that says how many there should have been. */
static bool report_lost(struct log *log, uint64_t lost) {
  char count[24], fields[128], entry[192];
  int n = snprintf(count, sizeof count, "%llu", (unsigned long long)lost);
  struct encoder e = {fields, fields + sizeof fields};
  put_raw(&e, "\x0a\x12proxylib.accesslog", 20);
  put_raw(&e, "\x12\x0e\x0a\x06status\x12\x04lost", 16);
  put_raw(&e, "\x12", 1);
  put_varint(&e, (uint64_t)(9 + n));
  put_raw(&e, "\x0a\x05" "count\x12", 8);
  put_varint(&e, (uint64_t)n);
  put_raw(&e, count, (size_t)n);
  struct iovec part = {entry, put_entry(entry, sizeof entry, 2, fields, (size_t)(e.at - fields))};
  struct mmsghdr packet = {.msg_hdr = {.msg_iov = &part, .msg_iovlen = 1}};
  return send_packets(log, &packet, 1);
}

static void *sender(void *argument) {
  struct log *log = argument;
  bool quiet = false;
  for (;;) {
    uint64_t lost;
    pthread_mutex_lock(&log->mutex);
    while (log->queue.len == 0 && log->lost == 0 && !log->stop) {
      if (!quiet) break;
      log->idle = true;
      pthread_cond_wait(&log->wake, &log->mutex);
    }
    if (log->stop && log->queue.len == 0 && log->lost == 0) {
      pthread_mutex_unlock(&log->mutex);
      break;
    }
    struct queue full = log->queue;
    log->queue = log->sending;
    log->sending = full;
    lost = log->lost;
    log->lost = 0;
    bool stop = log->stop;
    pthread_mutex_unlock(&log->mutex);

    quiet = log->sending.len == 0 && lost == 0;
    if (!send_queue(log) || (lost && !report_lost(log, lost))) break;
    if (!stop) {
      struct timespec gather = {0, GATHER_NS};
      nanosleep(&gather, NULL);
    }
  }
  disconnect(log);
  return NULL;
}

/* Sends what is queued, for a bounded time, and ends the sender. */
static void log_stop(struct log *log) {
  pthread_mutex_lock(&log->mutex);
  log->stop = true;
  pthread_cond_signal(&log->wake);
  pthread_mutex_unlock(&log->mutex);
  pthread_join(log->thread, NULL);
}

__attribute__((destructor)) static void stop_all(void) {
  pthread_mutex_lock(&logs_mutex);
  for (struct log *log = logs; log; log = log->next) log_stop(log);
  logs = NULL;
  pthread_mutex_unlock(&logs_mutex);
}

/* False if `log` was in the list no more. */
static bool unlist(const struct log *log) {
  pthread_mutex_lock(&logs_mutex);
  struct log **at = &logs;
  while (*at && *at != log) at = &(*at)->next;
  bool found = *at != NULL;
  if (found) *at = log->next;
  pthread_mutex_unlock(&logs_mutex);
  return found;
}

/* -- Python types ------------------------------------------------------------ */

static PyObject *stream_call(PyObject *callable, PyObject *const *args, size_t flags,
                             PyObject *keywords) {
  LogStream *self = (LogStream *)callable;
  Py_ssize_t n = PyVectorcall_NARGS(flags);
  if (n < 2 || n > 3 || (keywords && PyTuple_GET_SIZE(keywords))) {
    PyErr_SetString(PyExc_TypeError, "log(entry_type, fields, proto='')");
    return NULL;
  }
  long type = PyLong_AsLong(args[0]);
  if (type == -1 && PyErr_Occurred()) return NULL;
  if (!PyDict_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "log: fields must be a dict");
    return NULL;
  }
  PyObject *proto = n == 3 && PyObject_IsTrue(args[2]) ? args[2] : self->proto;
  if (!PyUnicode_Check(proto)) {
    PyErr_SetString(PyExc_TypeError, "log: proto must be a str");
    return NULL;
  }
  struct log *log = self->owner->log;
  if (!log) Py_RETURN_NONE;

  char entry[limits.max_log_entry + 64], l7[limits.max_log_entry], value[limits.max_log_value + 4];
  struct encoder e = {l7, l7 + sizeof l7};
  if (!put_generic(&e, proto, args[1], value)) return NULL;
  size_t length = put_entry(entry, sizeof entry, type, l7, (size_t)(e.at - l7));
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
    {Py_tp_doc, "log(entry_type, fields, proto='', /): queues one access-log entry."},
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
  self->log = NULL;
  if (log && unlist(log)) {
    Py_BEGIN_ALLOW_THREADS;
    log_stop(log);
    Py_END_ALLOW_THREADS;
    free(log->queue.data);
    free(log->sending.data);
    pthread_mutex_destroy(&log->mutex);
    pthread_cond_destroy(&log->wake);
    free(log);
  }
  Py_RETURN_NONE;
}

static PyObject *accesslog_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  const char *path;
  if (!PyArg_ParseTuple(args, "s", &path)) return NULL;
  AccessLog *self = (AccessLog *)type->tp_alloc(type, 0);
  struct log *log = self ? calloc(1, sizeof *log) : NULL;
  if (!log) {
    Py_XDECREF(self);
    return PyErr_NoMemory();
  }
  log->fd = -1;
  log->address.sun_family = AF_UNIX;
  if (strlen(path) >= sizeof log->address.sun_path) {
    PyErr_Format(PyExc_ValueError, "%s: longer than %zu bytes, the limit for a socket's path", path,
                 sizeof log->address.sun_path - 1);
  } else {
    strcpy(log->address.sun_path, path);
    pthread_mutex_init(&log->mutex, NULL);
    pthread_cond_init(&log->wake, NULL);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    errno = pthread_create(&log->thread, NULL, sender, log);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (errno == 0) {
      pthread_mutex_lock(&logs_mutex);
      log->next = logs;
      logs = log;
      pthread_mutex_unlock(&logs_mutex);
      self->log = log;
      return (PyObject *)self;
    }
    PyErr_SetFromErrno(PyExc_OSError);
  }
  free(log);
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
