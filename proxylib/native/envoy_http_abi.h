/* The part of Envoy's dynamic-module ABI that an HTTP filter uses; see envoy_abi.h. */
#ifndef PROXYLIB_ENVOY_HTTP_ABI_H
#define PROXYLIB_ENVOY_HTTP_ABI_H

#include "envoy_abi.h"

typedef struct {
  const char *key;
  size_t key_length;
  const char *value;
  size_t value_length;
} envoy_header;

enum header_map { REQUEST_HEADERS, REQUEST_TRAILERS, RESPONSE_HEADERS, RESPONSE_TRAILERS };

/* Attributes, by number (envoy_dynamic_module_type_attribute_id). */
enum { ATTRIBUTE_PROTOCOL = 10, ATTRIBUTE_DESTINATION_ADDRESS = 26 };

enum { HEADERS_CONTINUE, HEADERS_STOP_ITERATION };

#define HTTP_CALLBACK(type, name, ...) CALLBACK(type, http_##name, __VA_ARGS__)

HTTP_CALLBACK(size_t, get_headers_size, envoy_filter, int map);
HTTP_CALLBACK(bool, get_headers, envoy_filter, int map, envoy_header *);
HTTP_CALLBACK(bool, get_header, envoy_filter, int map, envoy_buffer name, envoy_buffer *value,
              size_t index, size_t *count);
HTTP_CALLBACK(bool, add_header, envoy_filter, int map, envoy_buffer name, envoy_buffer value);
/* A null value removes all headers of the name. */
HTTP_CALLBACK(bool, set_header, envoy_filter, int map, envoy_buffer name, envoy_buffer value);
HTTP_CALLBACK(void, send_response, envoy_filter, uint32_t status, envoy_header *headers,
              size_t n_headers, envoy_buffer body, envoy_buffer details);
HTTP_CALLBACK(void, send_response_headers, envoy_filter, envoy_header *headers, size_t n_headers,
              bool end_stream);
HTTP_CALLBACK(bool, filter_get_attribute_string, envoy_filter, int attribute, envoy_buffer *);
/* The address at the other end of the connection, whatever the request says of it:
 * ip:port, or [ip6]:port. */
HTTP_CALLBACK(bool, get_downstream_direct_remote_address, envoy_filter, envoy_buffer *);

#endif
