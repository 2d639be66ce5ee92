/* Programs for tests of the loader: an endpoint with a policy passes, others do not. */
#include "common.h"
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#ifdef SIDECAR_ENDPOINT
#define LINK_KEY (LINK_SIDECAR | SIDECAR_ENDPOINT)
#else
#define LINK_KEY skb->ifindex
#endif

static __always_inline void count(u32 endpoint, u8 direction, u8 reason, u32 length)
{
	void *map = (void *)bpf_pseudo_fd(1, MAP_COUNTERS);
	struct counter_key key = {.endpoint = endpoint, .direction = direction, .reason = reason};
	struct counter_value first = {.packets = 1, .bytes = length};
	struct counter_value *found = bpf_map_lookup_elem(map, &key);

	if (found) {
		found->packets++;
		found->bytes += length;
	} else {
		bpf_map_update_elem(map, &key, &first, BPF_ANY);
	}
}

static __always_inline int judge(struct __sk_buff *skb, u8 direction)
{
	struct event event = {.type = EVENT_DROP, .direction = direction};
	struct endpoint_value *endpoint = 0;
	struct link_value *link;
	u32 key = LINK_KEY;

	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return TC_ACT_OK;
	link = bpf_map_lookup_elem((void *)bpf_pseudo_fd(1, MAP_LINKS), &key);
	if (link) {
		event.endpoint = link->endpoint;
		endpoint = bpf_map_lookup_elem((void *)bpf_pseudo_fd(1, MAP_ENDPOINTS),
					       &event.endpoint);
	}
	if (endpoint && endpoint->slot) {
		count(event.endpoint, direction, REASON_FORWARDED, skb->len);
		return TC_ACT_OK;
	}
	event.reason = endpoint ? REASON_NO_POLICY : REASON_NO_ENDPOINT;
	event.length = skb->len;
	event.ifindex = skb->ifindex;
	count(event.endpoint, direction, event.reason, skb->len);
	bpf_ringbuf_output((void *)bpf_pseudo_fd(1, MAP_EVENTS), &event, sizeof(event), 0);
	return TC_ACT_SHOT;
}

int from_endpoint(struct __sk_buff *skb)
{
	return judge(skb, EGRESS);
}

int to_endpoint(struct __sk_buff *skb)
{
	return judge(skb, INGRESS);
}
