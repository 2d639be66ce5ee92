/* Which of Envoy's filters there are, from whichever thread (live.c). */
#ifndef PROXYLIB_LIVE_H
#define PROXYLIB_LIVE_H

#include "envoy_abi.h"

/* One filter, inside its own structure. `scheduler` posts events to its thread. */
struct live {
  envoy_scheduler scheduler;
  struct live *next, **self;
  struct ticket *ticket;
};

/* Adds a filter; on its own thread. */
void live_add(struct live *live, envoy_filter envoy);

/* Takes it out, and frees its scheduler. What was never added is left alone. */
void live_remove(struct live *live);

/* A filter for threads that may outlive it. */
struct ticket;
struct ticket *ticket_new(struct live *live);
void ticket_free(struct ticket *ticket);

/* Posts an event to the filter's thread, if it is still there; from any thread. */
void ticket_tell(struct ticket *ticket, uint64_t event);

/* Posts an event to the thread of every filter; from any thread. */
void live_tell_all(uint64_t event);

#endif
