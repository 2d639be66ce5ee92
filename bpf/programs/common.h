/* What the programs and the loader agree on; bpf/schema.py says the same in Python, and a test
 * holds the two against each other.
 *
 * Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d. A be16 or be32 is in network order. Times are
 * ns of CLOCK_MONOTONIC. No structure has hidden padding.
 */
#ifndef PROXYLIB_COMMON_H
#define PROXYLIB_COMMON_H

#include <linux/types.h>

#ifndef __HELPERS_H
/* Outside of bcc: a test takes sizes and offsets with the machine's compiler. */
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
#endif
typedef u16 be16;
typedef u32 be32;

/* skb->mark. Only these programs set the first, right before local delivery; the other two are
 * options of Envoy's sockets. A packet loses its mark where it leaves its network namespace. */
#define MARK_MASK 0xf00
#define MARK_TO_PROXY 0x200    /* and the source's identity in the bits 16-31 and 0-7 */
#define MARK_FROM_UPSTREAM 0xa00   /* from the proxy to a server */
#define MARK_FROM_LISTENER 0xb00   /* from the proxy back to a client */

enum config { CONFIG_EPOCH = 0, CONFIG_FLAGS = 1, CONFIG_NETNS = 2 };
/* Accounting writes to a connection's entry at every packet, which processors then hand to and
 * fro: as in Cilium, an option. */
/* FLAG_TRACE_TO, FLAG_TRACE_FROM: beside FLAG_TRACE; every packet to or from an endpoint. */
enum flags {
	FLAG_TRACE = 1,
	FLAG_POLICY_VERDICT = 2,
	FLAG_ACCOUNTING = 4,
	FLAG_TRACE_TO = 8,
	FLAG_TRACE_FROM = 16,
};
enum direction { EGRESS = 0, INGRESS = 1 };
enum verdict { VERDICT_NONE = 0, VERDICT_ALLOW = 1, VERDICT_REDIRECT = 2, VERDICT_DENY = 3 };

struct addr {
	union {
		u8 bytes[16];
		be32 words[4];
	};
};

/* Key: the interface's index; in a sidecar, where indices of other namespaces may be the same,
 * LINK_SIDECAR | the endpoint's number. */
#define LINK_SIDECAR 0x80000000
struct link_value {
	u32 endpoint; /* its number, 1 to 65,535 */
	u32 flags;
	struct addr ipv4; /* zeros: none */
	struct addr ipv6;
};

struct endpoint_value {
	u32 identity;
	u32 slot; /* of its policy; 0 has no entries: everything is denied */
	u32 flags;
	u32 ifindex;
};

struct ipcache_key {
	u32 prefixlen;
	struct addr address;
};

struct policy_key {
	u32 prefixlen; /* 72 (slot, identity, direction) and the entry's bits */
	be32 slot;
	be32 identity;
	u8 direction;
	u8 protocol;
	be16 port; /* of the connection's destination, or the ICMP type */
};

struct policy_value {
	u8 verdict;
	u8 would;
	u16 flags;
	be16 proxy_port; /* of the proxy for this direction; 0: there is none (yet) */
	be16 proxy_port_both; /* of the one that judges for both endpoints */
};

/* A connection as one endpoint sees it: both directions have one key. An ICMP echo has its
 * identifier where the side that asks has its port. */
struct conntrack_key {
	u16 endpoint;
	u8 protocol;
	u8 pad;
	be16 own_port;
	be16 peer_port;
	struct addr peer;
};

enum conntrack_flags {
	CT_FROM_PEER = 1, /* the peer made it; else the endpoint */
	CT_PROXIED = 2, /* the endpoint's other side is the proxy */
	CT_SEEN_REPLY = 4,
	CT_TX_CLOSING = 8,
	CT_RX_CLOSING = 16,
	CT_AUDIT = 32, /* passes only because of audit mode */
	CT_UPSTREAM = 64, /* made by the proxy: no policy, it has judged */
};

struct conntrack_value {
	u64 rx_packets; /* rx: to the endpoint. Zeros without FLAG_ACCOUNTING. */
	u64 rx_bytes;
	u64 tx_packets;
	u64 tx_bytes;
	u64 expires;
	u32 epoch; /* the low half of CONFIG_EPOCH when it was judged */
	u32 own_identity;
	u32 peer_identity;
	u16 flags;
	be16 proxy_port;
};

/* The ports of a datagram whose later fragments have none. */
struct fragment_key {
	u16 endpoint;
	u8 protocol;
	u8 pad;
	be32 id;
	struct addr source;
	struct addr destination;
};

struct fragment_value {
	be16 source_port;
	be16 destination_port;
	u8 icmp_type;
	u8 pad;
	u16 pad2;
};

struct counter_key {
	u32 endpoint; /* 0: of no endpoint */
	u8 direction; /* of the packet */
	u8 reason;
	u16 pad;
};

struct counter_value {
	u64 packets;
	u64 bytes; /* with Ethernet headers */
};

/* What passed without the proxy, by the endpoint's number: the counter of most packets, in an
 * array, which is the fastest to find. Numbers beyond its size are in `counters`, too. */
struct traffic_value {
	u64 tx_packets;
	u64 tx_bytes;
	u64 rx_packets; /* rx: to the endpoint */
	u64 rx_bytes;
};

enum event_type { EVENT_DROP = 1, EVENT_TRACE = 2, EVENT_POLICY_VERDICT = 3 };
enum event_flags { EVENT_IPV6 = 1, EVENT_REPLY = 2, EVENT_AUDIT = 4, EVENT_PROXIED = 8 };
enum trace_point { TRACE_NEW = 1, TRACE_REPLY = 2, TRACE_CLOSED = 3, TRACE_ESTABLISHED = 4 };

struct event {
	u64 time;
	u8 type;
	u8 direction; /* of the packet, seen from the endpoint; of the connection, for a verdict */
	u8 reason; /* of a drop; a trace's point */
	u8 verdict; /* enum verdict: a policy verdict's */
	u8 would;
	u8 flags;
	u8 protocol;
	u8 tcp_flags;
	u32 endpoint; /* whose program it was; 0: the interface is no endpoint's */
	u32 ifindex;
	u32 source_identity; /* 0: not looked up */
	u32 destination_identity;
	u32 length; /* of the packet, with its Ethernet header */
	struct addr source;
	struct addr destination;
	be16 source_port;
	be16 destination_port; /* for ICMP, the type */
	be16 proxy_port;
	u16 pad;
	u32 pad2;
};

/* Cilium's numbers where it has one; ours begin at 220. Below 130 nothing was dropped. */
enum reason {
	REASON_FORWARDED = 0,
	REASON_TO_PROXY = 1,
	REASON_INVALID_SOURCE = 132,
	REASON_POLICY = 133,
	REASON_INVALID = 134,
	REASON_CT_INVALID_HEADER = 135,
	REASON_UNSUPPORTED_L3 = 139,
	REASON_UNKNOWN_TARGET = 150,
	REASON_NO_ENDPOINT = 152,
	REASON_CT_CREATE_FAILED = 155,
	REASON_INVALID_EXTENSION_HEADER = 156,
	REASON_FRAGMENTS_UNSUPPORTED = 157, /* of a connection of the proxy's */
	REASON_NO_POLICY = 165,
	REASON_UNSUPPORTED_L2 = 166,
	REASON_INVALID_IDENTITY = 171, /* the ipcache was full */
	REASON_FRAGMENT_NOT_FOUND = 175,
	REASON_ICMPV6_FORBIDDEN = 176,
	REASON_NO_SOCKET = 178, /* the proxy is gone, or does not listen yet */
	REASON_SOCKET_ASSIGN = 179,
	REASON_PROXY_UNSUPPORTED_PROTOCOL = 180,
	REASON_POLICY_DENY = 181,
	REASON_VLAN = 182,
	REASON_NO_PROXY_PORT = 220,
	REASON_TWO_PARSERS = 221,
	REASON_PROXY_NEEDED = 222, /* of a connection that was made without it */
	REASON_SOURCE_ROUTE = 223,
	REASON_EVENTS_LOST = 255, /* no drop: events that found the ring buffer full */
};

/* The maps by their numbers, in the order of bpf/schema.py's MAPS: the loader makes them and puts
 * their descriptors in. No map of bcc's is used: it knows them in one file only, makes each while
 * compiling, and takes a pinned one of another size without a word. */
enum map {
	MAP_CONFIG = 0x1000,
	MAP_LINKS,
	MAP_ENDPOINTS,
	MAP_ADDRESSES,
	MAP_IPCACHE,
	MAP_POLICY,
	MAP_CONNTRACK,
	MAP_FRAGMENTS,
	MAP_COUNTERS,
	MAP_EVENTS,
	MAP_TRAFFIC,
};

#endif
