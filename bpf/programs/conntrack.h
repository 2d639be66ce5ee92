/* Connections as an endpoint sees them: who made it, who judged it and when, is it alive?
 *
 * What has expired is not there. An entry of another epoch than the policy's is judged again by
 * the next packet, so that established traffic costs one look-up whatever the policy's size.
 */
#ifndef PROXYLIB_CONNTRACK_H
#define PROXYLIB_CONNTRACK_H

#include "policy.h"

#define SECOND 1000000000ULL
#define LIFETIME_TCP (21600 * SECOND)
#define LIFETIME_SYN (60 * SECOND)
#define LIFETIME_CLOSING (10 * SECOND)
#define LIFETIME_ANY (60 * SECOND)

static __always_inline struct conntrack_key conntrack_key(const struct packet *packet,
							  u32 endpoint, u8 direction)
{
	struct conntrack_key key = { .endpoint = endpoint, .protocol = packet->protocol };

	if (direction == EGRESS) {
		key.own_port = packet->source_port;
		key.peer_port = packet->destination_port;
		key.peer = packet->destination;
	} else {
		key.own_port = packet->destination_port;
		key.peer_port = packet->source_port;
		key.peer = packet->source;
	}
	return key;
}

static __always_inline struct conntrack_value *conntrack_find(const struct conntrack_key *key,
							       u64 now)
{
	struct conntrack_value *entry = conntrack_lookup(key);

	return entry && entry->expires > now ? entry : 0;
}

/* True for a packet that goes against the direction in which the connection was made. */
static __always_inline bool is_reply(const struct conntrack_value *entry, u8 direction)
{
	return direction == (entry->flags & CT_FROM_PEER ? EGRESS : INGRESS);
}

/* The first packet of a TCP connection, be there an entry of an older one or not. */
static __always_inline bool is_opening(const struct packet *packet)
{
	return packet->protocol == IPPROTO_TCP &&
	       (packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
}

static __always_inline void tell_trace(struct __sk_buff *skb, const struct packet *packet,
				       const struct conntrack_value *entry, u32 endpoint,
				       u8 direction, u8 point)
{
	struct event *event;

	if (!(config(CONFIG_FLAGS) & FLAG_TRACE))
		return;
	event = event_begin(skb, packet, EVENT_TRACE, direction, endpoint);
	if (!event)
		return;
	event_identities(event, direction, entry->own_identity, entry->peer_identity);
	event->reason = point;
	event->proxy_port = entry->proxy_port;
	if (is_reply(entry, direction))
		event->flags |= EVENT_REPLY;
	if (entry->flags & CT_AUDIT)
		event->flags |= EVENT_AUDIT;
	if (entry->flags & CT_PROXIED)
		event->flags |= EVENT_PROXIED;
	event_end(event);
}

static __always_inline u64 lifetime(const struct conntrack_key *key, u16 flags)
{
	if (key->protocol != IPPROTO_TCP)
		return LIFETIME_ANY;
	if ((flags & CT_TX_CLOSING) && (flags & CT_RX_CLOSING))
		return LIFETIME_CLOSING;
	return flags & CT_SEEN_REPLY ? LIFETIME_TCP : LIFETIME_SYN;
}

static __always_inline void conntrack_account(struct __sk_buff *skb,
					      struct conntrack_value *entry, u8 direction,
					      u64 wanted)
{
	if (likely(!(wanted & FLAG_ACCOUNTING)))
		return;
	if (direction == EGRESS) {
		__sync_fetch_and_add(&entry->tx_packets, 1);
		__sync_fetch_and_add(&entry->tx_bytes, skb->len);
	} else {
		__sync_fetch_and_add(&entry->rx_packets, 1);
		__sync_fetch_and_add(&entry->rx_bytes, skb->len);
	}
}

/* Follows the connection's life by a packet. Writes only where something is new. */
static __always_inline void conntrack_see(struct __sk_buff *skb, const struct packet *packet,
					  const struct conntrack_key *key,
					  struct conntrack_value *entry, u8 direction, u64 now)
{
	u64 wanted = config(CONFIG_FLAGS), expires;
	bool every = wanted & (direction == INGRESS ? FLAG_TRACE_TO : FLAG_TRACE_FROM);
	u16 flags = entry->flags, before = flags;

	conntrack_account(skb, entry, direction, wanted);
	if (is_reply(entry, direction))
		flags |= CT_SEEN_REPLY;
	if (unlikely(packet->tcp_flags & TCP_RST))
		flags |= CT_TX_CLOSING | CT_RX_CLOSING;
	else if (unlikely(packet->tcp_flags & TCP_FIN))
		flags |= direction == EGRESS ? CT_TX_CLOSING : CT_RX_CLOSING;
	expires = now + lifetime(key, flags);
	if (unlikely(flags != before)) {
		entry->flags = flags;
		entry->expires = expires;
		if (flags & ~before & CT_SEEN_REPLY) {
			tell_trace(skb, packet, entry, key->endpoint, direction, TRACE_REPLY);
			every = false;
		}
		if (lifetime(key, flags) == LIFETIME_CLOSING) {
			tell_trace(skb, packet, entry, key->endpoint, direction, TRACE_CLOSED);
			every = false;
		}
	} else if (unlikely(expires > entry->expires + SECOND)) {
		entry->expires = expires;
	}
	if (unlikely(every))
		tell_trace(skb, packet, entry, key->endpoint, direction, TRACE_ESTABLISHED);
}

/* Makes the entry of a connection that has been judged, or that the proxy makes. The packet
 * counts as seen. epoch: taken before it was judged. Returns 0 or a reason. */
static __always_inline int conntrack_make(struct __sk_buff *skb, const struct packet *packet,
					  const struct conntrack_key *key,
					  const struct judgement *judgement, u16 flags,
					  u8 direction, u32 epoch, u64 now)
{
	struct conntrack_value entry = {
		.expires = now + lifetime(key, flags),
		.epoch = epoch,
		.own_identity = judgement->own_identity,
		.peer_identity = judgement->peer_identity,
		.flags = flags,
		.proxy_port = judgement->proxy_port,
	};

	conntrack_account(skb, &entry, direction, config(CONFIG_FLAGS));
	if (conntrack_update(key, &entry) < 0)
		return REASON_CT_CREATE_FAILED;
	tell_trace(skb, packet, &entry, key->endpoint, direction, TRACE_NEW);
	return 0;
}

#endif
