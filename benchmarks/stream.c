/* An event-driven client and server, for what two programs on one node can do.
 *
 *   stream server ADDR PORT
 *   stream ping ADDR PORT SIZE COUNT
 *   stream bulk ADDR PORT SIZE BYTES
 *
 * All sockets are non-blocking and waited for with epoll. The first byte of a connection says
 * what it is: the server sends every message of a ping back, and answers a bulk, when the client
 * has ended it, with one byte. A client prints one JSON line: the latency of a ping in
 * microseconds, or the seconds from the first byte sent to the server's answer. Messages are
 * SIZE bytes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TIMEOUT_MS 10000
#define LARGEST (1 << 20)

struct connection {
  int fd;
  char kind;
  size_t unsent;
};

static char buffer[LARGEST];

static void die(const char *what) {
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static int make_socket(void) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (fd < 0) die("socket");
  return fd;
}

static void no_delay(int fd) { setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)); }

static struct sockaddr_in address(char **argv) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
  if (inet_pton(AF_INET, argv[0], &a.sin_addr) != 1) die(argv[0]);
  return a;
}

/* What recv or send did: its count, 0 where it has to wait; ended: the peer has ended. */
static size_t done(ssize_t n, const char *what) {
  if (n >= 0) return (size_t)n;
  if (errno != EAGAIN) die(what);
  return 0;
}

static void wait_for(int poll, int fd, uint32_t events) {
  struct epoll_event e = {.events = events};
  if (epoll_ctl(poll, EPOLL_CTL_MOD, fd, &e) && epoll_ctl(poll, EPOLL_CTL_ADD, fd, &e))
    die("epoll_ctl");
  if (epoll_wait(poll, &e, 1, TIMEOUT_MS) != 1) die("nothing happens");
}

/* False when the connection is over. */
static int serve(int poll, struct connection *c) {
  for (;;) {
    if (c->unsent) {
      size_t n = done(send(c->fd, buffer, c->unsent, MSG_NOSIGNAL), "send");
      c->unsent -= n;
      if (c->unsent) break;
    }
    ssize_t n = recv(c->fd, buffer, c->kind == 'p' ? 65536 : LARGEST, 0);
    if (n < 0 && errno == EAGAIN) break;
    if (n <= 0) {
      if (n == 0 && c->kind == 'b') done(send(c->fd, "!", 1, MSG_NOSIGNAL), "send");
      return 0;
    }
    if (!c->kind) c->kind = buffer[0];
    if (c->kind == 'p') c->unsent = (size_t)n;
  }
  struct epoll_event e = {.events = c->unsent ? EPOLLOUT : EPOLLIN, .data.ptr = c};
  return !epoll_ctl(poll, EPOLL_CTL_MOD, c->fd, &e);
}

static void server(char **argv) {
  struct sockaddr_in a = address(argv);
  int listener = make_socket(), poll = epoll_create1(0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
  if (bind(listener, (struct sockaddr *)&a, sizeof(a)) || listen(listener, 64)) die("listen");
  struct epoll_event e = {.events = EPOLLIN};
  epoll_ctl(poll, EPOLL_CTL_ADD, listener, &e);
  while (epoll_wait(poll, &e, 1, -1) == 1) {
    struct connection *c = e.data.ptr;
    if (c) {
      if (!serve(poll, c)) {
        close(c->fd);
        free(c);
      }
      continue;
    }
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0) continue;
    no_delay(fd);
    c = calloc(1, sizeof(*c));
    c->fd = fd;
    e = (struct epoll_event){.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &e);
  }
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void ping(int poll, int fd, size_t size, size_t count) {
  double *took = calloc(count, sizeof(*took));
  for (size_t i = 0; i < count; i++) {
    double began = now();
    for (size_t at = 0; at < size;) {
      size_t n = done(send(fd, buffer, size - at, MSG_NOSIGNAL), "send");
      if (!n) wait_for(poll, fd, EPOLLOUT);
      at += n;
    }
    for (size_t at = 0; at < size;) {
      wait_for(poll, fd, EPOLLIN);
      ssize_t n = recv(fd, buffer + LARGEST / 2, LARGEST / 2, 0);
      if (n == 0) die("the server ended early");
      at += done(n, "recv");
    }
    took[i] = (now() - began) * 1e6;
  }
  qsort(took, count, sizeof(*took), by_value);
  printf("{\"p50_us\": %.2f, \"p99_us\": %.2f}\n", took[count / 2], took[count * 99 / 100]);
}

static void bulk(int poll, int fd, size_t size, size_t bytes) {
  double began = now();
  for (size_t at = 0; at < bytes;) {
    size_t n = done(send(fd, buffer, size, MSG_NOSIGNAL), "send");
    if (!n) wait_for(poll, fd, EPOLLOUT);
    at += n;
  }
  shutdown(fd, SHUT_WR);
  wait_for(poll, fd, EPOLLIN);
  if (recv(fd, buffer, 1, 0) != 1) die("no answer");
  printf("{\"seconds\": %.6f}\n", now() - began);
}

int main(int argc, char **argv) {
  if (argc == 4 && !strcmp(argv[1], "server")) {
    server(argv + 2);
    return 1;
  }
  if (argc != 6) return 2;
  size_t size = (size_t)atoll(argv[4]), much = (size_t)atoll(argv[5]);
  if (!size || size > LARGEST / 2 || !much) return 2;
  struct sockaddr_in a = address(argv + 2);
  int fd = make_socket(), poll = epoll_create1(0);
  no_delay(fd);
  memset(buffer, argv[1][0], sizeof(buffer));
  if (connect(fd, (struct sockaddr *)&a, sizeof(a)) && errno != EINPROGRESS) die("connect");
  wait_for(poll, fd, EPOLLOUT);
  if (argv[1][0] == 'p')
    ping(poll, fd, size, much);
  else
    bulk(poll, fd, size, much);
  return 0;
}
