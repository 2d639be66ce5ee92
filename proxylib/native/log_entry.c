/* Encoding of one cilium.LogEntry, by hand: a few hundred nanoseconds decide here.
 *
 * Values off the wire become text without loss: what is not UTF-8 is escaped.
 */
#include "log.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

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

/* The end of text that may be cut at `at`: not inside a character. */
static const char *text_end(const char *at) {
  while ((*at & 0xc0) == 0x80) at--;
  return at;
}

/* Ends a value that has no more room: in dots, and nothing can follow. */
static void cut(struct encoder *e) {
  if (e->end - e->at < 3) e->at = (char *)text_end(e->end - 3);
  memcpy(e->at, "...", 3);
  e->end = e->at += 3;
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
      cut(e);
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
    Py_ssize_t i = 0;
    for (; i < n && e->at < e->end; i++) {
      if (PyTuple_Check(items[i]) || PyList_Check(items[i])) {
        PyErr_SetString(PyExc_TypeError, "a property holds bytes, not nested sequences");
        return false;
      }
      if (i) put_text(e, ", ", 2);
      if (!put_value(e, items[i])) return false;
    }
    if (i < n) cut(e);
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
  if (n > 255) n = text_end(text + 255) - text;
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

/* Timestamp 1, entry_type 3, generic_l7 102. */
static size_t put_entry(char *to, size_t room, long type, const char *l7, size_t l7_len) {
  struct timespec now;
  struct encoder e = {to, to + room};
  clock_gettime(CLOCK_REALTIME, &now);
  put_raw(&e, "\x08", 1);
  put_varint(&e, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
  put_raw(&e, "\x18", 1);
  put_varint(&e, (uint64_t)type);
  put_raw(&e, "\xb2\x06", 2);
  put_varint(&e, l7_len);
  return put_raw(&e, l7, l7_len) ? (size_t)(e.at - to) : 0;
}

size_t log_encode(char *to, size_t room, long type, PyObject *proto, PyObject *fields) {
  char l7[limits.max_log_entry], value[limits.max_log_value + 4];
  struct encoder e = {l7, l7 + sizeof l7};
  if (!put_generic(&e, proto, fields, value)) return 0;
  return put_entry(to, room, type, l7, (size_t)(e.at - l7));
}

size_t log_encode_lost(char *to, size_t room, uint64_t count) {
  enum { DENIED = 2 };
  char number[24], l7[128];
  int n = snprintf(number, sizeof number, "%llu", (unsigned long long)count);
  struct encoder e = {l7, l7 + sizeof l7};
  put_raw(&e, "\x0a\x12proxylib.accesslog", 20);
  put_raw(&e, "\x12\x0e\x0a\x06status\x12\x04lost", 16);
  put_raw(&e, "\x12", 1);
  put_varint(&e, (uint64_t)(9 + n));
  put_raw(&e, "\x0a\x05" "count\x12", 8);
  put_varint(&e, (uint64_t)n);
  put_raw(&e, number, (size_t)n);
  return put_entry(to, room, DENIED, l7, (size_t)(e.at - l7));
}
