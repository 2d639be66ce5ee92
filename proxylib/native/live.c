/* The filters that there are: when a parser's code has been reloaded, all of them must
 * look at it, and idle ones would not by themselves.
 *
 * The lock is held for a few instructions, and never while Python is entered: whoever
 * holds Python may take it.
 */
#include "live.h"

#include <pthread.h>
#include <stdlib.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct live *first;

void live_add(struct live *live, envoy_filter envoy) {
  live->scheduler = envoy_dynamic_module_callback_network_filter_scheduler_new(envoy);
  pthread_mutex_lock(&lock);
  live->next = first;
  live->self = &first;
  if (first) first->self = &live->next;
  first = live;
  pthread_mutex_unlock(&lock);
}

struct ticket {
  struct live *live;
};

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
  if (ticket->live) {
    envoy_dynamic_module_callback_network_filter_scheduler_commit(ticket->live->scheduler, event);
  }
  pthread_mutex_unlock(&lock);
}

void live_remove(struct live *live) {
  if (!live->self) return;
  pthread_mutex_lock(&lock);
  if (live->ticket) live->ticket->live = NULL;
  *live->self = live->next;
  if (live->next) live->next->self = live->self;
  pthread_mutex_unlock(&lock);
  live->self = NULL;
  envoy_dynamic_module_callback_network_filter_scheduler_delete(live->scheduler);
}

void live_tell_all(uint64_t event) {
  pthread_mutex_lock(&lock);
  for (struct live *live = first; live; live = live->next) {
    envoy_dynamic_module_callback_network_filter_scheduler_commit(live->scheduler, event);
  }
  pthread_mutex_unlock(&lock);
}
