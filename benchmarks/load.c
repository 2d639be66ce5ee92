/* A load generator and an upstream that answers every request with the same bytes.
 *
 *   load client ADDR PORT CONNECTIONS DEPTH REQUESTS REPLY_BYTES [SEND EXPECT]... < bytes
 *   load connect ADDR PORT COUNT REPLY_BYTES < request
 *   load bulk ADDR PORT BYTES REPLY_BYTES
 *   load server ADDR PORT END [each] < reply
 *   load consumer PATH
 *
 * What the client sends stands in its input: for each SEND EXPECT that many bytes of
 * greeting, after which it waits for so many bytes of answer; then a round of DEPTH
 * requests, which it sends again and again on each connection, waiting for all replies in
 * between. In a round, "########" is replaced by a number that counts, wherever it stands.
 * It prints, as one JSON line, the requests done, the seconds, and the latency of a round
 * in microseconds. connect: one after the other, a connection for each request; its latency
 * is from connect() to the last byte of the reply. bulk: one request of so many bytes, the
 * last of which is a newline; its latency ends with the reply. The server answers each request, which ends in END, with the reply: all
 * requests of one read in one write, or each in a write of its own. The consumer reads an
 * access-log socket and throws the entries away.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define TIMEOUT_MS 20000

static void die(const char *what) {
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static size_t read_all(char **to) {
  size_t len = 0, cap = 4096, n;
  *to = malloc(cap);
  while ((n = fread(*to + len, 1, cap - len, stdin)) > 0) {
    len += n;
    if (len == cap) *to = realloc(*to, cap *= 2);
  }
  return len;
}

static struct sockaddr_in address(char **argv) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
  inet_pton(AF_INET, argv[0], &a.sin_addr);
  return a;
}

static void no_delay(int fd) { setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)); }

/* One connection of the client, or of the server. */
struct peer {
  int fd;
  char *request; /* client: this round's requests */
  size_t unsent, unread; /* bytes of this round */
  size_t at;             /* how far the round's bytes are sent */
  double started;
  size_t matched; /* server: bytes of END at the end of what was read */
};

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Writes the next numbers into a round; see the head of the file. */
static void number_round(char *round, const size_t *marks, int count) {
  static unsigned number;
  for (int i = 0; i < count; i++) {
    char *at = round + marks[i];
    unsigned n = number++ % 100000000;
    for (int digit = 7; digit >= 0; digit--, n /= 10) at[digit] = (char)('0' + n % 10);
  }
}

/* Says each part of the greeting, and hears its answer. */
static void greet(int fd, const char *greeting, int parts, char **sizes, char *buffer) {
  size_t at = 0;
  for (int i = 0; i < parts; i++) {
    size_t said = (size_t)atol(sizes[2 * i]), heard = (size_t)atol(sizes[2 * i + 1]);
    if (send(fd, greeting + at, said, MSG_NOSIGNAL) != (ssize_t)said) die("send");
    if (heard && recv(fd, buffer, heard, MSG_WAITALL) != (ssize_t)heard) die("no greeting");
    at += said;
  }
}

static void send_round(struct peer *p, const char *data, size_t len) {
  while (p->at < len) {
    ssize_t n = send(p->fd, data + p->at, len - p->at, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) die("send");
    p->at += (size_t)n;
  }
}

static int connected(struct sockaddr_in to) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
  no_delay(fd);
  return fd;
}

static void report(long requests, double seconds, double *latency, long count) {
  qsort(latency, (size_t)count, sizeof *latency, by_value);
  printf("{\"requests\": %ld, \"seconds\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n", requests,
         seconds, latency[count / 2], latency[count * 99 / 100]);
}

static int client(int argc, char **argv) {
  struct sockaddr_in to = address(argv);
  int n = atoi(argv[2]), depth = atoi(argv[3]);
  long left = atol(argv[4]);
  size_t reply = (size_t)atol(argv[5]) * (size_t)depth;
  int parts = (argc - 6) / 2;
  char *input, *buffer = malloc(1 << 20);
  size_t len = read_all(&input), greeting = 0;
  struct peer *peers = calloc((size_t)n, sizeof *peers);
  long rounds = left / depth, started = 0, done = 0;
  double *latency = malloc(sizeof *latency * (size_t)(rounds + n));
  int poll = epoll_create1(0);
  for (int i = 0; i < parts; i++) greeting += (size_t)atol(argv[6 + 2 * i]);
  const char *round = input + greeting;
  len -= greeting;
  size_t *marks = malloc(sizeof *marks * (len / 8 + 1));
  int marked = 0;
  for (const char *at = round; (at = memmem(at, len - (size_t)(at - round), "########", 8)); at += 8)
    marks[marked++] = (size_t)(at - round);
  for (int i = 0; i < n; i++) {
    peers[i].request = memcpy(malloc(len + 1), round, len);
    peers[i].fd = connected(to);
    greet(peers[i].fd, input, parts, argv + 6, buffer);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &peers[i]};
    epoll_ctl(poll, EPOLL_CTL_ADD, peers[i].fd, &e);
  }
  double begin = now();
  for (int i = 0; i < n && started < rounds; i++, started++) {
    peers[i].started = now();
    peers[i].unread = reply;
    number_round(peers[i].request, marks, marked);
    send_round(&peers[i], peers[i].request, len);
  }
  while (done < started) {
    struct epoll_event events[64];
    int ready = epoll_wait(poll, events, 64, TIMEOUT_MS);
    if (ready <= 0) die("no reply");
    for (int i = 0; i < ready; i++) {
      struct peer *p = events[i].data.ptr;
      ssize_t got = recv(p->fd, buffer, 1 << 20, MSG_DONTWAIT);
      if (got < 0 && errno == EAGAIN) continue;
      if (got <= 0) die("closed");
      if ((size_t)got > p->unread) {
        fprintf(stderr, "more reply bytes than expected\n");
        return 1;
      }
      p->unread -= (size_t)got;
      send_round(p, p->request, len);
      if (p->unread) continue;
      latency[done++] = (now() - p->started) * 1e6;
      if (started < rounds) {
        started++;
        p->at = 0;
        p->unread = reply;
        p->started = now();
        number_round(p->request, marks, marked);
        send_round(p, p->request, len);
      }
    }
  }
  double seconds = now() - begin;
  report(done * depth, seconds, latency, done);
  return 0;
}

static int connect_each(char **argv) {
  struct sockaddr_in to = address(argv);
  long count = atol(argv[2]);
  size_t reply = (size_t)atol(argv[3]);
  char *request, *buffer = malloc(reply);
  size_t len = read_all(&request);
  double *latency = malloc(sizeof *latency * (size_t)count), begin = now();
  for (long i = 0; i < count; i++) {
    double started = now();
    int fd = connected(to);
    if (send(fd, request, len, MSG_NOSIGNAL) != (ssize_t)len) die("send");
    if (recv(fd, buffer, reply, MSG_WAITALL) != (ssize_t)reply) die("no reply");
    latency[i] = (now() - started) * 1e6;
    /* A reset leaves no port in TIME_WAIT: they would run out. */
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    close(fd);
  }
  report(count, now() - begin, latency, count);
  return 0;
}

static int bulk(char **argv) {
  int fd = connected(address(argv));
  long left = atol(argv[2]);
  size_t reply = (size_t)atol(argv[3]);
  char *block = calloc(1, 1 << 18), *buffer = malloc(reply);
  double begin = now(), latency;
  for (ssize_t n; left > 0; left -= n) {
    size_t len = left < 1 << 18 ? (size_t)left : 1 << 18;
    if (left <= 1 << 18) block[len - 1] = '\n';
    if ((n = send(fd, block, len, MSG_NOSIGNAL)) <= 0) die("send");
  }
  if (recv(fd, buffer, reply, MSG_WAITALL) != (ssize_t)reply) die("no reply");
  latency = (now() - begin) * 1e6;
  report(1, latency / 1e6, &latency, 1);
  return 0;
}

/* Sends what a peer is owed; its bytes repeat the reply. */
static void answer(struct peer *p, const char *replies, size_t reply_len, size_t most) {
  while (p->unsent) {
    size_t start = p->at % reply_len, n = most - start;
    if (n > p->unsent) n = p->unsent;
    ssize_t sent = send(p->fd, replies + start, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent <= 0) return;
    p->unsent -= (size_t)sent;
    p->at += (size_t)sent;
  }
}

static void server(char **argv, int each) {
  const char *end = argv[2];
  size_t end_len = strlen(end);
  struct sockaddr_in at = address(argv);
  char *one, *buffer = malloc(1 << 16);
  size_t reply_len = read_all(&one), copies = 1 + (256 << 10) / reply_len;
  char *replies = malloc(reply_len * copies);
  for (size_t i = 0; i < copies; i++) memcpy(replies + i * reply_len, one, reply_len);
  int listener = socket(AF_INET, SOCK_STREAM, 0), poll = epoll_create1(0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
  if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 1024) < 0) die("bind");
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
  epoll_ctl(poll, EPOLL_CTL_ADD, listener, &e);
  for (;;) {
    struct epoll_event events[64];
    int ready = epoll_wait(poll, events, 64, -1);
    for (int i = 0; i < ready; i++) {
      struct peer *p = events[i].data.ptr;
      if (!p) {
        p = calloc(1, sizeof *p);
        p->fd = accept(listener, NULL, NULL);
        no_delay(p->fd);
        e = (struct epoll_event){.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = p};
        epoll_ctl(poll, EPOLL_CTL_ADD, p->fd, &e);
        continue;
      }
      for (;;) {
        ssize_t got = recv(p->fd, buffer, 1 << 16, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN)) {
          close(p->fd);
          free(p);
          p = NULL;
        }
        if (got <= 0) break;
        for (ssize_t k = 0; k < got; k++) {
          p->matched = buffer[k] == end[p->matched] ? p->matched + 1 : buffer[k] == end[0];
          if (p->matched < end_len) continue;
          p->unsent += reply_len;
          p->matched = 0;
        }
        answer(p, replies, reply_len, each ? reply_len : reply_len * copies);
      }
      if (p) answer(p, replies, reply_len, each ? reply_len : reply_len * copies);
    }
  }
}

static void consumer(const char *path) {
  struct sockaddr_un at = {.sun_family = AF_UNIX};
  static char packet[1 << 16];
  snprintf(at.sun_path, sizeof at.sun_path, "%s", path);
  int listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);
  if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 1) < 0) die("bind");
  for (;;) {
    int fd = accept(listener, NULL, NULL);
    while (recv(fd, packet, sizeof packet, 0) > 0) continue;
    close(fd);
  }
}

int main(int argc, char **argv) {
  if (argc >= 8 && argc % 2 == 0 && !strcmp(argv[1], "client")) return client(argc - 2, argv + 2);
  if (argc == 6 && !strcmp(argv[1], "connect")) return connect_each(argv + 2);
  if (argc == 6 && !strcmp(argv[1], "bulk")) return bulk(argv + 2);
  if (argc >= 5 && argc <= 6 && !strcmp(argv[1], "server")) server(argv + 2, argc == 6);
  if (argc == 3 && !strcmp(argv[1], "consumer")) consumer(argv[2]);
  fprintf(stderr, "usage: see the head of load.c\n");
  return 2;
}
