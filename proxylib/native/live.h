/* Which of Envoy's filters there are, from whichever thread (live.c). */
#ifndef PROXYLIB_LIVE_H
#define PROXYLIB_LIVE_H

#include "envoy_abi.h"

/* One filter, inside its own structure. `post` takes events for its thread. */
struct live {
  struct post *post;
  struct live *next, **self;
  struct ticket *ticket;
};

/* Adds a filter; on its own thread. False if there is no memory. */
bool live_add(struct live *live, envoy_filter envoy);

/* Takes it out. What was never added is left alone. */
void live_remove(struct live *live);

/* Posts an event to the filter's thread, from this thread. */
void live_tell_here(struct live *live, uint64_t event);

/* The same, from any thread that knows that the filter is there. */
void live_tell(struct live *live, uint64_t event);

/* Posts an event to the thread of every filter; from any thread. */
void live_tell_all(uint64_t event);

/* A filter for threads that may outlive it. */
struct ticket;
struct ticket *ticket_new(struct live *live);
void ticket_free(struct ticket *ticket);

/* Posts an event to the filter's thread, if it is still there; from any thread. */
void ticket_tell(struct ticket *ticket, uint64_t event);

#endif
