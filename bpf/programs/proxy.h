/* The way to the proxy: its sockets in this network namespace, found by the packet's own tuple.
 *
 * A socket is the proxy's if its mark says so, which only the privileged can set: another
 * process that listens on a proxy port is given nothing. A packet can be assigned to a socket at
 * the ingress hook of tc only; from the egress hook it is first sent back to the interface's
 * ingress, with a mark that tells what it is.
 */
#ifndef PROXYLIB_PROXY_H
#define PROXYLIB_PROXY_H

#include <linux/pkt_cls.h>
#include <linux/if_packet.h>

#include "conntrack.h"

#ifdef SIDECAR_ENDPOINT
#define INGRESS_HOOK INGRESS /* inside the endpoint's namespace */
#else
#define INGRESS_HOOK EGRESS /* on the node's end of the endpoint's link */
#endif

/* Whose socket has a packet's tuple. */
enum owner {
	OWNER_OTHER = 0,
	OWNER_UPSTREAM, /* the proxy's, towards a server */
	OWNER_LISTENER, /* the proxy's, towards a client */
};

static __always_inline u32 mark_to_proxy(u32 identity)
{
	return MARK_TO_PROXY | (identity & 0xffff) << 16 | (identity >> 16 & 0xff);
}

/* The tuple of a packet; its size, as the look-ups want it. */
static __always_inline u32 tuple_of(const struct packet *packet, struct bpf_sock_tuple *tuple)
{
	if (!packet->ipv6) {
		tuple->ipv4.saddr = packet->source.words[3];
		tuple->ipv4.daddr = packet->destination.words[3];
		tuple->ipv4.sport = packet->source_port;
		tuple->ipv4.dport = packet->destination_port;
		return sizeof(tuple->ipv4);
	}
	__builtin_memcpy(tuple->ipv6.saddr, &packet->source, sizeof(packet->source));
	__builtin_memcpy(tuple->ipv6.daddr, &packet->destination, sizeof(packet->destination));
	tuple->ipv6.sport = packet->source_port;
	tuple->ipv6.dport = packet->destination_port;
	return sizeof(tuple->ipv6);
}

/* As if the packet were for `port` of this machine's own loopback address. */
static __always_inline void tuple_to_loopback(bool ipv6, be16 port, struct bpf_sock_tuple *tuple)
{
	if (!ipv6) {
		tuple->ipv4.daddr = bpf_htonl(0x7f000001);
		tuple->ipv4.dport = port;
		return;
	}
	tuple->ipv6.daddr[0] = 0;
	tuple->ipv6.daddr[1] = 0;
	tuple->ipv6.daddr[2] = 0;
	tuple->ipv6.daddr[3] = bpf_htonl(1);
	tuple->ipv6.dport = port;
}

/* True if a UDP socket is bound to the very address of the tuple, not to all. */
static __always_inline bool is_bound(const struct bpf_sock *sk, bool ipv6,
				     const struct bpf_sock_tuple *tuple)
{
	u32 ipv4 = sk->src_ip4;

	/* Else the two branches become one, which computes with the socket's address. */
	asm volatile("" : "+r"(ipv4));
	if (!ipv6)
		return ipv4 == tuple->ipv4.daddr;
	return sk->src_ip6[0] == tuple->ipv6.daddr[0] && sk->src_ip6[1] == tuple->ipv6.daddr[1] &&
	       sk->src_ip6[2] == tuple->ipv6.daddr[2] && sk->src_ip6[3] == tuple->ipv6.daddr[3];
}

static __always_inline struct bpf_sock *find_tcp(struct __sk_buff *skb, bool ipv6,
						 struct bpf_sock_tuple *tuple)
{
	u32 size = ipv6 ? sizeof(tuple->ipv6) : sizeof(tuple->ipv4);

	return bpf_skc_lookup_tcp(skb, tuple, size, BPF_F_CURRENT_NETNS, 0);
}

static __always_inline struct bpf_sock *find_udp(struct __sk_buff *skb, bool ipv6,
						 struct bpf_sock_tuple *tuple)
{
	u32 size = ipv6 ? sizeof(tuple->ipv6) : sizeof(tuple->ipv4);

	return bpf_sk_lookup_udp(skb, tuple, size, BPF_F_CURRENT_NETNS, 0);
}

/* Of a connection's socket, or what is left of one. A socket in TIME_WAIT, or of an unfinished
 * handshake, shows no mark: on the node all that have an endpoint's address are the proxy's. */
static __always_inline enum owner owner_of(struct bpf_sock *sk)
{
	struct bpf_sock *full;
	u32 mark;

	if (sk->state == BPF_TCP_LISTEN)
		return OWNER_OTHER;
	full = bpf_sk_fullsock(sk);
	if (full) {
		mark = full->mark & MARK_MASK;
		return mark == MARK_FROM_UPSTREAM ? OWNER_UPSTREAM :
		       mark == MARK_FROM_LISTENER ? OWNER_LISTENER : OWNER_OTHER;
	}
#ifdef SIDECAR_ENDPOINT
	return OWNER_OTHER;
#else
	return sk->state == BPF_TCP_TIME_WAIT ? OWNER_UPSTREAM : OWNER_LISTENER;
#endif
}

/* Whose is the socket that has the packet's tuple? For packets that no entry tells about.
 * A datagram socket without a peer has a tuple with everybody: an endpoint that speaks to it, by
 * itself, is judged as for any other. */
static __always_inline enum owner packet_owner(struct __sk_buff *skb, const struct packet *packet,
					       u8 direction)
{
	struct bpf_sock_tuple tuple = {};
	enum owner owner = OWNER_OTHER;
	struct bpf_sock *sk;

	tuple_of(packet, &tuple);
	if (packet->protocol == IPPROTO_TCP) {
		sk = find_tcp(skb, packet->ipv6, &tuple);
		if (sk) {
			owner = owner_of(sk);
			bpf_sk_release(sk);
		}
	} else if (packet->protocol == IPPROTO_UDP) {
		sk = find_udp(skb, packet->ipv6, &tuple);
		if (sk) {
			if ((sk->mark & MARK_MASK) == MARK_FROM_UPSTREAM &&
			    (direction == INGRESS || sk->dst_port) &&
			    is_bound(sk, packet->ipv6, &tuple))
				owner = OWNER_UPSTREAM;
			bpf_sk_release(sk);
		}
	}
	return owner;
}

/* Gives the packet to the socket, which is let go of. */
static __always_inline int assign(struct __sk_buff *skb, struct bpf_sock *sk)
{
	int failed = bpf_sk_assign(skb, sk, 0);

	bpf_sk_release(sk);
	return failed ? REASON_SOCKET_ASSIGN : REASON_TO_PROXY;
}

/* Gives the packet to the proxy's socket for its connection; if there is none, and `port` is
 * not 0, to the socket that listens there. Without either it is dropped: fail closed. */
static __always_inline int assign_tcp(struct __sk_buff *skb, const struct packet *packet,
				      be16 port)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk, *full;

	tuple_of(packet, &tuple);
	sk = find_tcp(skb, packet->ipv6, &tuple);
	if (sk) {
		/* Also one in TIME_WAIT, as it is: it knows when a new connection may follow. */
		if (sk->state != BPF_TCP_LISTEN) {
			full = bpf_sk_fullsock(sk);
			if (!full || owner_of(full) != OWNER_OTHER)
				return assign(skb, sk);
		}
		bpf_sk_release(sk);
	}
	if (!port)
		return REASON_NO_SOCKET;
	tuple_to_loopback(packet->ipv6, port, &tuple);
	sk = find_tcp(skb, packet->ipv6, &tuple);
	if (!sk)
		return REASON_NO_SOCKET;
	full = bpf_sk_fullsock(sk);
	if (full && full->state == BPF_TCP_LISTEN &&
	    (full->mark & MARK_MASK) == MARK_FROM_LISTENER)
		return assign(skb, sk);
	bpf_sk_release(sk);
	return REASON_NO_SOCKET;
}

/* The same for UDP, where a socket serves all clients: with `port`, the one that listens there,
 * else the one towards a server, which is bound to the client's address. */
static __always_inline int assign_udp(struct __sk_buff *skb, const struct packet *packet,
				      be16 port)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;

	tuple_of(packet, &tuple);
	if (port)
		tuple_to_loopback(packet->ipv6, port, &tuple);
	sk = find_udp(skb, packet->ipv6, &tuple);
	if (!sk)
		return REASON_NO_SOCKET;
	if ((sk->mark & MARK_MASK) == (port ? MARK_FROM_LISTENER : MARK_FROM_UPSTREAM) &&
	    is_bound(sk, packet->ipv6, &tuple))
		return assign(skb, sk);
	bpf_sk_release(sk);
	return REASON_NO_SOCKET;
}

/* The packet is at the ingress hook, and marked: only the socket is missing. */
static __always_inline int give_to_proxy(struct __sk_buff *skb, const struct packet *packet,
					 be16 port)
{
	if (packet->protocol == IPPROTO_TCP)
		return assign_tcp(skb, packet, port);
	if (packet->protocol == IPPROTO_UDP)
		return assign_udp(skb, packet, port);
	/* An ICMP error about one of its connections: the kernel itself knows whose. */
	return REASON_TO_PROXY;
}

/* Sends the packet on its way to the proxy. identity: the source's. */
static __always_inline int to_proxy(struct __sk_buff *skb, const struct packet *packet,
				    u8 direction, u32 identity, be16 port)
{
	if (packet->fragment != WHOLE)
		return REASON_FRAGMENTS_UNSUPPORTED;
	skb->mark = mark_to_proxy(identity);
	if (direction == INGRESS_HOOK)
		return give_to_proxy(skb, packet, port);
	return REASON_TO_PROXY;
}

#endif
