/* Envoy's buffers as input and output of a direction; see envoy.c. */
#ifndef PROXYLIB_ENVOY_BUFFER_H
#define PROXYLIB_ENVOY_BUFFER_H

#include "envoy_abi.h"
#include "native.h"

/* What the filter remembers about one direction between two calls. */
struct direction {
  uint64_t passing, dropping; /* bytes still to pass or drop, whatever they are */
  size_t need;                /* bytes wanted before Python is called again */
  bool waiting, ended;        /* for an answer; the stream has ended meanwhile */
  char *held;                 /* withheld input, in front of what comes next */
  size_t held_len, held_cap;
};

/* Envoy's buffer functions: [0] original direction (read), [1] reply (write). */
struct buffer_calls {
  size_t (*count)(envoy_filter);
  bool (*chunks)(envoy_filter, envoy_buffer *);
  bool (*drain)(envoy_filter, size_t);
  bool (*prepend)(envoy_filter, envoy_buffer);
  bool (*append)(envoy_filter, envoy_buffer);
};

extern const struct buffer_calls envoy_buffer_calls[2];

/* The input of one call: what was withheld before, then Envoy's chunks. */
struct input {
  struct slice *slices;
  size_t n, total;
  struct slice few[64];
};

/* Reads Envoy's chunks, without their first `skip` bytes, behind what `d` withholds. */
bool input_read(struct input *in, envoy_filter envoy, bool reply, const struct direction *d,
                size_t skip);
void input_free(struct input *in);

/* Withholds the input from `from` on, and nothing else; false past the limit. */
bool input_hold(struct direction *d, const struct input *in, size_t from);

/* What goes on; one per worker thread, reused. */
extern __thread struct bytes output;

void output_reset(void);
/* Adds the bytes [from, from + len) of the slices. */
bool output_add_slices(const struct slice *in, size_t n_in, size_t from, size_t len);
/* Adds the first `len` bytes of Envoy's buffer. */
bool output_add_front(envoy_filter envoy, bool reply, size_t len);

#endif
