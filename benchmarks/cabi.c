/* Times the C ABI from a host without Python: nanoseconds per OnData call.
 *
 *   cabi LIBRARY XDS_PATH LOG_PATH PARSER POLICY_NAME DST_ADDR CALLS REPLY < message
 *
 * CALLS times a request in the original direction, the eight '#' of "########" in it
 * replaced by the number of the call, and then (unless it is empty) the reply: one
 * message per call, in one connection. Five rounds are timed, each direction by
 * itself, and the medians are printed as a JSON line.
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "proxylib.h"

static GoString string(const char *text) { return (GoString){text, (ptrdiff_t)strlen(text)}; }

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  if (argc != 9) return 2;
  void *library = dlopen(argv[1], RTLD_NOW);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  open_module_fn *open_module = (open_module_fn *)dlsym(library, "OpenModule");
  on_new_connection_fn *new_connection = (on_new_connection_fn *)dlsym(library, "OnNewConnection");
  on_data_fn *on_data = (on_data_fn *)dlsym(library, "OnData");
  close_module_fn *close_module = (close_module_fn *)dlsym(library, "CloseModule");

  GoString params[] = {string("xds-path"), string(argv[2]), string("access-log-path"),
                       string(argv[3])};
  uint64_t instance = open_module((GoSlice){params, 2, 2}, 0);
  char buffers[2][1024];
  GoSlice inject[2] = {{buffers[0], 0, 1024}, {buffers[1], 0, 1024}};
  int32_t result = new_connection(instance, string(argv[4]), 1, 1, 2, 0,
                                  string("127.0.0.1:40000"), string(argv[6]), string(argv[5]),
                                  &inject[0], &inject[1]);
  if (!instance || result) {
    fprintf(stderr, "instance %lu, OnNewConnection %d\n", (unsigned long)instance, result);
    return 1;
  }
  static char message[1 << 16];
  size_t len = fread(message, 1, sizeof message - 1, stdin);
  char *number = strstr(message, "########");
  GoSlice slices[2] = {{message, (int64_t)len, (int64_t)len},
                       {argv[8], (int64_t)strlen(argv[8]), (int64_t)strlen(argv[8])}};
  GoSlice data[2] = {{&slices[0], 1, 1}, {&slices[1], 1, 1}};
  FilterOp ops[16];
  double rounds[2][5] = {{0}};
  long calls = atol(argv[7]);
  for (int round = 0; round < 5; round++) {
    for (long i = 0; i < calls; i++) {
      long n = i;
      for (int digit = 7; number && digit >= 0; digit--, n /= 10) number[digit] = (char)('0' + n % 10);
      for (int reply = 0; reply < 2 && slices[reply].len; reply++) {
        GoSlice out = {ops, 0, 16};
        double start = now_ns();
        int32_t bad = on_data(1, (uint8_t)reply, 0, &data[reply], &out);
        rounds[reply][round] += (now_ns() - start) / (double)calls;
        if (bad || out.len < 1 || ops[0].op != 1) {
          fprintf(stderr, "call %ld: not passed\n", i);
          return 1;
        }
      }
    }
  }
  for (int reply = 0; reply < 2; reply++) qsort(rounds[reply], 5, sizeof *rounds[0], by_value);
  printf("{\"request\": %.0f, \"reply\": %.0f}\n", rounds[0][2], rounds[1][2]);
  close_module(instance);
  return 0;
}
