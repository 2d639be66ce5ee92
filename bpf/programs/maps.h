/* The maps, typed: what is not there is null, and a full map says so. */
#ifndef PROXYLIB_MAPS_H
#define PROXYLIB_MAPS_H

#include "common.h"

/* What established traffic does not meet is moved out of its way. */
#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

#define MAP_OF(number) bpf_pseudo_fd(1, number)

#define LOOKUP(name, number, key_type, value_type)                                            \
	static __always_inline value_type *name(const key_type *key)                          \
	{                                                                                     \
		return (value_type *)bpf_map_lookup_elem_(MAP_OF(number), (void *)key);       \
	}

LOOKUP(config_lookup, MAP_CONFIG, u32, u64)
LOOKUP(link_lookup, MAP_LINKS, u32, struct link_value)
LOOKUP(endpoint_lookup, MAP_ENDPOINTS, u32, struct endpoint_value)
LOOKUP(address_lookup, MAP_ADDRESSES, struct addr, u32)
LOOKUP(ipcache_lookup, MAP_IPCACHE, struct ipcache_key, u32)
LOOKUP(policy_lookup, MAP_POLICY, struct policy_key, struct policy_value)
LOOKUP(conntrack_lookup, MAP_CONNTRACK, struct conntrack_key, struct conntrack_value)
LOOKUP(fragment_lookup, MAP_FRAGMENTS, struct fragment_key, struct fragment_value)
LOOKUP(traffic_lookup, MAP_TRAFFIC, u32, struct traffic_value)
LOOKUP(counter_lookup, MAP_COUNTERS, struct counter_key, struct counter_value)

#define UPDATE(name, number, key_type, value_type)                                            \
	static __always_inline int name(const key_type *key, const value_type *value)         \
	{                                                                                     \
		return bpf_map_update_elem_(MAP_OF(number), (void *)key, (void *)value,       \
					    BPF_ANY);                                         \
	}

UPDATE(conntrack_update, MAP_CONNTRACK, struct conntrack_key, struct conntrack_value)
UPDATE(fragment_update, MAP_FRAGMENTS, struct fragment_key, struct fragment_value)
UPDATE(counter_update, MAP_COUNTERS, struct counter_key, struct counter_value)

static __always_inline u64 config(u32 slot)
{
	u64 *value = config_lookup(&slot);

	return value ? *value : 0;
}

static __always_inline bool same_address(const struct addr *a, const struct addr *b)
{
	return a->words[3] == b->words[3] && a->words[2] == b->words[2] &&
	       a->words[1] == b->words[1] && a->words[0] == b->words[0];
}

#endif
