/* What both of Envoy's filters need: its log, and their configurations. */
#ifndef PROXYLIB_ENVOY_CONFIG_H
#define PROXYLIB_ENVOY_CONFIG_H

#include "envoy_abi.h"
#include "native.h"

/* Logs the current Python exception in one line, and clears it. */
void envoy_log_exception(const char *what);

/* What `function` of proxylib.embed makes of a filter's configuration; NULL (logged) if it
 * refuses it. Starts Python if need be. */
void *envoy_new_config(const char *function, envoy_buffer name, envoy_buffer config);

/* Closes a configuration and forgets it. */
void envoy_destroy_config(const void *config);

#endif
