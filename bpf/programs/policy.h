/* May this connection be made, and by which proxy? xds/mapstate.py says the same in Python.
 *
 * Two look-ups of the longest prefix, for the peer's identity and for any; the greater verdict
 * of the two wins, and nothing said is denied. Where both ends are endpoints of this node and
 * one of them wants a proxy, both policies are judged at once, where the connection begins: one
 * proxy then serves both, and it is entered once.
 */
#ifndef PROXYLIB_POLICY_H
#define PROXYLIB_POLICY_H

#include "events.h"

#define IDENTITY_ANY 0
#define IDENTITY_HOST 1
#define IDENTITY_WORLD 2
#define IDENTITY_UNRESOLVED 0xffffffff /* the ipcache has no room to tell these addresses apart */

/* A connection, seen from an endpoint. */
struct question {
	u32 endpoint; /* number */
	u32 own_identity;
	u32 peer_identity;
	u8 direction; /* INGRESS: the peer makes it */
	u8 protocol;
	be16 port; /* of the side it is made to; or the ICMP type */
	u8 proxied; /* it goes to a proxy already */
};

struct judgement {
	u32 own_identity;
	u32 peer_identity;
	be16 proxy_port; /* 0: no proxy */
	u8 audit; /* passes only because of audit mode */
	u8 redirect;
};

static __always_inline u32 identity_of(const struct addr *address)
{
	struct ipcache_key key = { .prefixlen = 128, .address = *address };
	u32 *identity = ipcache_lookup(&key);

	return identity ? *identity : IDENTITY_WORLD;
}

/* True if a proxy judges it. Also where only a policy in audit mode wants one, if it is there:
 * its verdicts are logged. */
static __always_inline bool wants_proxy(const struct policy_value *said)
{
	return said->verdict == VERDICT_REDIRECT ||
	       (said->verdict == VERDICT_ALLOW && said->would == VERDICT_REDIRECT &&
		said->proxy_port);
}

static __always_inline bool passes(const struct policy_value *said)
{
	return said->verdict == VERDICT_ALLOW || said->verdict == VERDICT_REDIRECT;
}

static __always_inline bool is_audit(const struct policy_value *said)
{
	return passes(said) && (said->would == VERDICT_NONE || said->would == VERDICT_DENY);
}

/* What the policy in `slot` says: the two look-ups, joined. */
static __always_inline struct policy_value ask_slot(u32 slot, const struct question *question)
{
	struct policy_key key = {
		.prefixlen = 96,
		.slot = bpf_htonl(slot),
		.identity = bpf_htonl(question->peer_identity),
		.direction = question->direction,
		.protocol = question->protocol,
		.port = question->port,
	};
	struct policy_value joined = {}, *found = policy_lookup(&key);

	if (found)
		joined = *found;
	key.identity = IDENTITY_ANY;
	found = policy_lookup(&key);
	if (found) {
		/* Also an entry that allows nothing by itself may say where to: what passes only
		 * because of audit mode is judged all the same. */
		if (!joined.proxy_port && joined.verdict != VERDICT_REDIRECT) {
			joined.proxy_port = found->proxy_port;
			joined.proxy_port_both = found->proxy_port_both;
		}
		if (found->verdict > joined.verdict)
			joined.verdict = found->verdict;
		if (found->would > joined.would)
			joined.would = found->would;
	}
	return joined;
}

/* What the endpoint's policy says. If it is replaced meanwhile, the old slot's entries are being
 * deleted, and what was found may be half of it: the new one is asked. Returns 0 or a reason. */
static __always_inline int ask(const struct question *question, struct policy_value *said)
{
	struct endpoint_value *endpoint;
	u32 slot;

	for (int i = 0; i < 2; i++) {
		endpoint = endpoint_lookup(&question->endpoint);
		if (!endpoint)
			return REASON_NO_POLICY;
		slot = endpoint->slot;
		*said = ask_slot(slot, question);
		endpoint = endpoint_lookup(&question->endpoint);
		if (likely(endpoint && endpoint->slot == slot))
			return 0;
	}
	return REASON_NO_POLICY;
}

/* Whether connections from `identity` to this TCP port of an endpoint go to a proxy. A deny beside
 * that makes no difference here. */
static __always_inline bool asks_proxy(u32 number, u32 identity, be16 port)
{
	struct endpoint_value *endpoint = endpoint_lookup(&number);
	struct policy_key key = {
		.prefixlen = 96,
		.identity = bpf_htonl(identity),
		.direction = INGRESS,
		.protocol = IPPROTO_TCP,
		.port = port,
	};
	struct policy_value *found;

	if (!endpoint)
		return false;
	key.slot = bpf_htonl(endpoint->slot);
	found = policy_lookup(&key);
	if (found && found->verdict == VERDICT_REDIRECT)
		return true;
	key.identity = IDENTITY_ANY;
	found = policy_lookup(&key);
	return found && found->verdict == VERDICT_REDIRECT;
}

static __always_inline int denied(const struct policy_value *said)
{
	return said->verdict == VERDICT_DENY ? REASON_POLICY_DENY : REASON_POLICY;
}

static __always_inline void tell_verdict(struct __sk_buff *skb, const struct packet *packet,
					 const struct question *question,
					 const struct policy_value *said)
{
	struct event *event;

	if (!(config(CONFIG_FLAGS) & FLAG_POLICY_VERDICT))
		return;
	event = event_begin(skb, packet, EVENT_POLICY_VERDICT, question->direction,
			    question->endpoint);
	if (!event)
		return;
	event_identities(event, question->direction, question->own_identity,
			 question->peer_identity);
	event->verdict = said->verdict;
	event->would = said->would;
	event->proxy_port = said->proxy_port;
	if (is_audit(said))
		event->flags |= EVENT_AUDIT;
	event_end(event);
}

/* Judges for both ends of a connection from `near` to another endpoint of this node, if there
 * is one at `address` and one of the two wants a proxy. Returns 0 or a reason; changes the
 * proxy's port in `said` to that of the proxy that serves both. */
static __always_inline int ask_far_end(struct __sk_buff *skb, const struct packet *packet,
				       const struct addr *address, const struct question *near,
				       struct policy_value *said)
{
	struct question question = *near;
	struct policy_value far;
	u32 *number = address_lookup(address);
	int reason;

	if (!number)
		return 0;
	question.endpoint = *number;
	question.direction = INGRESS;
	question.own_identity = near->peer_identity;
	question.peer_identity = near->own_identity;
	reason = ask(&question, &far);
	if (reason)
		return reason;
	/* Its own program judges the packet when it comes by, which the proxy's do not. */
	if (!near->proxied && !wants_proxy(said) && !wants_proxy(&far))
		return 0;
	tell_verdict(skb, packet, &question, &far);
	if (!passes(&far))
		return denied(&far);
	if (!wants_proxy(&far))
		return 0;
	if (!wants_proxy(said)) {
		said->verdict = VERDICT_REDIRECT;
		said->proxy_port = far.proxy_port;
		return 0;
	}
	if (!said->proxy_port_both || said->proxy_port_both != far.proxy_port_both)
		return REASON_TWO_PARSERS;
	said->proxy_port = said->proxy_port_both;
	return 0;
}

/* Judges a connection that `question` describes but for its identities. peer: the other side's
 * address. Returns 0 and fills `judgement`, or a reason. */
static __always_inline int judge(struct __sk_buff *skb, const struct packet *packet,
				 const struct addr *peer, struct question *question,
				 struct judgement *judgement)
{
	struct endpoint_value *endpoint = endpoint_lookup(&question->endpoint);
	struct policy_value said;
	int reason;

	if (!endpoint)
		return REASON_NO_POLICY;
	question->own_identity = endpoint->identity;
	question->peer_identity = identity_of(peer);
	if (question->peer_identity == IDENTITY_UNRESOLVED)
		return REASON_INVALID_IDENTITY;
	reason = ask(question, &said);
	if (reason)
		return reason;
	tell_verdict(skb, packet, question, &said);
	if (!passes(&said))
		return denied(&said);
	judgement->audit = is_audit(&said);
#ifndef SIDECAR_ENDPOINT
	if (question->direction == EGRESS) {
		reason = ask_far_end(skb, packet, peer, question, &said);
		if (reason)
			return reason;
	}
#endif
	judgement->own_identity = question->own_identity;
	judgement->peer_identity = question->peer_identity;
	judgement->redirect = wants_proxy(&said);
	if (!judgement->redirect)
		return 0;
	if (question->protocol != IPPROTO_TCP && question->protocol != IPPROTO_UDP)
		return REASON_PROXY_UNSUPPORTED_PROTOCOL;
	judgement->proxy_port = said.proxy_port;
	return said.proxy_port ? 0 : REASON_NO_PROXY_PORT;
}

#endif
