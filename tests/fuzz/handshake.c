/* What must hold for any bytes that a client of the proxy sends, in whatever pieces they come: the handshake ends in the
 * same way, with the same answer, reads and writes nothing beyond its memory, and leaves none behind.
 *
 * Linked with the handshake and its parsers as they are (--wrap=recv gives them their bytes); the rest of the worker is
 * written down instead of done. The first four bytes of the input say how: mode and credentials, PROXY header, and the
 * sizes of the pieces.
 */
#include "internal.h"
#include "require.h"

enum { HEAD = 4 };
enum ending { WAITING, FAILED, CLOSED_BY, BEGUN };

/* What the handshake did, and what of the input it has read. */
struct seen {
	enum ending end;
	uint32_t outcome;
	uint16_t port;
	char host[256];
	size_t read, replied, said_to_server;
	uint64_t replies; /* a hash of them */
	bool done;
};

static struct seen seen;
static const uint8_t *input;
static size_t left, piece;

static void hear(const char *data, size_t length)
{
	for (size_t i = 0; i < length; i++)
		seen.replies = (seen.replies ^ (uint8_t)data[i]) * 0x100000001b3; /* FNV-1a */
	seen.replied += length;
}

static void forget_handshake(struct connection *connection, enum ending end, uint32_t outcome)
{
	REQUIRE(seen.end == WAITING);
	REQUIRE(outcome < RELAY_OUTCOMES);
	seen.end = end;
	seen.outcome = outcome;
	connection->state = CLOSED;
	free(connection->handshake);
	connection->handshake = NULL;
}

/* The parts of the worker that a handshake calls. */

ssize_t __wrap_recv(int descriptor, void *room, size_t size, int flags)
{
	size_t length = left < piece ? left : piece;

	(void)descriptor, (void)flags;
	REQUIRE(size > 0);
	if (!left) {
		errno = EAGAIN;
		return -1;
	}
	length = length < size ? length : size;
	memcpy(room, input, length);
	input += length;
	left -= length;
	seen.read += length;
	return (ssize_t)length;
}

bool deliver(struct worker *worker, struct connection *connection, int from, const char *data, uint32_t length)
{
	(void)worker, (void)connection;
	REQUIRE(length > 0);
	if (from == UPSTREAM)
		hear(data, length);
	else
		seen.said_to_server += length;
	return true;
}

void connection_fail(struct worker *worker, struct connection *connection, uint32_t outcome, int error)
{
	const struct relay_answer *said = &connection->handshake->answer;

	(void)worker, (void)error;
	REQUIRE(said->reply_length <= sizeof(said->reply));
	hear(said->reply, said->reply_length);
	forget_handshake(connection, FAILED, outcome);
}

void connection_close(struct worker *worker, struct connection *connection, uint32_t outcome, int error)
{
	(void)worker, (void)error;
	forget_handshake(connection, CLOSED_BY, outcome);
}

void upstream_begin(struct worker *worker, struct connection *connection, const char *host, uint16_t port)
{
	(void)worker;
	REQUIRE(seen.end == WAITING);
	REQUIRE(port != 0 && host[0] != 0 && memchr(host, 0, sizeof(seen.host)));
	seen.end = BEGUN;
	seen.port = port;
	snprintf(seen.host, sizeof(seen.host), "%s", host);
	connection->state = CONNECTING;
}

void pump(struct worker *worker, struct connection *connection)
{
	(void)worker;
	REQUIRE(connection->handshake == NULL);
	seen.done = true;
}

void timer_set(struct worker *worker, struct connection *connection, uint64_t deadline_ms)
{
	(void)worker, (void)connection, (void)deadline_ms;
}

/* Run one handshake to its end, over pieces of a size, and return what was seen. */
static struct seen run(const struct relay_proxy *proxy, const uint8_t *bytes, size_t length, size_t piece_bytes)
{
	static struct relay_counters counters;
	const struct relay_settings settings = {.proxies = proxy, .proxy_count = 1};
	static struct worker worker;
	struct connection connection = {.ends[CLIENT].fd = 3, .client = {.family = 4}, .local = {.family = 4}};
	size_t kept = 0;

	worker.settings = &settings;
	worker.counters = &counters;
	connection.source.family = bytes && length ? (bytes[0] & 1 ? 6 : 4) : 4;
	memset(&seen, 0, sizeof(seen));
	input = bytes, left = length, piece = piece_bytes;
	handshake_begin(&worker, &connection);
	connection.ends[CLIENT].readable = true;
	handshake_read(&worker, &connection);
	if (seen.end == BEGUN) {
		REQUIRE(connection.handshake->length <= seen.read);
		kept = connection.handshake->length;
		handshake_done(&worker, &connection);
		REQUIRE(seen.done && seen.said_to_server >= kept);
		seen.read -= kept; /* how far the request went */
		seen.said_to_server -= kept;
	}
	if (seen.end == WAITING)
		REQUIRE(left == 0 && connection.state == GREETING);
	free(connection.handshake);
	return seen;
}

static void require_same(const struct seen *whole, const struct seen *pieces)
{
	REQUIRE(whole->end == pieces->end && whole->outcome == pieces->outcome);
	REQUIRE(whole->replied == pieces->replied && whole->replies == pieces->replies);
	REQUIRE(whole->end != BEGUN || (whole->read == pieces->read && whole->port == pieces->port));
	REQUIRE(strcmp(whole->host, pieces->host) == 0 && whole->said_to_server == pieces->said_to_server);
}

static void set_proxy(struct relay_proxy *proxy, const uint8_t head[HEAD])
{
	memset(proxy, 0, sizeof(*proxy));
	proxy->mode = head[0] & 1 ? RELAY_CONNECT : RELAY_SOCKS;
	proxy->proxy_protocol = head[1] % 3;
	if (head[0] & 2) {
		strcpy(proxy->username, "crawler");
		strcpy(proxy->password, "correct horse");
	}
	if (head[0] & 4) { /* as long as they may be */
		memset(proxy->username, 'u', sizeof(proxy->username) - 1);
		memset(proxy->password, 'p', sizeof(proxy->password) - 1);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct relay_proxy proxy;
	struct seen whole, pieces;
	uint8_t *bytes;

	if (size < HEAD)
		return 0;
	set_proxy(&proxy, data);
	/* Memory of exactly this size, so that the sanitizer sees a read of one byte too many. */
	bytes = malloc(size - HEAD ? size - HEAD : 1);
	REQUIRE(bytes != NULL);
	memcpy(bytes, data + HEAD, size - HEAD);
	whole = run(&proxy, bytes, size - HEAD, SIZE_MAX);
	pieces = run(&proxy, bytes, size - HEAD, 1u + data[2] % 64u);
	require_same(&whole, &pieces);
	if (data[3] & 1 && size < 256) {
		pieces = run(&proxy, bytes, size - HEAD, 1);
		require_same(&whole, &pieces);
	}
	free(bytes);
	return 0;
}
