/* The part of Envoy's dynamic-module ABI that we use, declared from its published
 * contract (source/extensions/dynamic_modules/abi/abi.h of Envoy 1.40).
 *
 * Callbacks are weak: a host that is not Envoy has none of them.
 */
#ifndef PROXYLIB_ENVOY_ABI_H
#define PROXYLIB_ENVOY_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ENVOY_ABI_VERSION "v0.2.0"

/* A view of bytes; whose they are depends on the function. */
typedef struct {
  const char *ptr;
  size_t length;
} envoy_buffer;

typedef void *envoy_filter;
typedef void *envoy_filter_config;
typedef void *envoy_scheduler;

enum { LOG_TRACE, LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };
enum { STATUS_CONTINUE, STATUS_STOP_ITERATION };
enum { CLOSE_FLUSH_WRITE, CLOSE_NO_FLUSH };
enum { EVENT_REMOTE_CLOSE, EVENT_LOCAL_CLOSE };

#define CALLBACK(type, name, ...) \
  extern type envoy_dynamic_module_callback_##name(__VA_ARGS__) __attribute__((weak))
#define FILTER_CALLBACK(type, name, ...) CALLBACK(type, network_filter_##name, __VA_ARGS__)

CALLBACK(void, log, int level, envoy_buffer message);
CALLBACK(bool, log_enabled, int level);

FILTER_CALLBACK(size_t, get_read_buffer_chunks_size, envoy_filter);
FILTER_CALLBACK(bool, get_read_buffer_chunks, envoy_filter, envoy_buffer *);
FILTER_CALLBACK(bool, drain_read_buffer, envoy_filter, size_t);
FILTER_CALLBACK(bool, prepend_read_buffer, envoy_filter, envoy_buffer);
FILTER_CALLBACK(bool, append_read_buffer, envoy_filter, envoy_buffer);
FILTER_CALLBACK(size_t, get_write_buffer_chunks_size, envoy_filter);
FILTER_CALLBACK(bool, get_write_buffer_chunks, envoy_filter, envoy_buffer *);
FILTER_CALLBACK(bool, drain_write_buffer, envoy_filter, size_t);
FILTER_CALLBACK(bool, prepend_write_buffer, envoy_filter, envoy_buffer);
FILTER_CALLBACK(bool, append_write_buffer, envoy_filter, envoy_buffer);
FILTER_CALLBACK(void, inject_read_data, envoy_filter, envoy_buffer, bool end_stream);
FILTER_CALLBACK(void, inject_write_data, envoy_filter, envoy_buffer, bool end_stream);
FILTER_CALLBACK(int, read_disable, envoy_filter, bool disable);
FILTER_CALLBACK(void, close_with_details, envoy_filter, int close_type, envoy_buffer details);
FILTER_CALLBACK(bool, get_remote_address, envoy_filter, envoy_buffer *, uint32_t *port);
FILTER_CALLBACK(bool, get_local_address, envoy_filter, envoy_buffer *, uint32_t *port);
FILTER_CALLBACK(bool, start_downstream_secure_transport, envoy_filter);
FILTER_CALLBACK(envoy_scheduler, scheduler_new, envoy_filter);
FILTER_CALLBACK(void, scheduler_commit, envoy_scheduler, uint64_t event);
FILTER_CALLBACK(void, scheduler_delete, envoy_scheduler);

#define HOOK(type, name) EXPORT type envoy_dynamic_module_on_##name

#endif
