/* The filters that there are, and how other threads reach theirs.
 *
 * Envoy's scheduler makes the filter live until an event is posted: if it has been
 * closed meanwhile, it is destroyed in the thread that posts.  So whoever posts must
 * not hold a lock, nor Python.  Threads that may hold either leave it to a thread of
 * ours, the messenger, which holds nothing.
 */
#include "live.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

/* A scheduler, for as long as somebody may post to it. */
struct post {
  envoy_scheduler scheduler;
  _Atomic int users;
};

struct message {
  struct post *post;
  uint64_t event;
  struct message *next;
};

struct ticket {
  struct live *live;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t come = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct live *first;
static struct message *messages, **last = &messages;

static void let_go(struct post *post) {
  if (atomic_fetch_sub(&post->users, 1) > 1) return;
  envoy_dynamic_module_callback_network_filter_scheduler_delete(post->scheduler);
  free(post);
}

static void *carry(void *ignored) {
  (void)ignored;
  for (;;) {
    pthread_mutex_lock(&lock);
    while (!messages) pthread_cond_wait(&come, &lock);
    struct message *message = messages;
    messages = message->next;
    if (!messages) last = &messages;
    pthread_mutex_unlock(&lock);
    envoy_dynamic_module_callback_network_filter_scheduler_commit(message->post->scheduler,
                                                                  message->event);
    let_go(message->post);
    free(message);
  }
  return NULL;
}

static void start_messenger(void) {
  pthread_t thread;
  sigset_t all, before;
  /* The host's signals are not for this thread. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  if (pthread_create(&thread, NULL, carry, NULL) == 0) pthread_detach(thread);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* With the lock. */
static void leave_message(struct live *live, uint64_t event) {
  struct message *message = malloc(sizeof *message);
  if (!message) return;
  atomic_fetch_add(&live->post->users, 1);
  *message = (struct message){live->post, event, NULL};
  *last = message;
  last = &message->next;
  pthread_cond_signal(&come);
}

bool live_add(struct live *live, envoy_filter envoy) {
  struct post *post = malloc(sizeof *post);
  if (!post) return false;
  pthread_once(&once, start_messenger);
  post->scheduler = envoy_dynamic_module_callback_network_filter_scheduler_new(envoy);
  atomic_init(&post->users, 1);
  live->post = post;
  pthread_mutex_lock(&lock);
  live->next = first;
  live->self = &first;
  if (first) first->self = &live->next;
  first = live;
  pthread_mutex_unlock(&lock);
  return true;
}

void live_remove(struct live *live) {
  if (!live->self) return;
  pthread_mutex_lock(&lock);
  if (live->ticket) live->ticket->live = NULL;
  *live->self = live->next;
  if (live->next) live->next->self = live->self;
  live->self = NULL;
  pthread_mutex_unlock(&lock);
  let_go(live->post);
}

void live_tell_here(struct live *live, uint64_t event) {
  envoy_dynamic_module_callback_network_filter_scheduler_commit(live->post->scheduler, event);
}

void live_tell(struct live *live, uint64_t event) {
  pthread_mutex_lock(&lock);
  if (live->self) leave_message(live, event);
  pthread_mutex_unlock(&lock);
}

void live_tell_all(uint64_t event) {
  pthread_mutex_lock(&lock);
  for (struct live *live = first; live; live = live->next) leave_message(live, event);
  pthread_mutex_unlock(&lock);
}

struct ticket *ticket_new(struct live *live) {
  struct ticket *ticket = malloc(sizeof *ticket);
  if (ticket) ticket->live = live;
  live->ticket = ticket;
  return ticket;
}

void ticket_free(struct ticket *ticket) {
  pthread_mutex_lock(&lock);
  if (ticket->live) ticket->live->ticket = NULL;
  pthread_mutex_unlock(&lock);
  free(ticket);
}

void ticket_tell(struct ticket *ticket, uint64_t event) {
  pthread_mutex_lock(&lock);
  if (ticket->live && ticket->live->self) leave_message(ticket->live, event);
  pthread_mutex_unlock(&lock);
}
