/* Parsers in a process of their own: what engine.c and envoy.c see of isolate.c. */
#ifndef PROXYLIB_ISOLATE_H
#define PROXYLIB_ISOLATE_H

#include "native.h"

struct remote;

/* Adds Remote, what worker.c has, and SHARED_BYTES to the module. False with a Python error. */
bool isolate_add(PyObject *module);

/* worker.c: adds serve and collect_log to the module. False with a Python error. */
bool worker_add(PyObject *module);

/* The worker process that `object` (a Remote) stands for. */
struct remote *remote_from(PyObject *object);

/* Has the worker's parser judge the bytes [from, from + len) of the input; its ops are
 * in c->ops afterwards, what it injected in c->injected. Waits without the GIL, and
 * for no longer than the connection's budget. */
enum filter_result remote_run(struct connection *c, bool reply, bool end_stream,
                              const struct slice *in, size_t n_in, size_t from, size_t len);

/* Tells the worker that a connection is gone. */
void remote_close(struct connection *c);

/* Has c->watcher called when the worker dies while `c` is open. */
void remote_watch(struct connection *c);

/* Logs, once, that the connection's worker has died. */
void remote_died(struct connection *c);

#endif
