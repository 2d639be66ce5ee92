/* From a frame to a packet: addresses, protocol, ports; or the reason why it is none.
 *
 * Whoever sends is hostile: every length is held against the one around it, and what is not
 * understood is refused. Headers are copied, so that it makes no difference which parts of a frame
 * lie in one piece.
 */
#ifndef PROXYLIB_PARSE_H
#define PROXYLIB_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "maps.h"

#define ICMP_ECHO_REPLY 0
#define ICMP_UNREACHABLE 3
#define ICMP_ECHO_REQUEST 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
#define ICMPV6_LAST_ERROR 4
#define ICMPV6_ECHO_ASKS 128
#define ICMPV6_ECHO_ANSWERS 129
#define MLD_QUERY 130
#define MLD_REPORT 131
#define MLD_DONE 132
#define NDP_ROUTER_SOLICITATION 133
#define NDP_ROUTER_ADVERTISEMENT 134
#define NDP_REDIRECT 137
#define MLD2_REPORT 143

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_FRAGMENT_OFFSET 0x1fff
#define IPV4_SSRR 137
#define IPV4_LSRR 131
#define IPV6_EXTENSION_HEADERS 6 /* more of them than any packet in use has */
#define TCP_LEAST 20 /* bytes of a header */
#define UDP_LEAST 8
#define SCTP_LEAST 12
#define PORTS_LENGTH 4 /* of what every header begins with that has ports */
#define LONGEST_PACKET 0xffff /* what a header's own length can say */

/* Not a reason: an ARP frame, which is for the link only. */
#define PARSED_ARP 2

enum fragment { WHOLE = 0, FIRST_FRAGMENT, LATER_FRAGMENT };

struct packet {
	struct addr source;
	struct addr destination;
	be16 source_port; /* of an ICMP echo: the identifier, on the side that asks */
	be16 destination_port;
	be32 fragment_id;
	u16 l4; /* where the header of `protocol` begins */
	u16 l4_length; /* bytes from there to the packet's end; 65,535 and more: 65,535 */
	u8 protocol;
	u8 tcp_flags;
	u8 icmp_type;
	u8 hop_limit;
	u8 ipv6;
	u8 fragment;
};

/* Copies words of a frame; half a word may be the last. offset: a constant. Returns a negative
 * number if the frame has not as many bytes. */
static __always_inline int load(struct __sk_buff *skb, u32 offset, void *to, u32 size)
{
	void *at = (void *)(long)skb->data + offset;

	/* Mostly headers lie in one piece, and the helper's call can be saved. */
	if (unlikely(at + size > (void *)(long)skb->data_end))
		return bpf_skb_load_bytes(skb, offset, to, size);
	for (u32 i = 0; i < size / 4; i++)
		((u32 *)to)[i] = ((u32 *)at)[i];
	if (size & 2)
		((u16 *)to)[size / 2 - 1] = ((u16 *)at)[size / 2 - 1];
	return 0;
}

/* The same for the header behind IP's. */
static __always_inline int load_l4(struct __sk_buff *skb, u32 offset, void *to, u32 size)
{
	if (likely(offset == ETH_HLEN + sizeof(struct iphdr)))
		return load(skb, ETH_HLEN + sizeof(struct iphdr), to, size);
	if (likely(offset == ETH_HLEN + sizeof(struct ipv6hdr)))
		return load(skb, ETH_HLEN + sizeof(struct ipv6hdr), to, size);
	return bpf_skb_load_bytes(skb, offset, to, size);
}

static __always_inline void ipv4_address(struct addr *address, be32 ipv4)
{
	address->words[0] = 0;
	address->words[1] = 0;
	address->words[2] = bpf_htonl(0xffff);
	address->words[3] = ipv4;
}

static __always_inline bool is_ipv4(const struct addr *address)
{
	return !address->words[0] && !address->words[1] &&
	       address->words[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_unspecified(const struct addr *address)
{
	return !address->words[0] && !address->words[1] && !address->words[2] &&
	       !address->words[3];
}

static __always_inline bool is_icmp(const struct packet *packet)
{
	return packet->protocol == (packet->ipv6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
}

/* True for what has two ports where TCP has them. */
static __always_inline bool has_ports(u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

static __always_inline bool asks_for_echo(const struct packet *packet)
{
	return packet->icmp_type == (packet->ipv6 ? ICMPV6_ECHO_ASKS : ICMP_ECHO_REQUEST);
}

static __always_inline bool answers_echo(const struct packet *packet)
{
	return packet->icmp_type == (packet->ipv6 ? ICMPV6_ECHO_ANSWERS : ICMP_ECHO_REPLY);
}

/* None of the options may name another destination. Every byte is taken for an option's type, so
 * one in another option's data is refused, too: simple, and nothing can hide. Whether options are
 * well-formed is seen by the kernel, which drops those that are not. */
static __always_inline int parse_ipv4_options(struct __sk_buff *skb, u32 words)
{
	u32 offset = ETH_HLEN + sizeof(struct iphdr);
	u8 bytes[4] __attribute__((aligned(4)));

	for (u32 i = 0; i < 10; i++) {
		/* Else the compiler makes one end of the loop's two, which the verifier misses. */
		asm volatile("" : "+r"(i));
		if (i >= words)
			return 0;
		if (bpf_skb_load_bytes(skb, offset + i * sizeof(bytes), bytes, sizeof(bytes)) < 0)
			return REASON_INVALID;
		for (int n = 0; n < sizeof(bytes); n++)
			if (bytes[n] == IPV4_LSRR || bytes[n] == IPV4_SSRR)
				return REASON_SOURCE_ROUTE;
	}
	return 0;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, const struct iphdr *ip,
				      struct packet *packet)
{
	u32 available = skb->len - ETH_HLEN, header = ip->ihl * 4;
	u32 length = bpf_ntohs(ip->tot_len);
	u16 fragment = bpf_ntohs(ip->frag_off);

	/* Segments that the kernel has not cut yet may be longer than the field can say. */
	if (!length && available > LONGEST_PACKET)
		length = available;
	if (unlikely(ip->version != 4 || header < sizeof(*ip) || length < header || length > available))
		return REASON_INVALID;
	packet->l4 = ETH_HLEN + header;
	length -= header;
	packet->l4_length = length > LONGEST_PACKET ? LONGEST_PACKET : length;
	packet->protocol = ip->protocol;
	packet->hop_limit = ip->ttl;
	ipv4_address(&packet->source, ip->saddr);
	ipv4_address(&packet->destination, ip->daddr);
	if (fragment & IPV4_FRAGMENT_OFFSET)
		packet->fragment = LATER_FRAGMENT;
	else if (fragment & IPV4_MORE_FRAGMENTS)
		packet->fragment = FIRST_FRAGMENT;
	packet->fragment_id = ip->id;
	/* RFC 3128: such a fragment is there to overwrite the header's flags. */
	if ((fragment & IPV4_FRAGMENT_OFFSET) == 1 && ip->protocol == IPPROTO_TCP)
		return REASON_INVALID;
	if (unlikely(header > sizeof(*ip)))
		return parse_ipv4_options(skb, ip->ihl - 5);
	return 0;
}

/* Walks the extension headers up to one that is a protocol. */
static __always_inline int parse_ipv6_extensions(struct __sk_buff *skb, struct packet *packet,
						 u32 length)
{
	struct { u8 next; u8 length; be16 offset; be32 id; } header;
	u32 offset = ETH_HLEN + sizeof(struct ipv6hdr), end = offset + length, size;
	u8 next = packet->protocol;

	for (int i = 0; i <= IPV6_EXTENSION_HEADERS; i++) {
		bool extension = next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING ||
				 next == IPPROTO_FRAGMENT || next == IPPROTO_DSTOPTS ||
				 next == IPPROTO_AH;

		if (likely(!extension)) {
			packet->protocol = next;
			packet->l4 = offset;
			length = end - offset;
			packet->l4_length = length > LONGEST_PACKET ? LONGEST_PACKET : length;
			return 0;
		}
		if (next == IPPROTO_HOPOPTS && i)
			return REASON_INVALID_EXTENSION_HEADER;
		if (bpf_skb_load_bytes(skb, offset, &header, sizeof(header)) < 0)
			return REASON_INVALID_EXTENSION_HEADER;
		size = (header.length + 1) * 8;
		if (next == IPPROTO_AH)
			size = (header.length + 2) * 4;
		if (next == IPPROTO_FRAGMENT) {
			u16 fragment = bpf_ntohs(header.offset);

			if (packet->fragment)
				return REASON_INVALID_EXTENSION_HEADER;
			size = 8;
			packet->fragment_id = header.id;
			/* RFC 3128, as for IPv4. */
			if (fragment >> 3 == 1 && header.next == IPPROTO_TCP)
				return REASON_INVALID;
			if (fragment >> 3)
				packet->fragment = LATER_FRAGMENT;
			else if (fragment & 1)
				packet->fragment = FIRST_FRAGMENT;
		}
		/* Segments left: the destination is not the one of the header. */
		if (next == IPPROTO_ROUTING && (bpf_ntohs(header.offset) & 0xff))
			return REASON_SOURCE_ROUTE;
		offset += size;
		if (offset > end)
			return REASON_INVALID_EXTENSION_HEADER;
		next = header.next;
		/* What follows is a piece of a header or of data: nothing to walk. */
		if (packet->fragment == LATER_FRAGMENT) {
			packet->protocol = next;
			packet->l4 = offset;
			packet->l4_length = 0;
			return 0;
		}
	}
	return REASON_INVALID_EXTENSION_HEADER;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *packet)
{
	struct ipv6hdr ip;
	u32 available = skb->len - ETH_HLEN - sizeof(ip), length;

	if (load(skb, ETH_HLEN, &ip, sizeof(ip)) < 0)
		return REASON_INVALID;
	length = bpf_ntohs(ip.payload_len);
	if (!length && available > LONGEST_PACKET)
		length = available;
	if (ip.version != 6 || length > available)
		return REASON_INVALID;
	packet->ipv6 = 1;
	packet->protocol = ip.nexthdr;
	packet->hop_limit = ip.hop_limit;
	__builtin_memcpy(&packet->source, &ip.saddr, sizeof(packet->source));
	__builtin_memcpy(&packet->destination, &ip.daddr, sizeof(packet->destination));
	/* They would be taken for IPv4's; RFC 4291 has no use for them on a wire. */
	if (is_ipv4(&packet->source) || is_ipv4(&packet->destination))
		return REASON_INVALID;
	/* Who connects to the unspecified address, as the proxy would for its client, gets itself. */
	if (is_unspecified(&packet->destination))
		return REASON_INVALID;
	return parse_ipv6_extensions(skb, packet, length);
}

/* What is read of a header with ports. */
struct l4_header {
	be16 source;
	be16 destination;
	be16 udp_length;
	u16 udp_sum;
	u32 tcp_acknowledged;
	u8 tcp_length; /* in the upper half, of words */
	u8 tcp_flags;
	u16 tcp_window;
};

static __always_inline int parse_ports(struct __sk_buff *skb, struct packet *packet)
{
	bool tcp = packet->protocol == IPPROTO_TCP, udp = packet->protocol == IPPROTO_UDP;
	u32 least = tcp ? TCP_LEAST : udp ? UDP_LEAST : SCTP_LEAST;
	struct l4_header l4;
	u32 told;

	if (packet->l4_length < least)
		return REASON_CT_INVALID_HEADER;
	if (tcp) {
		if (load_l4(skb, packet->l4, &l4, sizeof(l4)) < 0)
			return REASON_CT_INVALID_HEADER;
		packet->tcp_flags = l4.tcp_flags;
		told = (l4.tcp_length >> 4) * 4;
	} else {
		if (load_l4(skb, packet->l4, &l4, UDP_LEAST) < 0)
			return REASON_CT_INVALID_HEADER;
		/* A datagram's length is that of all of its fragments. */
		told = udp && packet->fragment == WHOLE ? bpf_ntohs(l4.udp_length) : least;
	}
	if (told < least || told > packet->l4_length)
		return REASON_CT_INVALID_HEADER;
	packet->source_port = l4.source;
	packet->destination_port = l4.destination;
	return 0;
}

static __always_inline int parse_icmp(struct __sk_buff *skb, struct packet *packet)
{
	struct { u8 type; u8 code; be16 sum; be16 id; be16 sequence; } icmp;

	if (packet->l4_length < sizeof(icmp) ||
	    bpf_skb_load_bytes(skb, packet->l4, &icmp, sizeof(icmp)) < 0)
		return REASON_CT_INVALID_HEADER;
	packet->icmp_type = icmp.type;
	if (asks_for_echo(packet))
		packet->source_port = icmp.id;
	else if (answers_echo(packet))
		packet->destination_port = icmp.id;
	return 0;
}

/* The ports of a fragment: those of the datagram's first one, which has them. */
static __always_inline int parse_fragment(struct packet *packet, u32 endpoint)
{
	struct fragment_key key = {
		.endpoint = endpoint,
		.protocol = packet->protocol,
		.id = packet->fragment_id,
		.source = packet->source,
		.destination = packet->destination,
	};
	struct fragment_value *found;

	if (packet->fragment == FIRST_FRAGMENT) {
		struct fragment_value value = {
			.source_port = packet->source_port,
			.destination_port = packet->destination_port,
			.icmp_type = packet->icmp_type,
		};
		return fragment_update(&key, &value) < 0 ? REASON_FRAGMENT_NOT_FOUND : 0;
	}
	found = fragment_lookup(&key);
	if (!found)
		return REASON_FRAGMENT_NOT_FOUND;
	packet->source_port = found->source_port;
	packet->destination_port = found->destination_port;
	packet->icmp_type = found->icmp_type;
	return 0;
}

/* What is not IP. */
static __always_inline int parse_other(u16 type)
{
	if (type == ETH_P_ARP)
		return PARSED_ARP;
	if (type == ETH_P_8021Q || type == ETH_P_8021AD)
		return REASON_VLAN;
	return type < ETH_P_802_3_MIN ? REASON_UNSUPPORTED_L2 : REASON_UNSUPPORTED_L3;
}

/* Fills `packet`, which is all zeros. Returns 0, PARSED_ARP, or a reason. */
static __always_inline int parse(struct __sk_buff *skb, struct packet *packet, u32 endpoint)
{
	struct iphdr ip;
	int reason = 0;
	be16 type;

	/* A tag may be out of the frame already (the kernel does that before its first hook). */
	if (unlikely(skb->vlan_present))
		return REASON_VLAN;
	if (unlikely(load(skb, ETH_HLEN - sizeof(type), &type, sizeof(type)) < 0 ||
		     load(skb, ETH_HLEN, &ip, sizeof(ip)) < 0))
		return REASON_INVALID;
	if (likely(type == bpf_htons(ETH_P_IP)))
		reason = parse_ipv4(skb, &ip, packet);
	else if (likely(type == bpf_htons(ETH_P_IPV6)))
		reason = parse_ipv6(skb, packet);
	else
		return parse_other(bpf_ntohs(type));
	if (unlikely(reason))
		return reason;
	if (unlikely(!has_ports(packet->protocol) && !is_icmp(packet)))
		return 0;
	if (likely(packet->fragment != LATER_FRAGMENT))
		reason = unlikely(is_icmp(packet)) ? parse_icmp(skb, packet) :
						     parse_ports(skb, packet);
	if (unlikely(!reason && packet->fragment))
		reason = parse_fragment(packet, endpoint);
	return reason;
}

#endif
