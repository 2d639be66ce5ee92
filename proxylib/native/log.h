/* The access-log client's parts: encoding (log_entry.c), queue and sender
 * (log_sender.c), Python types (accesslog.c). */
#ifndef PROXYLIB_LOG_H
#define PROXYLIB_LOG_H

#include "native.h"

/* Room for one entry, without what all entries of a connection share. */
#define LOG_ENTRY_ROOM ((size_t)limits.max_log_entry + 64)

/* One entry's own part. */
struct log_fields {
  long type;
  PyObject *proto;    /* str */
  PyObject *fields;   /* dict */
  bool typed;         /* proto "http" and "kafka" have messages of their own */
  long long latency;  /* of a response, nanoseconds; 0: unknown */
};

/* Encodes what differs from entry to entry: timestamp, type, latency, and one of http,
 * kafka and generic_l7. Returns the number of bytes, or 0 with a Python error set. */
size_t log_encode(char *to, size_t room, const struct log_fields *entry);

/* The entry that tells how many were dropped. Needs no Python. */
size_t log_encode_lost(char *to, size_t room, uint64_t count);

struct log;

/* Starts a client of the socket at `path`; NULL with errno set on failure. The
 * consumer need not be there yet. */
struct log *log_open(const char *path);

/* Queues one entry, or counts it as lost. */
void log_append(struct log *log, const char *prefix, size_t prefix_len, const char *entry,
                size_t entry_len);

/* In a parser's own process: where entries are put, each behind its length. */
extern struct bytes *log_collected;

/* Queues an encoded entry with `log`, an AccessLog or None. */
void accesslog_append(PyObject *log, const char *entry, size_t len);

/* Sends what is queued, for a bounded time, and frees the client. */
void log_close(struct log *log);

#endif
