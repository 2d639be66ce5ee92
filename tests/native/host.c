/* A host of the proxylib C ABI, without Python: what the tests of the built library drive.
 *
 * It loads the library as a proxy does (RTLD_NOW, local symbols), keeps one buffer
 * per direction, and carries out the ops as strictly as the ABI's first host did.
 * It also checks what a host relies on and a library could break unnoticed: that
 * op lists and inject buffers stay in their bounds and where they are, and that
 * nothing is kept of what was valid only during a call (it is scribbled over).
 *
 * Commands come as lines on stdin; strings are hexadecimal, "-" is the empty one.
 * Every command answers with zero or more "call" lines (one per OnData) and one
 * line that starts with "=".  chost.py speaks this.
 */
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The ABI. */

struct go_string { const char *p; ptrdiff_t n; };
struct go_slice { void *data; int64_t len, cap; };
struct filter_op { uint64_t op; int64_t n_bytes; };
struct key_value { struct go_string key, value; };

enum { OP_MORE, OP_PASS, OP_DROP, OP_INJECT, OP_ERROR };
enum { RESULT_OK, RESULT_PARSER_ERROR = 2 };

static uint64_t (*open_module)(struct go_slice params, uint8_t debug);
static void (*close_module)(uint64_t instance);
static int32_t (*on_new_connection)(uint64_t instance, struct go_string proto, uint64_t connection,
                                    uint8_t ingress, uint32_t src_id, uint32_t dst_id,
                                    struct go_string src_addr, struct go_string dst_addr,
                                    struct go_string policy_name, struct go_slice *orig_buf,
                                    struct go_slice *reply_buf);
static int32_t (*on_data)(uint64_t connection, uint8_t reply, uint8_t end_stream,
                          struct go_slice *data, struct go_slice *ops);
static void (*close_connection)(uint64_t connection);
static void *library;

/* Memory and text. */

struct bytes { uint8_t *p; size_t n; };

static void die(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  abort();
}

static void *allocate(size_t n) {
  void *p = malloc(n ? n : 1);
  if (!p) die("host: out of memory (%zu bytes)", n);
  return p;
}

static void append(struct bytes *to, const void *p, size_t n) {
  if (!n) return;
  to->p = realloc(to->p, to->n + n);
  if (!to->p) die("host: out of memory");
  memcpy(to->p + to->n, p, n);
  to->n += n;
}

static struct bytes from_hex(const char *hex) {
  struct bytes out = {0};
  size_t length = strcmp(hex, "-") == 0 ? 0 : strlen(hex);
  if (length % 2) die("host: odd hex: %s", hex);
  out.n = length / 2;
  out.p = allocate(out.n);
  for (size_t i = 0; i < out.n; i++) {
    char digits[3] = {hex[2 * i], hex[2 * i + 1], 0}, *end;
    out.p[i] = (unsigned char)strtoul(digits, &end, 16);
    if (*end) die("host: bad hex: %s", hex);
  }
  return out;
}

static void print_hex(FILE *to, const struct bytes *b) {
  if (!b->n) fputc('-', to);
  for (size_t i = 0; i < b->n; i++) fprintf(to, "%02x", b->p[i]);
}

/* What is valid only during a call is scribbled over behind it. */
static void discard(void *p, size_t n) {
  memset(p, 0xdb, n);
  free(p);
}

/* One connection. */

#define INJECT_BYTES 1024
#define MAX_OPS 16
#define CANARY 0x5a

struct chunk { struct chunk *next; struct bytes bytes; };

struct direction {
  struct chunk *input; /* bytes held back, as they arrived */
  int64_t input_len, pass, drop, need;
  uint8_t inject_memory[INJECT_BYTES + 16];
  struct go_slice inject;
  struct bytes out;
};

struct connection {
  uint64_t id;
  bool closed;
  struct direction directions[2];
  struct connection *next;
};

static void direction_reset_inject(struct direction *d) {
  d->inject = (struct go_slice){d->inject_memory, 0, INJECT_BYTES};
}

static struct connection *connection_make(uint64_t id) {
  struct connection *c = allocate(sizeof *c);
  memset(c, 0, sizeof *c);
  c->id = id;
  for (int i = 0; i < 2; i++) {
    memset(c->directions[i].inject_memory, CANARY, sizeof c->directions[i].inject_memory);
    direction_reset_inject(&c->directions[i]);
  }
  return c;
}

static void input_append(struct direction *d, const uint8_t *p, size_t n) {
  if (!n) return;
  struct chunk *chunk = allocate(sizeof *chunk), **end = &d->input;
  *chunk = (struct chunk){0};
  append(&chunk->bytes, p, n);
  while (*end) end = &(*end)->next;
  *end = chunk;
  d->input_len += (int64_t)n;
}

/* Removes n bytes from the front of the input; forwards them too if `pass`. */
static void input_take(struct direction *d, int64_t n, bool pass) {
  d->input_len -= n;
  while (n > 0) {
    struct chunk *chunk = d->input;
    size_t now = (int64_t)chunk->bytes.n < n ? chunk->bytes.n : (size_t)n;
    if (pass) append(&d->out, chunk->bytes.p, now);
    n -= (int64_t)now;
    if (now == chunk->bytes.n) {
      d->input = chunk->next;
      discard(chunk->bytes.p, chunk->bytes.n);
      free(chunk);
    } else {
      memmove(chunk->bytes.p, chunk->bytes.p + now, chunk->bytes.n - now);
      chunk->bytes.n -= now;
    }
  }
}

static void connection_free(struct connection *c) {
  for (int i = 0; i < 2; i++) {
    input_take(&c->directions[i], c->directions[i].input_len, false);
    free(c->directions[i].out.p);
  }
  discard(c, sizeof *c);
}

static void check_inject(const struct direction *d, const struct go_slice *before) {
  if (d->inject.data != before->data || d->inject.cap != before->cap)
    die("host: the library moved an inject buffer");
  if (d->inject.len < before->len || d->inject.len > d->inject.cap)
    die("host: inject buffer of length %" PRId64, d->inject.len);
  for (size_t i = INJECT_BYTES; i < sizeof d->inject_memory; i++)
    if (d->inject_memory[i] != CANARY) die("host: the library wrote past an inject buffer");
}

/* Calls OnData over copies of `chunks` that end with the call, and op slots full of rubbish. */
static int32_t call(struct connection *c, bool reply, bool end, struct chunk *chunks,
                    struct filter_op ops[MAX_OPS + 1], int64_t *n_ops, FILE *trace) {
  size_t count = 0, total = 0;
  for (struct chunk *chunk = chunks; chunk; chunk = chunk->next) count++;
  struct go_slice *slices = allocate(count * sizeof *slices), *slice = slices;
  for (struct chunk *chunk = chunks; chunk; chunk = chunk->next, slice++) {
    *slice = (struct go_slice){allocate(chunk->bytes.n), (int64_t)chunk->bytes.n,
                               (int64_t)chunk->bytes.n};
    memcpy(slice->data, chunk->bytes.p, chunk->bytes.n);
    total += chunk->bytes.n;
  }
  memset(ops, 0xa5, (MAX_OPS + 1) * sizeof *ops);
  struct filter_op guard = ops[MAX_OPS];
  struct go_slice data = {slices, (int64_t)count, (int64_t)count}, list = {ops, 0, MAX_OPS};
  struct go_slice before[2] = {c->directions[0].inject, c->directions[1].inject};

  int32_t result = on_data(c->id, reply, end, &data, &list);

  if (list.data != ops || list.cap != MAX_OPS || list.len < 0 || list.len > MAX_OPS ||
      memcmp(&guard, &ops[MAX_OPS], sizeof guard) != 0)
    die("host: the library broke the op list");
  for (int i = 0; i < 2; i++) check_inject(&c->directions[i], &before[i]);
  *n_ops = list.len;
  if (trace) {
    fprintf(trace, "call %d %d %zu %" PRId32, reply, end, total, result);
    for (int64_t i = 0; i < list.len; i++)
      fprintf(trace, " %" PRIu64 ":%" PRId64, ops[i].op, ops[i].n_bytes);
    fputc('\n', trace);
  }
  for (size_t i = 0; i < count; i++) discard(slices[i].data, (size_t)slices[i].len);
  discard(slices, count * sizeof *slices);
  return result;
}

/* Carries out one op; returns why the connection must be closed, or NULL. */
static const char *execute(struct direction *d, const struct filter_op *op, bool *terminal) {
  int64_t n = op->n_bytes;
  if (n <= 0) return "op-length";
  if (*terminal) return "op-after-terminal";
  switch (op->op) {
  case OP_MORE:
    d->need = d->input_len + n;
    *terminal = true;
    return NULL;
  case OP_PASS:
  case OP_DROP: {
    int64_t now = n < d->input_len ? n : d->input_len;
    *(op->op == OP_PASS ? &d->pass : &d->drop) = n - now;
    *terminal = n > now;
    input_take(d, now, op->op == OP_PASS);
    return NULL;
  }
  case OP_INJECT:
    if (n > d->inject.len) return "inject-length";
    append(&d->out, d->inject.data, (size_t)n);
    d->inject.data = (uint8_t *)d->inject.data + n;
    d->inject.len -= n;
    d->inject.cap -= n;
    return NULL;
  case OP_ERROR:
    return "error-op";
  default:
    return "unknown-op";
  }
}

/* Bytes have come in: does what the proxy's filter does; returns why it must close, or NULL. */
static const char *on_io(struct connection *c, bool reply, bool end, struct chunk *chunks,
                         FILE *trace) {
  struct direction *d = &c->directions[reply];
  for (; chunks; chunks = chunks->next) input_append(d, chunks->bytes.p, chunks->bytes.n);
  if (d->pass || d->drop) {
    bool pass = d->pass > 0;
    int64_t *left = pass ? &d->pass : &d->drop;
    int64_t now = *left < d->input_len ? *left : d->input_len;
    input_take(d, now, pass);
    *left -= now;
    if (*left) return NULL;
  }
  if (d->inject.len) { /* a frame boundary: what the other direction injected goes first */
    append(&d->out, d->inject.data, (size_t)d->inject.len);
    direction_reset_inject(d);
  }
  if (d->input_len < d->need) return NULL;
  d->need = 0;

  bool terminal = false, again;
  do {
    struct filter_op ops[MAX_OPS + 1];
    int64_t n_ops;
    if (call(c, reply, end, d->input, ops, &n_ops, trace) != RESULT_OK) return "result";
    bool full = d->inject.len == d->inject.cap;
    for (int64_t i = 0; i < n_ops; i++) {
      const char *error = execute(d, &ops[i], &terminal);
      if (error) return error;
    }
    if (d->inject.len) return "inject-left-over";
    direction_reset_inject(d);
    again = !terminal && (n_ops == MAX_OPS || full);
  } while (again);
  return NULL;
}

/* An event on the connection, and the empty write that sends pending reply injection. */
static const char *event(struct connection *c, bool reply, bool end, struct chunk *chunks,
                         FILE *trace) {
  const char *error = on_io(c, reply, end, chunks, trace);
  if (!error && !reply && c->directions[1].inject.len) error = on_io(c, true, false, NULL, trace);
  return error;
}

/* Opens a connection over strings that end with the call. */
static int32_t open_connection(struct connection *c, uint64_t instance, bool ingress,
                               uint32_t src_id, uint32_t dst_id, const struct bytes strings[4]) {
  struct go_string given[4];
  for (int i = 0; i < 4; i++) {
    char *copy = allocate(strings[i].n);
    memcpy(copy, strings[i].p, strings[i].n);
    given[i] = (struct go_string){copy, (ptrdiff_t)strings[i].n};
  }
  struct direction *d = c->directions;
  struct go_slice before[2] = {d[0].inject, d[1].inject};
  int32_t result = on_new_connection(instance, given[0], c->id, ingress, src_id, dst_id, given[1],
                                     given[2], given[3], &d[0].inject, &d[1].inject);
  for (int i = 0; i < 2; i++) check_inject(&d[i], &before[i]);
  for (int i = 0; i < 4; i++) discard((void *)given[i].p, (size_t)given[i].n);
  return result;
}

/* Many connections from many threads. */

struct work {
  uint64_t instance, first_id;
  int rounds;
  bool leak; /* never call Close */
  struct bytes strings[4];
  struct chunk request;
  struct bytes out[2]; /* the first round's output */
  const char *error;
};

static void *run_work(void *argument) {
  struct work *w = argument;
  for (int round = 0; round < w->rounds && !w->error; round++) {
    struct connection *c = connection_make(w->first_id + (uint64_t)round);
    if (open_connection(c, w->instance, true, 100, 1, w->strings) != RESULT_OK) {
      w->error = "open";
    } else {
      w->error = event(c, false, false, &w->request, NULL);
      for (int i = 0; i < 2; i++) {
        struct bytes *out = &c->directions[i].out;
        if (round == 0)
          append(&w->out[i], out->p, out->n);
        else if (out->n != w->out[i].n || memcmp(out->p, w->out[i].p, out->n) != 0)
          w->error = "different-output";
      }
      if (!w->leak) close_connection(c->id);
    }
    /* A host that never calls Close keeps the buffers that it handed over. */
    if (!w->leak) connection_free(c);
  }
  return NULL;
}

/* Commands. */

static struct connection *connections;

static struct connection **find(uint64_t id) {
  struct connection **at = &connections;
  while (*at && (*at)->id != id) at = &(*at)->next;
  return at;
}

static void forget(uint64_t id) {
  struct connection **at = find(id), *c = *at;
  if (!c) return;
  *at = c->next;
  connection_free(c);
}

static uint64_t number(char *text) {
  char *end;
  errno = 0;
  uint64_t n = text ? strtoull(text, &end, 10) : 0;
  if (!text || errno || *end) die("host: not a number: %s", text ? text : "(nothing)");
  return n;
}

static char *word(void) {
  char *w = strtok(NULL, " \n");
  if (!w) die("host: a word is missing");
  return w;
}

static void *symbol(const char *name) {
  void *found = dlsym(library, name);
  if (!found) die("host: no symbol %s: %s", name, dlerror());
  return found;
}

static void do_load(void) {
  struct bytes path = from_hex(word());
  append(&path, "", 1);
  library = dlopen((char *)path.p, RTLD_NOW);
  if (!library) {
    printf("= error %s\n", dlerror());
  } else {
    *(void **)&open_module = symbol("OpenModule");
    *(void **)&close_module = symbol("CloseModule");
    *(void **)&on_new_connection = symbol("OnNewConnection");
    *(void **)&on_data = symbol("OnData");
    *(void **)&close_connection = symbol("Close");
    puts("= ok");
  }
  free(path.p);
}

static void do_open_module(void) {
  uint8_t debug = (uint8_t)number(word());
  int64_t count = (int64_t)number(word());
  struct key_value *params = allocate((size_t)count * sizeof *params);
  for (int64_t i = 0; i < count; i++) {
    struct bytes key = from_hex(word()), value = from_hex(word());
    params[i].key = (struct go_string){(char *)key.p, (ptrdiff_t)key.n};
    params[i].value = (struct go_string){(char *)value.p, (ptrdiff_t)value.n};
  }
  uint64_t id = open_module((struct go_slice){params, count, count}, debug);
  for (int64_t i = 0; i < count; i++) {
    discard((void *)params[i].key.p, (size_t)params[i].key.n);
    discard((void *)params[i].value.p, (size_t)params[i].value.n);
  }
  discard(params, (size_t)count * sizeof *params);
  printf("= %" PRIu64 "\n", id);
}

/* new INSTANCE ID INGRESS SRC_ID DST_ID PROTO SRC_ADDR DST_ADDR POLICY_NAME */
static void do_new(void) {
  uint64_t instance = number(word()), id = number(word());
  bool ingress = number(word());
  uint32_t src_id = (uint32_t)number(word()), dst_id = (uint32_t)number(word());
  struct bytes strings[4];
  for (int i = 0; i < 4; i++) strings[i] = from_hex(word());
  struct connection *c = connection_make(id);
  int32_t result = open_connection(c, instance, ingress, src_id, dst_id, strings);
  if (result == RESULT_OK) {
    forget(id);
    c->next = connections;
    connections = c;
  } else {
    connection_free(c);
  }
  for (int i = 0; i < 4; i++) free(strings[i].p);
  printf("= %" PRId32 "\n", result);
}

/* io ID REPLY END [CHUNK...]: an event; the library is told if the host closes because of it. */
static void do_io(void) {
  struct connection *c = *find(number(word()));
  if (!c) die("host: no such connection");
  bool reply = number(word()), end = number(word());
  struct chunk *chunks = NULL, **last = &chunks;
  for (char *hex; (hex = strtok(NULL, " \n")); last = &(*last)->next) {
    *last = allocate(sizeof **last);
    **last = (struct chunk){NULL, from_hex(hex)};
  }
  const char *error = event(c, reply, end, chunks, stdout);
  if (error) {
    close_connection(c->id);
    c->closed = true;
  }
  while (chunks) {
    struct chunk *chunk = chunks;
    chunks = chunk->next;
    free(chunk->bytes.p);
    free(chunk);
  }
  printf("= %s ", error ? error : "ok");
  for (int i = 0; i < 2; i++) {
    struct bytes *out = &c->directions[i].out;
    print_hex(stdout, out);
    putchar(i ? '\n' : ' ');
    free(out->p);
    *out = (struct bytes){0};
  }
}

/* raw ID REPLY END [CHUNK]: OnData without a host's logic, for any id. */
static void do_raw(void) {
  uint64_t id = number(word());
  bool reply = number(word()), end = number(word());
  char *hex = strtok(NULL, " \n");
  struct connection *known = *find(id), *c = known ? known : connection_make(id);
  struct chunk chunk = {NULL, from_hex(hex ? hex : "-")};
  struct filter_op ops[MAX_OPS + 1];
  int64_t n_ops;
  int32_t result = call(c, reply, end, chunk.bytes.n ? &chunk : NULL, ops, &n_ops, stdout);
  printf("= %" PRId32 "\n", result);
  free(chunk.bytes.p);
  if (!known) connection_free(c);
}

/* threads N ROUNDS LEAK INSTANCE FIRST_ID PROTO SRC_ADDR DST_ADDR POLICY_NAME REQUEST */
static void do_threads(void) {
  int n = (int)number(word()), rounds = (int)number(word());
  bool leak = number(word());
  struct work model = {.rounds = rounds, .leak = leak, .instance = number(word())};
  uint64_t first_id = number(word());
  for (int i = 0; i < 4; i++) model.strings[i] = from_hex(word());
  model.request.bytes = from_hex(word());
  struct work *work = allocate((size_t)n * sizeof *work);
  pthread_t *threads = allocate((size_t)n * sizeof *threads);
  for (int i = 0; i < n; i++) {
    work[i] = model;
    work[i].first_id = first_id + (uint64_t)i * (uint64_t)rounds;
    if (pthread_create(&threads[i], NULL, run_work, &work[i])) die("host: pthread_create");
  }
  const char *error = NULL;
  for (int i = 0; i < n; i++) {
    pthread_join(threads[i], NULL);
    if (work[i].error) error = work[i].error;
    for (int d = 0; d < 2 && !error; d++)
      if (work[i].out[d].n != work[0].out[d].n ||
          memcmp(work[i].out[d].p, work[0].out[d].p, work[i].out[d].n) != 0)
        error = "different-output";
  }
  printf("= %s ", error ? error : "ok");
  print_hex(stdout, &work[0].out[0]);
  putchar(' ');
  print_hex(stdout, &work[0].out[1]);
  putchar('\n');
  for (int i = 0; i < n; i++)
    for (int d = 0; d < 2; d++) free(work[i].out[d].p);
  for (int i = 0; i < 4; i++) free(model.strings[i].p);
  free(model.request.bytes.p);
  free(work);
  free(threads);
}

static void do_unload(void) {
  int failed = dlclose(library);
  printf("= %s\n", failed ? dlerror() : "ok");
}

int main(void) {
  char *line = NULL;
  size_t room = 0;
  setvbuf(stdout, NULL, _IOFBF, 1 << 16);
  while (getline(&line, &room, stdin) > 0) {
    char *command = strtok(line, " \n");
    if (!command) continue;
    if (!strcmp(command, "load")) do_load();
    else if (!strcmp(command, "open-module")) do_open_module();
    else if (!strcmp(command, "close-module")) close_module(number(word())), puts("= ok");
    else if (!strcmp(command, "new")) do_new();
    else if (!strcmp(command, "io")) do_io();
    else if (!strcmp(command, "raw")) do_raw();
    else if (!strcmp(command, "close")) {
      uint64_t id = number(word());
      close_connection(id);
      forget(id);
      puts("= ok");
    }
    else if (!strcmp(command, "threads")) do_threads();
    else if (!strcmp(command, "unload")) do_unload();
    else if (!strcmp(command, "exit")) exit((int)number(word()));
    else die("host: unknown command %s", command);
    fflush(stdout);
  }
  free(line);
  return 0;
}
