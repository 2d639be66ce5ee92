/* The queue of encoded entries, and the thread that sends them.
 *
 * A consumer that is gone or slow never holds anybody up: the queue is bounded, and
 * what did not fit is counted and reported in the stream when there is room again.
 */
#define _GNU_SOURCE
#include "log.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Entries of this much time share a wake-up and a system call. */
#define GATHER_NS (2 * 1000 * 1000)
/* Between two attempts to reach a consumer that is not there. */
#define RETRY_MS 200
/* How long closing waits for a slow consumer to take what is queued. */
#define CLOSE_MS 500
#define BATCH 256

struct queue {
  char *data;
  size_t len, cap;
};

struct log {
  struct sockaddr_un address;
  pthread_t thread;
  pthread_mutex_t mutex; /* guards what follows, up to `sent` */
  pthread_cond_t wake;
  struct queue queue;
  uint64_t lost;
  bool idle, stop;
  int fd; /* the sender's alone, as all below */
  struct queue sending;
  int64_t close_deadline;
  struct log *next; /* in the list of open logs */
};

/* Open logs, for a process that exits without closing its modules. */
static pthread_mutex_t logs_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct log *logs;

static bool queue_reserve(struct queue *q, size_t extra) {
  if (q->len + extra <= q->cap) return true;
  size_t cap = q->cap ? q->cap : 64 << 10;
  while (cap < q->len + extra) cap *= 2;
  char *data = realloc(q->data, cap);
  if (!data) return false;
  q->data = data;
  q->cap = cap;
  return true;
}

/* In the queue, each entry has its length in front. */
void log_append(struct log *log, const char *prefix, size_t prefix_len, const char *entry,
                       size_t entry_len) {
  uint32_t length = (uint32_t)(prefix_len + entry_len);
  pthread_mutex_lock(&log->mutex);
  struct queue *q = &log->queue;
  if (q->len + sizeof length + length > (size_t)limits.log_queue ||
      !queue_reserve(q, sizeof length + length)) {
    log->lost++;
  } else {
    memcpy(q->data + q->len, &length, sizeof length);
    memcpy(q->data + q->len + sizeof length, prefix, prefix_len);
    memcpy(q->data + q->len + sizeof length + prefix_len, entry, entry_len);
    q->len += sizeof length + length;
  }
  /* The sender sleeps on the condition only when nothing came for a while. */
  if (log->idle) {
    log->idle = false;
    pthread_cond_signal(&log->wake);
  }
  pthread_mutex_unlock(&log->mutex);
}

/* -- the sender ------------------------------------------------------------ */

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static bool stopping(struct log *log) {
  pthread_mutex_lock(&log->mutex);
  bool stop = log->stop;
  pthread_mutex_unlock(&log->mutex);
  if (stop && !log->close_deadline) {
    log->close_deadline = now_ns() + CLOSE_MS * 1000000LL;
  }
  return stop && now_ns() > log->close_deadline;
}

static void disconnect(struct log *log) {
  if (log->fd >= 0) close(log->fd);
  log->fd = -1;
}

static bool connected(struct log *log) {
  if (log->fd >= 0) return true;
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return false;
  if (connect(fd, (struct sockaddr *)&log->address, sizeof log->address) < 0) {
    close(fd);
    return false;
  }
  log->fd = fd;
  return true;
}

/* Sends `count` packets; false when the sender must stop. Reconnects as needed. */
static bool send_packets(struct log *log, struct mmsghdr *packets, unsigned count) {
  unsigned sent = 0;
  while (sent < count) {
    if (stopping(log)) return false;
    if (!connected(log)) {
      pthread_mutex_lock(&log->mutex);
      bool stop = log->stop;
      pthread_mutex_unlock(&log->mutex);
      if (stop) return false;
      poll(NULL, 0, RETRY_MS);
      continue;
    }
    int n = sendmmsg(log->fd, packets + sent, count - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      sent += (unsigned)n;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) {
      struct pollfd slow = {log->fd, POLLOUT, 0};
      poll(&slow, 1, RETRY_MS);
    } else if (errno == EMSGSIZE) {
      pthread_mutex_lock(&log->mutex);
      log->lost++;
      pthread_mutex_unlock(&log->mutex);
      sent++;
    } else if (errno != EINTR) {
      disconnect(log);
    }
  }
  return true;
}

static bool send_queue(struct log *log) {
  struct mmsghdr packets[BATCH];
  struct iovec parts[BATCH];
  for (size_t at = 0; at < log->sending.len;) {
    unsigned count = 0;
    memset(packets, 0, sizeof packets);
    while (count < BATCH && at < log->sending.len) {
      uint32_t length;
      memcpy(&length, log->sending.data + at, sizeof length);
      parts[count] = (struct iovec){log->sending.data + at + sizeof length, length};
      packets[count].msg_hdr.msg_iov = &parts[count];
      packets[count++].msg_hdr.msg_iovlen = 1;
      at += sizeof length + length;
    }
    if (!send_packets(log, packets, count)) return false;
  }
  log->sending.len = 0;
  return true;
}

static bool report_lost(struct log *log, uint64_t lost) {
  char entry[192];
  struct iovec part = {entry, log_encode_lost(entry, sizeof entry, lost)};
  struct mmsghdr packet = {.msg_hdr = {.msg_iov = &part, .msg_iovlen = 1}};
  return send_packets(log, &packet, 1);
}

static void *sender(void *argument) {
  struct log *log = argument;
  bool quiet = false;
  for (;;) {
    uint64_t lost;
    pthread_mutex_lock(&log->mutex);
    while (log->queue.len == 0 && log->lost == 0 && !log->stop) {
      if (!quiet) break;
      log->idle = true;
      pthread_cond_wait(&log->wake, &log->mutex);
    }
    if (log->stop && log->queue.len == 0 && log->lost == 0) {
      pthread_mutex_unlock(&log->mutex);
      break;
    }
    struct queue full = log->queue;
    log->queue = log->sending;
    log->sending = full;
    lost = log->lost;
    log->lost = 0;
    bool stop = log->stop;
    pthread_mutex_unlock(&log->mutex);

    quiet = log->sending.len == 0 && lost == 0;
    if (!send_queue(log) || (lost && !report_lost(log, lost))) break;
    if (!stop) {
      struct timespec gather = {0, GATHER_NS};
      nanosleep(&gather, NULL);
    }
  }
  disconnect(log);
  return NULL;
}

/* -- opening and closing ---------------------------------------------------- */

/* Sends what is queued, for a bounded time, and ends the sender. */
static void log_stop(struct log *log) {
  pthread_mutex_lock(&log->mutex);
  log->stop = true;
  pthread_cond_signal(&log->wake);
  pthread_mutex_unlock(&log->mutex);
  pthread_join(log->thread, NULL);
}

__attribute__((destructor)) static void stop_all(void) {
  pthread_mutex_lock(&logs_mutex);
  for (struct log *log = logs; log; log = log->next) log_stop(log);
  logs = NULL;
  pthread_mutex_unlock(&logs_mutex);
}

/* False if `log` was in the list no more. */
static bool unlist(const struct log *log) {
  pthread_mutex_lock(&logs_mutex);
  struct log **at = &logs;
  while (*at && *at != log) at = &(*at)->next;
  bool found = *at != NULL;
  if (found) *at = log->next;
  pthread_mutex_unlock(&logs_mutex);
  return found;
}

struct log *log_open(const char *path) {
  struct log *log = calloc(1, sizeof *log);
  if (!log) return NULL;
  log->fd = -1;
  log->address.sun_family = AF_UNIX;
  if (strlen(path) >= sizeof log->address.sun_path) {
    errno = ENAMETOOLONG;
  } else {
    strcpy(log->address.sun_path, path);
    pthread_mutex_init(&log->mutex, NULL);
    pthread_cond_init(&log->wake, NULL);
    /* The host's signals are not for this thread. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    errno = pthread_create(&log->thread, NULL, sender, log);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (errno == 0) {
      pthread_mutex_lock(&logs_mutex);
      log->next = logs;
      logs = log;
      pthread_mutex_unlock(&logs_mutex);
      return log;
    }
  }
  int error = errno;
  free(log);
  errno = error;
  return NULL;
}

void log_close(struct log *log) {
  if (!unlist(log)) return;
  log_stop(log);
  free(log->queue.data);
  free(log->sending.data);
  pthread_mutex_destroy(&log->mutex);
  pthread_cond_destroy(&log->wake);
  free(log);
}
