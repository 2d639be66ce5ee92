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

static inline void put_tag(struct encoder *e, unsigned number, unsigned wire_type) {
  put_varint(e, number << 3 | wire_type);
}

static inline size_t bytes_size(size_t n) { return 1 + varint_size(n) + n; }

static bool key_text(PyObject *key, const char **text, Py_ssize_t *n) {
  *text = PyUnicode_Check(key) ? PyUnicode_AsUTF8AndSize(key, n) : NULL;
  if (!*text && !PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "property names are str");
  return *text;
}

/* A field that is a pair {1: key, 2: value}: a map's entry, or a KeyValue. What does not fit
 * is left out. */
static void put_pair(struct encoder *e, unsigned number, struct slice key, struct slice value) {
  size_t entry = bytes_size(key.len) + bytes_size(value.len);
  if ((size_t)(e->end - e->at) < 2 + varint_size(entry) + entry) return;
  put_tag(e, number, 2);
  put_varint(e, entry);
  put_tag(e, 1, 2);
  put_varint(e, key.len);
  put_raw(e, key.data, key.len);
  put_tag(e, 2, 2);
  put_varint(e, value.len);
  put_raw(e, value.data, value.len);
}

/* A value as text, in `scratch`. */
static bool as_text(PyObject *value, char *scratch, struct slice *text) {
  struct encoder e = {scratch, scratch + limits.max_log_value};
  if (!put_value(&e, value)) return false;
  *text = (struct slice){scratch, (size_t)(e.at - scratch)};
  return true;
}

static bool put_property(struct encoder *e, unsigned number, PyObject *key, PyObject *value,
                         char *scratch) {
  Py_ssize_t n;
  struct slice name, text;
  if (!key_text(key, &name.data, &n)) return false;
  name.len = (size_t)n;
  if (!as_text(value, scratch, &text)) return false;
  put_pair(e, number, name, text);
  return true;
}

/* L7LogEntry {proto 1, fields 2 map<string, string>}. */
static bool put_generic(struct encoder *e, PyObject *proto, PyObject *fields, char *scratch) {
  Py_ssize_t n, position = 0;
  PyObject *key, *value;
  const char *text = PyUnicode_AsUTF8AndSize(proto, &n);
  if (!text) return false;
  if (n > 255) n = text_end(text + 255) - text;
  put_tag(e, 1, 2);
  put_varint(e, (uint64_t)n);
  put_raw(e, text, (size_t)n);
  while (PyDict_Next(fields, &position, &key, &value)) {
    if (!put_property(e, 2, key, value, scratch)) return false;
  }
  return true;
}

/* -- HttpLogEntry and KafkaLogEntry ---------------------------------------------------- */

enum kind { TEXT, NUMBER, TEXTS, PAIRS, PROTOCOL };

struct field {
  const char *name;
  unsigned number;
  enum kind kind;
};

static const struct field http_fields[] = {
    {"protocol", 1, PROTOCOL}, {"scheme", 2, TEXT},           {"host", 3, TEXT},
    {"path", 4, TEXT},         {"method", 5, TEXT},           {"headers", 6, PAIRS},
    {"status", 7, NUMBER},     {"missing_headers", 8, PAIRS}, {"rejected_headers", 9, PAIRS},
    {NULL, 0, TEXT},
};

static const struct field kafka_fields[] = {
    {"correlation_id", 1, NUMBER}, {"error_code", 2, NUMBER}, {"api_version", 3, NUMBER},
    {"api_key", 4, NUMBER},        {"topics", 5, TEXTS},      {NULL, 0, TEXT},
};

/* The `fields` of both that have no place of their own. */
enum { OTHER_FIELDS = 1000 };

static void put_text_field(struct encoder *e, unsigned number, struct slice text) {
  if ((size_t)(e->end - e->at) < 1 + bytes_size(text.len)) return;
  put_tag(e, number, 2);
  put_varint(e, text.len);
  put_raw(e, text.data, text.len);
}

static bool put_items(struct encoder *e, const struct field *field, PyObject *items,
                      char *scratch) {
  char name_scratch[limits.max_log_value + 4];
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items); i++) {
    PyObject *item = PySequence_Fast_GET_ITEM(items, i);
    struct slice name, text;
    if (field->kind == TEXTS) {
      if (!as_text(item, scratch, &text)) return false;
      put_text_field(e, field->number, text);
      continue;
    }
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2) {
      PyErr_Format(PyExc_TypeError, "%s holds pairs of name and value", field->name);
      return false;
    }
    if (!as_text(PyTuple_GET_ITEM(item, 0), name_scratch, &name)) return false;
    if (!as_text(PyTuple_GET_ITEM(item, 1), scratch, &text)) return false;
    put_pair(e, field->number, name, text);
  }
  return true;
}

/* cilium.HttpProtocol; a name that it does not have is the newest. */
static uint64_t http_protocol(struct slice name) {
  static const char *const names[] = {"HTTP/1.0", "HTTP/1.1"};
  for (uint64_t i = 0; i < 2; i++) {
    if (name.len == strlen(names[i]) && !memcmp(name.data, names[i], name.len)) return i;
  }
  return 2;
}

static const struct field *find_field(const struct field *fields, PyObject *key) {
  for (; fields->name; fields++) {
    if (PyUnicode_Check(key) && !PyUnicode_CompareWithASCIIString(key, fields->name)) return fields;
  }
  return NULL;
}

static bool put_typed(struct encoder *e, const struct field *fields, PyObject *properties,
                      char *scratch) {
  Py_ssize_t position = 0;
  PyObject *key, *value;
  while (PyDict_Next(properties, &position, &key, &value)) {
    const struct field *field = find_field(fields, key);
    enum kind kind = field ? field->kind : TEXT;
    bool items = kind == TEXTS || kind == PAIRS;
    bool fits = items            ? PyTuple_Check(value) || PyList_Check(value)
                : kind == NUMBER ? PyLong_Check(value)
                                 : true;
    struct slice text;
    if (!field || !fits) {
      if (!put_property(e, OTHER_FIELDS, key, value, scratch)) return false;
    } else if (items) {
      if (!put_items(e, field, value, scratch)) return false;
    } else if (kind == NUMBER) {
      int overflow;
      long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
      if ((size_t)(e->end - e->at) < 11) continue;
      put_tag(e, field->number, 0);
      put_varint(e, (uint64_t)(overflow ? 0 : number));
    } else {
      if (!as_text(value, scratch, &text)) return false;
      if (kind == TEXT) {
        put_text_field(e, field->number, text);
      } else if ((size_t)(e->end - e->at) >= 2) {
        put_tag(e, field->number, 0);
        put_varint(e, http_protocol(text));
      }
    }
  }
  return true;
}

/* -- LogEntry ----------------------------------------------------------------------------- */

enum { TIMESTAMP = 1, ENTRY_TYPE = 3, HTTP = 100, KAFKA = 101, GENERIC_L7 = 102, LATENCY = 1000 };

static size_t put_entry(char *to, size_t room, long type, long long latency, unsigned l7_number,
                        const char *l7, size_t l7_len) {
  struct timespec now;
  struct encoder e = {to, to + room};
  clock_gettime(CLOCK_REALTIME, &now);
  put_tag(&e, TIMESTAMP, 0);
  put_varint(&e, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
  put_tag(&e, ENTRY_TYPE, 0);
  put_varint(&e, (uint64_t)type);
  if (latency > 0) {
    put_tag(&e, LATENCY, 0);
    put_varint(&e, (uint64_t)latency);
  }
  put_tag(&e, l7_number, 2);
  put_varint(&e, l7_len);
  return put_raw(&e, l7, l7_len) ? (size_t)(e.at - to) : 0;
}

size_t log_encode(char *to, size_t room, const struct log_fields *entry) {
  char l7[limits.max_log_entry], value[limits.max_log_value + 4];
  struct encoder e = {l7, l7 + sizeof l7};
  unsigned number = GENERIC_L7;
  if (entry->typed && !PyUnicode_CompareWithASCIIString(entry->proto, "http")) number = HTTP;
  if (entry->typed && !PyUnicode_CompareWithASCIIString(entry->proto, "kafka")) number = KAFKA;
  bool ok = number == HTTP    ? put_typed(&e, http_fields, entry->fields, value)
            : number == KAFKA ? put_typed(&e, kafka_fields, entry->fields, value)
                              : put_generic(&e, entry->proto, entry->fields, value);
  if (!ok) return 0;
  return put_entry(to, room, entry->type, entry->latency, number, l7, (size_t)(e.at - l7));
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
  return put_entry(to, room, DENIED, 0, GENERIC_L7, l7, (size_t)(e.at - l7));
}
