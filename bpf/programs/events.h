/* What is told: counters for every packet, events for what is rare.
 *
 * A ring buffer that is full loses events, never packets; how many is counted.
 */
#ifndef PROXYLIB_EVENTS_H
#define PROXYLIB_EVENTS_H

#include "parse.h"

static __always_inline void count(u32 endpoint, u8 direction, u8 reason, u32 bytes)
{
	struct counter_key key = {
		.endpoint = endpoint,
		.direction = direction,
		.reason = reason,
	};
	struct counter_value *value = counter_lookup(&key);

	if (value) {
		/* Each processor has its own: nobody else is writing. */
		value->packets++;
		value->bytes += bytes;
	} else {
		struct counter_value first = { .packets = 1, .bytes = bytes };

		counter_update(&key, &first);
	}
}

static __always_inline void count_forwarded(u32 endpoint, u8 direction, u32 bytes)
{
	struct traffic_value *traffic = traffic_lookup(&endpoint);

	if (unlikely(!traffic)) {
		count(endpoint, direction, REASON_FORWARDED, bytes);
	} else if (direction == EGRESS) {
		traffic->tx_packets++;
		traffic->tx_bytes += bytes;
	} else {
		traffic->rx_packets++;
		traffic->rx_bytes += bytes;
	}
}

/* An event with everything in it that the packet tells; null: the ring buffer is full. */
static __always_inline struct event *event_begin(struct __sk_buff *skb,
						 const struct packet *packet, u8 type,
						 u8 direction, u32 endpoint)
{
	struct event *event =
		bpf_ringbuf_reserve((void *)MAP_OF(MAP_EVENTS), sizeof(*event), 0);

	if (!event) {
		count(endpoint, direction, REASON_EVENTS_LOST, 0);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	event->type = type;
	event->direction = direction;
	event->flags = packet->ipv6 ? EVENT_IPV6 : 0;
	event->protocol = packet->protocol;
	event->tcp_flags = packet->tcp_flags;
	event->endpoint = endpoint;
	event->ifindex = skb->ifindex;
	event->length = skb->len;
	event->source = packet->source;
	event->destination = packet->destination;
	event->source_port = packet->source_port;
	event->destination_port = packet->destination_port;
	if (is_icmp(packet))
		event->destination_port = bpf_htons(packet->icmp_type);
	return event;
}

static __always_inline void event_end(struct event *event)
{
	bpf_ringbuf_submit(event, 0);
}

/* Puts the identities where they belong. direction: the packet's, seen from the endpoint. */
static __always_inline void event_identities(struct event *event, u8 direction, u32 own, u32 peer)
{
	event->source_identity = direction == EGRESS ? own : peer;
	event->destination_identity = direction == EGRESS ? peer : own;
}

#endif
