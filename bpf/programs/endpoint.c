/* The two programs of an endpoint: every packet from it and to it is judged here.
 *
 * On the node they sit at the node's end of the endpoint's veth: what comes in there is *from*
 * the endpoint, what goes out there is *to* it. Compiled with SIDECAR_ENDPOINT, its number, they
 * sit on the endpoint's own interface inside its network namespace, the other way round.
 *
 * A packet is dropped with a reason, goes on, or goes to the proxy: a socket in the same
 * network namespace that accepts connections to any address. The proxy connects to the server
 * from the client's own address; the packets of both of its sides are told by their marks, and
 * what comes back to them by their sockets. So nothing of the proxy's is redirected again.
 *
 * No packet brings a mark along from another namespace. In a sidecar the application is in the
 * proxy's own: who may set marks there (CAP_NET_RAW, CAP_NET_ADMIN) can pass for the proxy.
 */
#include <linux/errno.h>

#include "proxy.h"

#define NOT_RELATED -1

/* Neighbour and multicast listener discovery, which is between the endpoint and the node. */
static __always_inline bool is_discovery(const struct packet *packet)
{
	return packet->ipv6 && is_icmp(packet) &&
	       ((packet->icmp_type >= MLD_QUERY && packet->icmp_type <= NDP_REDIRECT) ||
		packet->icmp_type == MLD2_REPORT);
}

static __always_inline bool is_link_local(const struct addr *address)
{
	return address->bytes[0] == 0xfe && (address->bytes[1] & 0xc0) == 0x80;
}

/* What nobody has forwarded passes, and goes no further; an endpoint is no router. */
static __always_inline int check_discovery(const struct packet *packet, u8 direction,
					   const struct link_value *link)
{
	u8 type = packet->icmp_type;
	bool neighbour = type >= NDP_ROUTER_SOLICITATION && type <= NDP_REDIRECT;

	if (packet->fragment != WHOLE || (neighbour && packet->hop_limit != 255) ||
	    (!neighbour && packet->destination.bytes[0] != 0xff))
		return REASON_ICMPV6_FORBIDDEN;
	if (direction == INGRESS)
		return REASON_FORWARDED;
	if (packet->destination.bytes[0] != 0xff && !is_link_local(&packet->destination) &&
	    identity_of(&packet->destination) != IDENTITY_HOST)
		return REASON_ICMPV6_FORBIDDEN;
	if (type == MLD_QUERY || type == NDP_ROUTER_ADVERTISEMENT || type == NDP_REDIRECT)
		return REASON_ICMPV6_FORBIDDEN;
	if (is_link_local(&packet->source) || is_unspecified(&packet->source) ||
	    same_address(&packet->source, &link->ipv6))
		return REASON_FORWARDED;
	return REASON_INVALID_SOURCE;
}

/* Its own side's address must be the endpoint's: nobody speaks, or is spoken to, as another. */
static __always_inline int check_address(const struct packet *packet, u8 direction,
					 const struct link_value *link)
{
	const struct addr *own = direction == EGRESS ? &packet->source : &packet->destination;
	const struct addr *given = packet->ipv6 ? &link->ipv6 : &link->ipv4;

	if (same_address(own, given) && !is_unspecified(own))
		return 0;
	return direction == EGRESS ? REASON_INVALID_SOURCE : REASON_UNKNOWN_TARGET;
}

/* A sender may leave a checksum to be written on the way, and say where: with that, a packet could
 * become another behind our back. What is judged must not be written any more. No helper tells
 * the place, but none cuts a packet off before it. */
static __always_inline bool is_rewritten(struct __sk_buff *skb, const struct packet *packet)
{
	int level;

	/* Of packets that a sender makes, only those that are left so are not changed by this. */
	bpf_csum_level(skb, BPF_CSUM_LEVEL_INC);
	level = bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY);
	if (level >= 0) {
		bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
		return false;
	}
	/* Two bytes, no earlier than behind the ports. */
	return bpf_skb_change_tail(skb, packet->l4 + PORTS_LENGTH + 1, 0) != -EINVAL;
}

/* Whether a packet comes from elsewhere with the address of another endpoint of this node, whose
 * packets come by its own interface. What this node itself sends comes by none. */
static __always_inline bool is_spoofed(struct __sk_buff *skb, const struct addr *source)
{
#ifdef SIDECAR_ENDPOINT
	return false; /* the interfaces of the node are not known here */
#else
	struct endpoint_value *endpoint;
	u32 from = skb->ingress_ifindex, *number;

	number = from ? address_lookup(source) : 0;
	if (!number)
		return false;
	endpoint = endpoint_lookup(number);
	return !endpoint || endpoint->ifindex != from;
#endif
}

static __always_inline bool is_icmp_error(const struct packet *packet)
{
	u8 type = packet->icmp_type;

	if (packet->ipv6)
		return type && type <= ICMPV6_LAST_ERROR;
	return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED ||
	       type == ICMP_PARAMETER_PROBLEM;
}

/* The packet that an ICMP error quotes; false if it cannot be told which it was. */
static __always_inline bool parse_quoted(struct __sk_buff *skb, const struct packet *packet,
					 struct packet *quoted)
{
	u32 offset = packet->l4 + 8;
	struct { be16 first; be16 second; be16 id; be16 last; } l4;

	if (packet->ipv6) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) < 0)
			return false;
		offset += sizeof(ip);
		quoted->ipv6 = 1;
		quoted->protocol = ip.nexthdr;
		__builtin_memcpy(&quoted->source, &ip.saddr, sizeof(quoted->source));
		__builtin_memcpy(&quoted->destination, &ip.daddr, sizeof(quoted->destination));
	} else {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) < 0 ||
		    (ip.frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET)))
			return false;
		offset += ip.ihl * 4;
		quoted->protocol = ip.protocol;
		ipv4_address(&quoted->source, ip.saddr);
		ipv4_address(&quoted->destination, ip.daddr);
	}
	if (bpf_skb_load_bytes(skb, offset, &l4, sizeof(l4)) < 0)
		return false;
	if (has_ports(quoted->protocol)) {
		quoted->source_port = l4.first;
		quoted->destination_port = l4.second;
		return true;
	}
	quoted->icmp_type = bpf_ntohs(l4.first) >> 8;
	quoted->source_port = l4.id;
	return is_icmp(quoted) && asks_for_echo(quoted);
}

/* An ICMP error about a connection that is allowed belongs to it. */
static __always_inline int related(struct __sk_buff *skb, const struct packet *packet,
				   u32 endpoint, u8 direction, u64 now)
{
	struct packet quoted = {}, back;
	struct conntrack_value *entry;
	struct conntrack_key key;

	if (!parse_quoted(skb, packet, &quoted))
		return NOT_RELATED;
	/* Only to the one who sent what is quoted, and from the endpoint only about what came. */
	if (!same_address(&quoted.source, &packet->destination) ||
	    (direction == EGRESS && !same_address(&quoted.destination, &packet->source)))
		return NOT_RELATED;
	key = conntrack_key(&quoted, endpoint, direction == EGRESS ? INGRESS : EGRESS);
	entry = conntrack_find(&key, now);
	if (entry && ((entry->flags & CT_UPSTREAM) || entry->epoch == (u32)config(CONFIG_EPOCH))) {
		if (!(entry->flags & CT_PROXIED))
			return REASON_FORWARDED;
		return to_proxy(skb, packet, direction, entry->peer_identity, 0);
	}
	if (direction == EGRESS)
		return NOT_RELATED;
	/* The proxy sent it, from the endpoint's address. */
	back = quoted;
	back.source = quoted.destination;
	back.destination = quoted.source;
	back.source_port = quoted.destination_port;
	back.destination_port = quoted.source_port;
	if (packet_owner(skb, &back, direction) != OWNER_UPSTREAM)
		return NOT_RELATED;
	return to_proxy(skb, packet, direction, IDENTITY_WORLD, 0);
}

/* Sent back from the egress hook, where it was judged: it is for the proxy. */
static __always_inline int arrive(struct __sk_buff *skb, const struct packet *packet,
				  u32 endpoint, u8 direction, u64 now)
{
	struct conntrack_key key = conntrack_key(packet, endpoint, direction);
	struct conntrack_value *entry = conntrack_find(&key, now);
	be16 port = 0;

	if (entry && !is_reply(entry, direction))
		port = entry->proxy_port;
	/* Its Ethernet address is the endpoint's, not this machine's. */
	bpf_skb_change_type(skb, PACKET_HOST);
	return give_to_proxy(skb, packet, port);
}

/* A connection that the proxy makes, as its mark says. */
static __always_inline int make_upstream(struct __sk_buff *skb, const struct packet *packet,
					 const struct conntrack_key *key, u8 direction,
					 u32 epoch, u64 now)
{
	struct judgement judgement = { .peer_identity = identity_of(&key->peer) };
	u32 number = key->endpoint;
	struct endpoint_value *endpoint = endpoint_lookup(&number);
	u16 flags = CT_PROXIED | CT_UPSTREAM | (direction == INGRESS ? CT_FROM_PEER : 0);

	if (endpoint)
		judgement.own_identity = endpoint->identity;
	return conntrack_make(skb, packet, key, &judgement, flags, direction, epoch, now);
}

/* The first packet of a connection, or the first that is seen of it: judged in its direction. */
static __always_inline int begin(struct __sk_buff *skb, const struct packet *packet,
				 const struct conntrack_key *key, u8 direction, bool known,
				 u32 epoch, u64 now)
{
	struct question question = {
		.endpoint = key->endpoint,
		.direction = direction,
		.protocol = key->protocol,
		.port = direction == EGRESS ? key->peer_port : key->own_port,
	};
	struct judgement judgement = {};
	u16 flags = direction == INGRESS ? CT_FROM_PEER : 0;
	enum owner owner = OWNER_OTHER;
	int reason;

	/* What the proxy has a socket for is its own, be the entry lost or never made. */
	if (!known && packet->fragment == WHOLE) {
		owner = packet_owner(skb, packet, direction);
		if (owner == OWNER_UPSTREAM)
			return to_proxy(skb, packet, direction, identity_of(&key->peer), 0);
	}
	if (direction == INGRESS && is_spoofed(skb, &key->peer))
		return REASON_INVALID_SOURCE;
	/* The middle of a connection that nobody has seen begin, or an answer: taken for the
	 * endpoint's own, it would go round the proxy for its port. */
	if (direction == EGRESS && !known && packet->protocol == IPPROTO_TCP &&
	    asks_proxy(key->endpoint, identity_of(&key->peer), key->own_port))
		return REASON_PROXY_NEEDED;
	if (is_icmp(packet))
		question.port = bpf_htons(packet->icmp_type);
	reason = judge(skb, packet, &key->peer, &question, &judgement);
	if (reason)
		return reason;
	if (is_icmp(packet) && !asks_for_echo(packet))
		return REASON_FORWARDED;
	if (judgement.audit)
		flags |= CT_AUDIT;
	if (judgement.redirect || owner == OWNER_LISTENER)
		flags |= CT_PROXIED;
	reason = conntrack_make(skb, packet, key, &judgement, flags, direction, epoch, now);
	if (reason || !(flags & CT_PROXIED))
		return reason;
	return to_proxy(skb, packet, direction,
			direction == EGRESS ? judgement.own_identity : judgement.peer_identity,
			judgement.proxy_port);
}

/* Something has changed since the connection was judged: is it still allowed? */
static __always_inline int judge_again(struct __sk_buff *skb, const struct packet *packet,
				       const struct conntrack_key *key,
				       struct conntrack_value *entry, u8 direction, u32 epoch)
{
	bool from_peer = entry->flags & CT_FROM_PEER;
	struct question question = {
		.endpoint = key->endpoint,
		.direction = from_peer ? INGRESS : EGRESS,
		.protocol = key->protocol,
		.port = from_peer ? key->own_port : key->peer_port,
		.proxied = !!(entry->flags & CT_PROXIED),
	};
	struct judgement judgement = {};
	u16 flags = entry->flags & ~CT_AUDIT;
	int reason;

	if (is_icmp(packet))
		question.port = bpf_htons(packet->ipv6 ? ICMPV6_ECHO_ASKS : ICMP_ECHO_REQUEST);
	reason = judge(skb, packet, &key->peer, &question, &judgement);
	if (reason)
		return reason;
	if (judgement.redirect) {
		/* The rest of a stream is nothing for a proxy; a datagram is. */
		if (!(flags & CT_PROXIED) &&
		    (packet->protocol != IPPROTO_UDP || is_reply(entry, direction)))
			return REASON_PROXY_NEEDED;
		flags |= CT_PROXIED;
		entry->proxy_port = judgement.proxy_port;
	}
	if (judgement.audit)
		flags |= CT_AUDIT;
	entry->flags = flags;
	entry->own_identity = judgement.own_identity;
	entry->peer_identity = judgement.peer_identity;
	entry->epoch = epoch;
	return 0;
}

/* What becomes of a packet: REASON_FORWARDED, REASON_TO_PROXY, or the reason of its drop.
 * direction: the packet's, seen from the endpoint; a constant of each program. */
static __always_inline int handle(struct __sk_buff *skb, const struct packet *packet,
				  const struct link_value *link, u8 direction)
{
	struct conntrack_value *entry = 0;
	struct conntrack_key key;
	u64 now = bpf_ktime_get_coarse_ns();
	u32 epoch = config(CONFIG_EPOCH), from_proxy = 0;
	bool opening = is_opening(packet);
	int reason;

	if (unlikely(is_discovery(packet)))
		return check_discovery(packet, direction, link);
	reason = check_address(packet, direction, link);
	if (unlikely(reason))
		return reason;
	if (unlikely(is_icmp(packet) && is_icmp_error(packet) && packet->fragment == WHOLE)) {
		reason = related(skb, packet, link->endpoint, direction, now);
		if (reason != NOT_RELATED)
			return reason;
	}
	key = conntrack_key(packet, link->endpoint, direction);
	if (likely(!is_icmp(packet)) || asks_for_echo(packet) || answers_echo(packet))
		entry = conntrack_find(&key, now);
	if (direction != INGRESS_HOOK)
		from_proxy = skb->mark & MARK_MASK;
	if (unlikely(from_proxy == MARK_FROM_UPSTREAM)) {
		if (!entry || (opening && !(entry->flags & CT_PROXIED)))
			return make_upstream(skb, packet, &key, direction, epoch, now);
	} else if (unlikely(from_proxy == MARK_FROM_LISTENER)) {
		if (!entry)
			return REASON_FORWARDED;
	} else {
		from_proxy = 0;
		if (unlikely(!entry))
			return begin(skb, packet, &key, direction, opening, epoch, now);
		/* A connection anew; or what the proxy made, but it is not the proxy's packet. */
		if (unlikely(opening || ((entry->flags & CT_UPSTREAM) && !is_reply(entry, direction))))
			return begin(skb, packet, &key, direction, true, epoch, now);
	}
	if (unlikely(entry->epoch != epoch && !(entry->flags & CT_UPSTREAM))) {
		reason = judge_again(skb, packet, &key, entry, direction, epoch);
		if (reason)
			return reason;
	}
	conntrack_see(skb, packet, &key, entry, direction, now);
	if (likely(from_proxy || !(entry->flags & CT_PROXIED)))
		return REASON_FORWARDED;
	return to_proxy(skb, packet, direction,
			direction == EGRESS ? entry->own_identity : entry->peer_identity,
			is_reply(entry, direction) ? 0 : entry->proxy_port);
}

static __always_inline void tell_drop(struct __sk_buff *skb, const struct packet *packet,
				      u32 endpoint, u8 direction, u8 reason)
{
	struct event *event = event_begin(skb, packet, EVENT_DROP, direction, endpoint);
	struct endpoint_value *own;
	u32 peer = 0;

	if (!event)
		return;
	event->reason = reason;
	if (packet->l4)
		peer = identity_of(direction == EGRESS ? &packet->destination : &packet->source);
	own = endpoint_lookup(&endpoint);
	event_identities(event, direction, own ? own->identity : 0, peer);
	event_end(event);
}

static __always_inline int run(struct __sk_buff *skb, u8 direction)
{
#ifdef SIDECAR_ENDPOINT
	u32 where = LINK_SIDECAR | (u32)(SIDECAR_ENDPOINT);
#else
	u32 where = skb->ifindex;
#endif
	struct link_value *link = link_lookup(&where);
	bool arrived = direction == INGRESS_HOOK && (skb->mark & MARK_MASK) == MARK_TO_PROXY;
	struct packet packet = {};
	int reason = REASON_NO_ENDPOINT;
	u32 endpoint = 0;

	if (likely(link)) {
		endpoint = link->endpoint;
		reason = parse(skb, &packet, endpoint);
		if (unlikely(reason == PARSED_ARP))
			reason = REASON_FORWARDED;
		else if (unlikely(!reason && arrived))
			reason = arrive(skb, &packet, endpoint,
					direction == EGRESS ? INGRESS : EGRESS,
					bpf_ktime_get_coarse_ns());
		else if (likely(!reason))
			reason = handle(skb, &packet, link, direction);
	}
	if (direction == EGRESS && likely(reason == REASON_FORWARDED && packet.l4) &&
	    unlikely(is_rewritten(skb, &packet)))
		reason = REASON_INVALID;
	/* It was counted when it was sent back here. */
	if (unlikely(arrived && reason == REASON_TO_PROXY))
		return TC_ACT_OK;
	if (likely(reason == REASON_FORWARDED)) {
		count_forwarded(endpoint, direction, skb->len);
		return TC_ACT_OK;
	}
	count(endpoint, direction, reason, skb->len);
	if (reason == REASON_TO_PROXY)
		return direction == INGRESS_HOOK ? TC_ACT_OK :
						   bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	tell_drop(skb, &packet, endpoint, direction, reason);
	return TC_ACT_SHOT;
}

int from_endpoint(struct __sk_buff *skb)
{
	return run(skb, EGRESS);
}

int to_endpoint(struct __sk_buff *skb)
{
	return run(skb, INGRESS);
}
