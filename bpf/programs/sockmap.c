/* Bytes between two sockets of this node go from program to program past the TCP stack.
 *
 * `socket_events` (sock_ops, on a cgroup) puts sockets that may take part into a sockhash when
 * their connection is established; `on_send` (sk_msg, on the sockhash) decides for each message
 * that such a socket sends whether it goes by the wire or straight to the peer's socket.
 *
 * Which two sockets are a pair: a socket's key is its addresses, its ports and both sequence
 * numbers after the handshake; its peer's is the same, mirrored. So only the two ends of one TCP
 * connection find each other, on one node, with nothing between that rewrites them; two
 * connections of Envoy's with equal addresses and ports differ in their sequence numbers.
 *
 * When a message goes past the stack, for order: only if the peer's program has read every byte
 * that was ever sent by the wire (the peer's copied_seq is our write_seq). The other way round
 * needs no care: a socket's reader gets what was put into it directly before what came by the
 * wire. So a connection may change between the two at any message, and switching off is safe.
 *
 * For policy: a connection's first message of each direction, its first after a change of policy
 * (SWITCH_EPOCH) and one in an hour go by the wire, where the tc programs judge and track them; what
 * follows goes past the stack only when the peer has acknowledged it.
 *
 * For memory: a slow reader holds at most half of its receive buffer, and as much again for what
 * the kernel needs around many small messages; what is more goes by the wire, whose window stops
 * the sender. (Half: the rest is what TCP needs to accept anything.)
 *
 * For programs that block: recv(2) of a socket in a sockhash may say EAGAIN when woken for
 * another cause. So only a socket that its program has made non-blocking takes part; for an
 * accepted one, which has no program yet, its listener tells. Envoy's are known by their mark.
 * Nor does one with another protocol above TCP (kTLS, MPTCP): its bytes are not what is sent.
 *
 * For programs that splice(2) from a socket, which moves only what came by the wire: that the
 * peer's program has read what came by the wire is not enough, it must have read it by recvmsg (as
 * recv, read and io_uring do): `on_receive` sees that. A program that splices from the first byte
 * on is never sent anything else. One that begins to in the middle is not foreseen: an endpoint of
 * such must not take part.
 *
 * Fields of the kernel's structures are read at OFFSET_…, which the loader takes from its BTF. A
 * socket's address may be that of one gone: reading there is safe, and what is read decides
 * between two ways that are both right.
 */
#include <asm/fcntl.h>
#include <asm/socket.h>

#include "sockmap.h"

#define AF_INET 2
#define AF_INET6 10
#define TCP_LISTEN 10
#define SENDS_BY_ITSELF 1 /* of sk_userlocks: the program has set the buffer's size */
#define RECEIVES_BY_ITSELF 2
#define BUFFER_SEND (128 << 10) /* the kernel doubles these two */
#define BUFFER_RECEIVE (1 << 20)

#define MESSAGE 1024 /* the kernel's memory around a message, at most */
#define PROOF_LASTS (3600ull * 1000000000) /* far less than conntrack waits for a packet */

/* The context of a program takes reads of just these four bytes; clang would join them. */
#define ONE_READ(field) (*(volatile u32 *)&(field))

#define MAP_OF(number) bpf_pseudo_fd(1, number)
#define FIND(map, type, key) ((type *)bpf_map_lookup_elem_(MAP_OF(map), (void *)(key)))
#define PUT(map, key, value) \
	bpf_map_update_elem_(MAP_OF(map), (void *)(key), (void *)(value), BPF_ANY)
#define REMOVE(map, key) bpf_map_delete_elem_(MAP_OF(map), (void *)(key))

static __always_inline void count(u32 what, u64 much)
{
	u64 *value = FIND(MAP_COUNTS, u64, &what);

	if (value)
		*value += much;
}

static __always_inline u64 switched(u32 what)
{
	u64 *value = FIND(MAP_SWITCHES, u64, &what);

	return value ? *value : 0;
}

static __always_inline u64 read_u64(u64 from)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)from);
	return value;
}

static __always_inline u32 read_u32(u64 from)
{
	u32 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)from);
	return value;
}

/* True if a program has the socket and has made it non-blocking. */
static __always_inline bool never_blocks(u64 socket)
{
	u64 held = read_u64(socket + OFFSET_SOCK_SOCKET);
	u64 file = held ? read_u64(held + OFFSET_SOCKET_FILE) : 0;

	return file && read_u32(file + OFFSET_FILE_FLAGS) & O_NONBLOCK;
}

static __always_inline bool plain_tcp(u64 socket)
{
	return !read_u64(socket + OFFSET_ICSK_ULP_OPS);
}

#define ANYWHERE 0
#define NOWHERE (~0ull)

/* The namespace of an endpoint that takes part: its cookie, or one of the two above. */
static __always_inline u64 home(const struct addr *address)
{
	u64 *found = FIND(MAP_MEMBERS, u64, address);

	return found ? *found : NOWHERE;
}

static __always_inline void from_ipv4(struct addr *to, u32 address)
{
	to->words[0] = to->words[1] = 0;
	to->words[2] = bpf_htonl(0xffff);
	to->words[3] = address;
}

static __always_inline void mirrored(struct connection *to, const struct connection *from)
{
	to->local = from->remote;
	to->remote = from->local;
	to->local_port = from->remote_port;
	to->remote_port = from->local_port;
	to->sent = from->received;
	to->received = from->sent;
}

/* True unless the endpoint of one of the two ends has left; an end that is Envoy's asks for none. */
static __always_inline bool taking_part(const struct own *own, const struct peer *peer)
{
	bool local = home(&own->connection.local) != NOWHERE;
	bool remote = home(&own->connection.remote) != NOWHERE;

	return (local || own->proxy) && (remote || peer->proxy) && (local || remote);
}

static __always_inline bool listener_never_blocks(const struct connection *connection, u64 netns)
{
	struct listener key = {.netns = netns, .port = connection->local_port};
	u64 *found;

	key.address = connection->local;
	found = FIND(MAP_LISTENERS, u64, &key);
	if (!found && !key.address.words[0] && !key.address.words[1] &&
	    key.address.words[2] == bpf_htonl(0xffff)) {
		key.address.words[3] = 0;
		found = FIND(MAP_LISTENERS, u64, &key);
	}
	if (!found) {
		key.address.words[0] = key.address.words[1] = 0;
		key.address.words[2] = key.address.words[3] = 0;
		found = FIND(MAP_LISTENERS, u64, &key);
	}
	return found && never_blocks(*found);
}

static __always_inline void established(struct bpf_sock_ops *event, struct own *own, u64 socket,
					u32 mark, bool passive)
{
	struct connection *connection = &own->connection;
	struct connection other = {};
	struct peer peer = {.socket = socket};
	u64 netns = bpf_get_netns_cookie(event);
	u64 local = home(&connection->local), remote = home(&connection->remote);
	bool admitted, ready;

	own->proxy = mark == MARK_FROM_UPSTREAM || mark == MARK_FROM_LISTENER;
	if (own->proxy) /* in the node, or in the endpoint as a sidecar */
		admitted = (local != NOWHERE || remote != NOWHERE) &&
			   (netns == switched(SWITCH_NODE) || netns == local || netns == remote);
	else
		admitted = local == ANYWHERE || local == netns;
	if (!admitted)
		return;
	if (!plain_tcp(socket))
		return;
	if (own->proxy)
		ready = true;
	else if (passive)
		ready = listener_never_blocks(connection, netns);
	else
		ready = never_blocks(socket);
	if (!ready) {
		count(COUNT_BLOCKING_SOCKETS, 1);
		return;
	}
	connection->sent = event->snd_nxt;
	own->read = connection->received = event->rcv_nxt;
	mirrored(&other, connection);
	if (passive && !FIND(MAP_PEERS, struct peer, &other))
		return; /* the side that connects is established first */
	own->epoch = switched(SWITCH_EPOCH);
	own->proven = bpf_ktime_get_coarse_ns();
	own->proof = connection->sent + 1;
	peer.proxy = own->proxy;
	if (bpf_sock_hash_update(event, MAP_OF(MAP_SOCKETS), connection, BPF_ANY)) {
		count(COUNT_NO_ROOM, 1);
		return;
	}
	PUT(MAP_OWN, &socket, own);
	PUT(MAP_PEERS, connection, &peer);
	bpf_sock_ops_cb_flags_set(event, BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTT_CB_FLAG);
	count(COUNT_SOCKETS, 1);
}

/* Its first bytes by the wire are acknowledged: if its peer is here, a small send buffer
 * lets the wire run empty soon after a slow reader is back, and a large receive buffer makes
 * that rare. A connection to elsewhere keeps the kernel's own tuning. */
static __always_inline void measured(struct bpf_sock_ops *event, u64 socket)
{
	struct own *own = FIND(MAP_OWN, struct own, &socket);
	struct connection other = {};
	struct peer *peer;
	int send = BUFFER_SEND, receive = BUFFER_RECEIVE;
	u32 locks;

	bpf_sock_ops_cb_flags_set(event, BPF_SOCK_OPS_STATE_CB_FLAG);
	if (!own)
		return;
	mirrored(&other, &own->connection);
	peer = FIND(MAP_PEERS, struct peer, &other);
	if (!peer || !taking_part(own, peer))
		return;
	locks = read_u32(socket + OFFSET_SOCK_USERLOCKS);
	if (!(locks & SENDS_BY_ITSELF))
		bpf_setsockopt(event, SOL_SOCKET, SO_SNDBUF, &send, sizeof(send));
	if (!(locks & RECEIVES_BY_ITSELF))
		bpf_setsockopt(event, SOL_SOCKET, SO_RCVBUF, &receive, sizeof(receive));
}

static __always_inline void closed(u64 socket)
{
	struct own *own = FIND(MAP_OWN, struct own, &socket);

	if (!own)
		return;
	REMOVE(MAP_PEERS, &own->connection);
	REMOVE(MAP_OWN, &socket);
}

int socket_events(struct bpf_sock_ops *event)
{
	struct own own = {};
	struct bpf_sock *sk = event->sk;
	u32 op = event->op;
	u64 socket;

	if (!sk)
		return 1;
	u32 mark = sk->mark;
	void *tcp = (void *)bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 1;
	socket = (u64)tcp;
	if (op == BPF_SOCK_OPS_RTT_CB) {
		measured(event, socket);
		return 1;
	}
	if (op == BPF_SOCK_OPS_STATE_CB) {
		if (event->args[1] == BPF_TCP_CLOSE)
			closed(socket);
		return 1;
	}
	if (op != BPF_SOCK_OPS_TCP_LISTEN_CB && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	if (event->family == AF_INET) {
		from_ipv4(&own.connection.local, event->local_ip4);
		from_ipv4(&own.connection.remote, event->remote_ip4);
	} else if (event->family == AF_INET6) {
		own.connection.local.words[0] = ONE_READ(event->local_ip6[0]);
		own.connection.local.words[1] = ONE_READ(event->local_ip6[1]);
		own.connection.local.words[2] = ONE_READ(event->local_ip6[2]);
		own.connection.local.words[3] = ONE_READ(event->local_ip6[3]);
		own.connection.remote.words[0] = ONE_READ(event->remote_ip6[0]);
		own.connection.remote.words[1] = ONE_READ(event->remote_ip6[1]);
		own.connection.remote.words[2] = ONE_READ(event->remote_ip6[2]);
		own.connection.remote.words[3] = ONE_READ(event->remote_ip6[3]);
	} else {
		return 1;
	}
	own.connection.local_port = event->local_port;
	own.connection.remote_port = bpf_ntohl(event->remote_port);
	if (op == BPF_SOCK_OPS_TCP_LISTEN_CB) {
		struct listener key = {.netns = bpf_get_netns_cookie(event)};

		key.address = own.connection.local;
		key.port = own.connection.local_port;
		PUT(MAP_LISTENERS, &key, &socket);
		return 1;
	}
	if (switched(SWITCH_ON))
		established(event, &own, socket, mark, op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB);
	return 1;
}

static __always_inline u32 judged(u64 socket, struct own *own, struct peer *peer, u32 size)
{
	u32 epoch = switched(SWITCH_EPOCH);
	u64 now = bpf_ktime_get_coarse_ns();
	u32 written = read_u32(socket + OFFSET_TCP_WRITE_SEQ);
	struct own *other = FIND(MAP_OWN, struct own, &peer->socket);
	u32 waiting, room;

	if (!switched(SWITCH_ON))
		return COUNT_OFF;
	if (!taking_part(own, peer) || !plain_tcp(socket) || !plain_tcp(peer->socket))
		return COUNT_ALONE;
	if (own->epoch != epoch || now - own->proven > PROOF_LASTS) {
		own->epoch = epoch;
		own->proven = now;
		own->proof = written + 1;
		return COUNT_UNPROVEN;
	}
	if (read_u32(peer->socket + OFFSET_TCP_COPIED_SEQ) != written)
		return COUNT_UNREAD;
	if (!other || other->read != written)
		return COUNT_SPLICED;
	if ((int)(read_u32(socket + OFFSET_TCP_SND_UNA) - own->proof) < 0)
		return COUNT_UNPROVEN;
	if (!never_blocks(peer->socket))
		return COUNT_BLOCKING;
	waiting = read_u32(peer->socket + OFFSET_SOCK_RMEM_ALLOC);
	room = read_u32(peer->socket + OFFSET_SOCK_RCVBUF) / 2;
	if (!waiting)
		own->pending = 0;
	if ((u64)waiting + size > room || own->pending * (u64)MESSAGE > room)
		return COUNT_FULL;
	return COUNT_BYTES;
}

int on_send(struct sk_msg_md *message)
{
	struct connection other = {};
	struct bpf_sock *sk = message->sk;
	u32 size = message->size, found;
	struct own *own;
	struct peer *peer;
	u64 socket;

	if (!sk)
		return SK_PASS;
	void *tcp = (void *)bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return SK_PASS;
	socket = (u64)tcp;
	own = FIND(MAP_OWN, struct own, &socket);
	if (!own)
		return SK_PASS;
	mirrored(&other, &own->connection);
	peer = FIND(MAP_PEERS, struct peer, &other);
	/* A peer that has acknowledged something and is not here never will be: do not ask again
	 * for the next GiB. */
	if (!peer && (int)(read_u32(socket + OFFSET_TCP_SND_UNA) - own->proof) >= 0)
		bpf_msg_apply_bytes(message, 1 << 30);
	found = peer ? judged(socket, own, peer, size) : COUNT_ALONE;
	/* The helper's answer to a peer that has just gone is to drop: the wire knows better. */
	if (found == COUNT_BYTES &&
	    bpf_msg_redirect_hash(message, MAP_OF(MAP_SOCKETS), &other, BPF_F_INGRESS) != SK_PASS)
		found = COUNT_ALONE;
	if (found == COUNT_BYTES) {
		own->pending++;
		count(COUNT_BYTES, size);
		count(COUNT_MESSAGES, 1);
	} else {
		count(found, 1);
	}
	return SK_PASS;
}

/* The tracepoint sock_recv_length: a program has called recvmsg, on a socket of any kind. */
int on_receive(struct bpf_raw_tracepoint_args *call)
{
	u64 socket = call->args[0];
	struct own *own;

	if ((int)call->args[1] <= 0)
		return 0;
	own = FIND(MAP_OWN, struct own, &socket);
	if (own)
		own->read = read_u32(socket + OFFSET_TCP_COPIED_SEQ);
	return 0;
}

/* What `bpf_iter_tcp` hands out, one socket of a namespace at a time. */
struct tcp_iteration {
	u64 meta;
	void *socket;
};

/* Listeners that were there before this program was: the kernel goes through a namespace's. */
int present_listeners(struct tcp_iteration *at)
{
	void *given = at->socket;
	struct listener key = {};
	u64 socket;
	u32 family;

	if (!given)
		return 0;
	socket = (u64)given;
	if ((read_u32(socket + OFFSET_SOCK_STATE) & 0xff) != TCP_LISTEN)
		return 0;
	family = read_u32(socket + OFFSET_SOCK_FAMILY) & 0xffff;
	if (family == AF_INET)
		from_ipv4(&key.address, read_u32(socket + OFFSET_SOCK_IPV4));
	else
		bpf_probe_read_kernel(&key.address, sizeof(key.address),
				      (void *)(socket + OFFSET_SOCK_IPV6));
	key.port = read_u32(socket + OFFSET_SOCK_PORT) & 0xffff;
	key.netns = read_u64(read_u64(socket + OFFSET_SOCK_NET) + OFFSET_NET_COOKIE);
	PUT(MAP_LISTENERS, &key, &socket);
	return 0;
}
