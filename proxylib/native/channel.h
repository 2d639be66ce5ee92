/* The memory that a worker and its host share; isolate.c tells how it is used. */
#ifndef PROXYLIB_CHANNEL_H
#define PROXYLIB_CHANNEL_H

#include "native.h"

#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CHANNELS = 16 };
/* Of a channel: the largest window, and as much again for what surrounds an answer. */
#define AREA ((size_t)32 << 20)
/* Looks at the other side so often before sleeping: some microseconds, less than a
 * wake-up costs and about what a message takes. */
#define SPINS 30

enum channel_state { IDLE, REQUEST, ANSWER, DEAD };
enum request { REQUEST_OPEN, REQUEST_DATA, REQUEST_CLOSE };

struct channel {
  _Atomic uint32_t state;
  uint32_t request, id;
  uint8_t reply, end_stream;
  uint64_t waiting[2]; /* injected bytes that the host still has */
  uint64_t len;        /* of the request in `area` */
  /* The answer; `area` has the ops, the injected bytes, the log entries. */
  int32_t result;
  uint8_t panicked, batch, on_error;
  uint64_t n_ops, injected[2], logged;
  char area[AREA];
};

struct shared {
  _Atomic uint32_t doorbell, asleep;
  struct channel channels[CHANNELS];
};

static inline void futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t ns) {
  struct timespec t = {ns / 1000000000, ns % 1000000000};
  syscall(SYS_futex, word, FUTEX_WAIT, value, ns < 0 ? NULL : &t, NULL, 0);
}

static inline void futex_wake(_Atomic uint32_t *word) {
  syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static inline void pause_a_little(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

#endif
