/* Envoy's buffers: reading them in place, withholding a part, putting output together.
 *
 * There is no way to drain Envoy's buffer from its tail, so what is withheld is
 * copied out, and what then goes on is put together anew.
 */
#include "envoy_buffer.h"

#include <stdlib.h>
#include <string.h>

const struct buffer_calls envoy_buffer_calls[2] = {
    {envoy_dynamic_module_callback_network_filter_get_read_buffer_chunks_size,
     envoy_dynamic_module_callback_network_filter_get_read_buffer_chunks,
     envoy_dynamic_module_callback_network_filter_drain_read_buffer,
     envoy_dynamic_module_callback_network_filter_prepend_read_buffer,
     envoy_dynamic_module_callback_network_filter_append_read_buffer},
    {envoy_dynamic_module_callback_network_filter_get_write_buffer_chunks_size,
     envoy_dynamic_module_callback_network_filter_get_write_buffer_chunks,
     envoy_dynamic_module_callback_network_filter_drain_write_buffer,
     envoy_dynamic_module_callback_network_filter_prepend_write_buffer,
     envoy_dynamic_module_callback_network_filter_append_write_buffer},
};

/* -- output ------------------------------------------------------------------ */

__thread struct bytes output;

/* A worker keeps at most this much for the next time. */
#define OUTPUT_KEPT (256 << 10)

static bool output_add(const char *data, size_t len) {
  if (!bytes_reserve(&output, len)) return false;
  if (len) memcpy(output.data + output.len, data, len);
  output.len += len;
  return true;
}

void output_reset(void) {
  output.len = 0;
  if (output.cap > OUTPUT_KEPT) {
    free(output.data);
    output = (struct bytes){0};
  }
}

bool output_add_slices(const struct slice *in, size_t n_in, size_t from, size_t len) {
  for (size_t i = 0; i < n_in && len > 0; i++) {
    if (from >= in[i].len) {
      from -= in[i].len;
      continue;
    }
    size_t n = in[i].len - from < len ? in[i].len - from : len;
    if (!output_add(in[i].data + from, n)) return false;
    len -= n;
    from = 0;
  }
  return true;
}

/* -- one direction ------------------------------------------------------------ */

void input_free(struct input *in) {
  if (in->slices != in->few) free(in->slices);
}

bool input_read(struct input *in, envoy_filter envoy, bool reply, const struct direction *d,
                size_t skip) {
  const struct buffer_calls *calls = &envoy_buffer_calls[reply];
  size_t count = calls->count(envoy);
  in->slices = in->few;
  in->n = in->total = 0;
  if (count + 1 > sizeof in->few / sizeof *in->few &&
      !(in->slices = malloc((count + 1) * sizeof *in->slices))) {
    in->slices = in->few;
    return false;
  }
  if (d->held_len) in->slices[in->n++] = (struct slice){d->held, d->held_len};
  /* Envoy's buffer view and our slice are the same two words. */
  _Static_assert(sizeof(envoy_buffer) == sizeof(struct slice), "layouts differ");
  struct slice *chunks = in->slices + in->n;
  if (count && !calls->chunks(envoy, (envoy_buffer *)chunks)) count = 0;
  for (size_t i = 0; i < count; i++) {
    size_t n = chunks[i].len < skip ? chunks[i].len : skip;
    skip -= n;
    in->slices[in->n] = (struct slice){chunks[i].data + n, chunks[i].len - n};
    if (in->slices[in->n].len) in->n++;
  }
  for (size_t i = 0; i < in->n; i++) in->total += in->slices[i].len;
  return true;
}

bool input_hold(struct direction *d, const struct input *in, size_t from) {
  size_t old = d->held_len, kept = from < old ? old - from : 0, len = in->total - from;
  if ((int64_t)len > limits.max_held) return false;
  if (len > d->held_cap || (len == 0 && d->held_cap > OUTPUT_KEPT)) {
    size_t cap = len ? 4096 : 0;
    while (cap < len) cap *= 2;
    char *grown = cap ? malloc(cap) : NULL;
    if (cap && !grown) return false;
    if (kept) memcpy(grown, d->held + from, kept);
    free(d->held);
    d->held = grown;
    d->held_cap = cap;
  } else if (kept && from) {
    memmove(d->held, d->held + from, kept);
  }
  d->held_len = kept;
  size_t skip = from > old ? from - old : 0;
  for (size_t i = old ? 1 : 0; i < in->n; i++) {
    size_t n = in->slices[i].len < skip ? in->slices[i].len : skip;
    memcpy(d->held + d->held_len, in->slices[i].data + n, in->slices[i].len - n);
    d->held_len += in->slices[i].len - n;
    skip -= n;
  }
  return true;
}

bool output_add_front(envoy_filter envoy, bool reply, size_t len) {
  const struct buffer_calls *calls = &envoy_buffer_calls[reply];
  size_t count = len ? calls->count(envoy) : 0;
  struct slice *chunks = malloc((count + 1) * sizeof *chunks);
  bool ok = chunks && (!count || (calls->chunks(envoy, (envoy_buffer *)chunks) &&
                                  output_add_slices(chunks, count, 0, len)));
  free(chunks);
  return ok;
}
