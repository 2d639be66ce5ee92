/* What sockmap.c and its loader agree on; bpf/sockmap.py says the same in Python, and a test holds
 * the two against each other. */
#ifndef PROXYLIB_SOCKMAP_H
#define PROXYLIB_SOCKMAP_H

#include "common.h"

enum sockmap_map {
	MAP_SOCKETS = 0x1100, /* struct connection: socket */
	MAP_OWN, /* a socket's address: struct own */
	MAP_PEERS, /* struct connection: struct peer */
	MAP_LISTENERS, /* struct listener: its socket's address */
	MAP_MEMBERS, /* address of an endpoint that takes part: its namespace's cookie; 0: any */
	MAP_SWITCHES, /* enum sockmap_switch: u64 */
	MAP_COUNTS, /* enum count: u64, per CPU */
};

enum sockmap_switch {
	SWITCH_ON = 0,
	SWITCH_EPOCH = 1,
	SWITCH_NODE = 2, /* the cookie of the namespace that Envoy is in */
};

enum count {
	COUNT_MESSAGES = 0, /* past the stack */
	COUNT_BYTES,
	COUNT_OFF, /* by the wire: switched off */
	COUNT_ALONE, /* the peer is not here, or takes no part */
	COUNT_UNREAD, /* the peer has not read what came by the wire */
	COUNT_UNPROVEN, /* first after the handshake, or after a change of policy */
	COUNT_BLOCKING, /* the peer's program blocks */
	COUNT_FULL, /* the peer has much to read */
	COUNT_SPLICED, /* the peer's program has read it by splice(2), or by other means */
	COUNT_SOCKETS, /* sockets that took part */
	COUNT_NO_ROOM, /* sockets that did not: the map is full */
	COUNT_BLOCKING_SOCKETS, /* sockets that did not: their program blocks */
};

struct connection {
	struct addr local;
	struct addr remote;
	u32 local_port;
	u32 remote_port;
	u32 sent; /* the next sequence number of each direction after the handshake */
	u32 received;
};

struct own {
	struct connection connection;
	u64 proven; /* when `proof` was set, ns of the clock */
	u32 epoch;
	u32 proof; /* the peer must have acknowledged up to here */
	u32 proxy; /* it is Envoy's */
	u32 read; /* copied_seq when its program last called recvmsg */
	u32 pending; /* messages past the stack since the peer last had nothing to read */
	u32 pad;
};

struct peer {
	u64 socket;
	u32 proxy;
	u32 pad;
};

struct listener {
	u64 netns; /* the namespace's cookie */
	struct addr address;
	u32 port;
	u32 pad;
};

#endif
