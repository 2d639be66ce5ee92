/* The proxylib C ABI, for hosts; docs/c-abi.md shows it in use. */
#ifndef PROXYLIB_H
#define PROXYLIB_H

#include <stddef.h>
#include <stdint.h>

/* Strings and slices as Go passes them. */
typedef struct {
  const char *p;
  ptrdiff_t n;
} GoString;

typedef struct {
  void *data;
  int64_t len, cap;
} GoSlice;

/* One parameter of OpenModule. */
typedef struct {
  GoString key, value;
} GoKeyValue;

enum { PROXYLIB_MORE, PROXYLIB_PASS, PROXYLIB_DROP, PROXYLIB_INJECT, PROXYLIB_ERROR };

typedef struct {
  uint64_t op;
  int64_t n_bytes;
} FilterOp;

enum {
  PROXYLIB_OK,
  PROXYLIB_POLICY_DROP,
  PROXYLIB_PARSER_ERROR,
  PROXYLIB_UNKNOWN_PARSER,
  PROXYLIB_UNKNOWN_CONNECTION,
  PROXYLIB_INVALID_ADDRESS,
  PROXYLIB_INVALID_INSTANCE,
  PROXYLIB_UNKNOWN_ERROR,
};

/* OpenModule: params is a slice of GoKeyValue. Returns the instance, 0 if refused. */
typedef uint64_t open_module_fn(GoSlice params, uint8_t debug);

/* CloseModule. */
typedef void close_module_fn(uint64_t instance);

/* OnNewConnection: policy_name is the address of the endpoint whose policy applies. */
typedef int32_t on_new_connection_fn(uint64_t instance, GoString proto, uint64_t connection,
                                     uint8_t ingress, uint32_t src_id, uint32_t dst_id,
                                     GoString src_addr, GoString dst_addr, GoString policy_name,
                                     GoSlice *orig_buf, GoSlice *reply_buf);

/* OnData: data is a slice of byte slices, ops a slice of FilterOp with room for 16. */
typedef int32_t on_data_fn(uint64_t connection, uint8_t reply, uint8_t end_stream, GoSlice *data,
                           GoSlice *ops);

/* Close. */
typedef void close_fn(uint64_t connection);

#endif
