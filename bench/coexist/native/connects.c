/*
 * connects: makes connections as an application would, and says how each of them went, as one line of JSON.
 *
 * A connection works when a message went out and came back unchanged. An error that comes at once is answered by
 * another try from another port, as a well-behaved application does; silence for --patience is a hang, and final.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>

#include "conntrack.h"

enum { EVENTS = 256, MESSAGE = 16, TICK_MS = 2 };
enum state { IDLE, CONNECTING, ASKED, HELD, LEAVING, DONE };

/* What was asked for. */
static struct {
	int kind, count, at_once, sources, destinations, retries, ask_conntrack, server_closes;
	double rate, patience_s, hold_s, seconds;
	unsigned first_port, last_port, port;
	union endpoint source, destination;
} want = { .kind = SOCK_STREAM, .count = 1, .at_once = 1, .sources = 1, .destinations = 1, .patience_s = 5, .port = 443 };

/* What happened. */
static struct {
	long begun, worked, hung, gave_up, broken, refused, refused_free, unavailable, other_errors, tries;
	long finished;
} saw;

struct connection {
	int fd, number, tries;
	enum state state;
	double began, since; /* the first try; the present state */
	union endpoint source, destination;
	char message[MESSAGE];
};

static struct connection *connections;
static int *active, active_count; /* slots in use, in no order */
static int *spare, spare_count;
static double *times_ms;
static int epoll, netlink;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint32_t chance(void)
{
	static uint64_t state;

	if (!state && getrandom(&state, sizeof(state), 0) != sizeof(state))
		state = 1;
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state >> 16;
}

static void enter(struct connection *c, enum state state)
{
	c->state = state;
	c->since = now();
}

static void let_go(struct connection *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
}

static void finish(struct connection *c, long *outcome)
{
	if (outcome)
		++*outcome;
	let_go(c);
	c->state = DONE;
	saw.finished++;
}

static void count_error(const struct connection *c, int error)
{
	int protocol = want.kind == SOCK_STREAM ? IPPROTO_TCP : IPPROTO_UDP;

	if (error == ECONNREFUSED || error == EPERM) {
		saw.refused++;
		if (want.ask_conntrack && conntrack_holds(netlink, protocol, &c->source, &c->destination) == 0)
			saw.refused_free++;
	} else if (error == EADDRINUSE || error == EADDRNOTAVAIL) {
		saw.unavailable++;
	} else {
		saw.other_errors++;
	}
}

static void say(struct connection *c, char who_closes)
{
	c->message[0] = who_closes;
	for (int i = 1; i < MESSAGE; i++)
		c->message[i] = chance();
}

static int open_socket(struct connection *c)
{
	int on = 1;

	c->fd = socket(c->destination.any.sa_family, want.kind | SOCK_NONBLOCK, 0);
	if (want.kind == SOCK_STREAM)
		setsockopt(c->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (want.first_port)
		endpoint_set_port(&c->source, want.first_port + chance() % (want.last_port - want.first_port + 1));
	else if (want.kind == SOCK_STREAM)
		setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on));
	if (bind(c->fd, &c->source.any, endpoint_size(&c->source)))
		return errno;
	if (connect(c->fd, &c->destination.any, endpoint_size(&c->destination)) && errno != EINPROGRESS)
		return errno;
	return 0;
}

static int send_message(struct connection *c)
{
	return send(c->fd, c->message, MESSAGE, MSG_NOSIGNAL) == MESSAGE ? 0 : errno;
}

/* Begin the next try; 0, or the error that came at once. */
static int try_once(struct connection *c)
{
	struct epoll_event event = { .events = EPOLLOUT, .data.ptr = c };
	int error;

	saw.tries++;
	c->tries++;
	say(c, want.server_closes && !want.hold_s ? 'S' : 'C');
	if ((error = open_socket(c)))
		return error;
	if (want.kind == SOCK_DGRAM) {
		if ((error = send_message(c)))
			return error;
		event.events = EPOLLIN;
	}
	enter(c, want.kind == SOCK_DGRAM ? ASKED : CONNECTING);
	epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
	return 0;
}

static void keep_trying(struct connection *c, int error)
{
	for (;;) {
		if (error) {
			count_error(c, error);
			let_go(c);
			if (c->tries > want.retries) {
				finish(c, &saw.gave_up);
				return;
			}
		}
		if (!(error = try_once(c)))
			return;
	}
}

static void begin(struct connection *c)
{
	c->number = saw.begun++;
	c->tries = 0;
	c->began = now();
	c->source = endpoint_after(&want.source, c->number % want.sources);
	c->destination = endpoint_after(&want.destination, c->number % want.destinations);
	endpoint_set_port(&c->destination, want.port);
	keep_trying(c, 0);
}

static void on_connected(struct connection *c)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };
	int error = 0;
	socklen_t size = sizeof(error);

	getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
	if (!error)
		error = send_message(c);
	if (error) {
		keep_trying(c, error);
		return;
	}
	enter(c, ASKED);
	epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &event);
}

static void on_answer(struct connection *c)
{
	char answer[MESSAGE + 1];
	ssize_t size = recv(c->fd, answer, sizeof(answer), 0);

	if (size < 0 && errno == EAGAIN)
		return;
	if (size < 0 && want.kind == SOCK_DGRAM) {
		keep_trying(c, errno);
		return;
	}
	if (size != MESSAGE || memcmp(answer, c->message, MESSAGE)) {
		finish(c, &saw.broken);
		return;
	}
	times_ms[saw.worked++] = (now() - c->began) * 1e3;
	enter(c, want.hold_s ? HELD : LEAVING);
	if (c->state == LEAVING && !want.server_closes)
		finish(c, NULL);
}

/* The end of a connection that is held: who closes first was asked for. */
static void leave(struct connection *c)
{
	if (!want.server_closes || want.kind == SOCK_DGRAM) {
		finish(c, NULL);
		return;
	}
	say(c, 'S');
	if (send_message(c))
		finish(c, &saw.broken);
	else
		enter(c, LEAVING);
}

static void on_leaving(struct connection *c)
{
	char answer[MESSAGE + 1];
	ssize_t size = recv(c->fd, answer, sizeof(answer), 0);

	if (size == 0)
		finish(c, NULL);
	else if (size < 0 ? errno != EAGAIN : !want.hold_s || size != MESSAGE || memcmp(answer, c->message, MESSAGE))
		finish(c, &saw.broken);
}

static void on_event(struct connection *c)
{
	switch (c->state) {
	case CONNECTING:
		on_connected(c);
		break;
	case ASKED:
		on_answer(c);
		break;
	case HELD: /* nobody has anything to say or to close here */
		finish(c, &saw.broken);
		break;
	case LEAVING:
		on_leaving(c);
		break;
	default:
		break;
	}
}

static void on_time(struct connection *c, double time)
{
	double age = time - c->since;

	if (c->state == HELD && want.hold_s > 0 && age > want.hold_s)
		leave(c);
	else if ((c->state == CONNECTING || c->state == ASKED) && age > want.patience_s)
		finish(c, &saw.hung);
	else if (c->state == LEAVING && age > want.patience_s)
		finish(c, &saw.broken);
}

static void look_at_clock(void)
{
	static double last;
	double time = now();

	if (time - last < TICK_MS * 1e-3)
		return;
	last = time;
	for (int i = 0; i < active_count; i++)
		on_time(&connections[active[i]], time);
}

static void collect_finished(void)
{
	for (int i = 0; i < active_count;) {
		if (connections[active[i]].state == DONE) {
			spare[spare_count++] = active[i];
			active[i] = active[--active_count];
		} else {
			i++;
		}
	}
}

static void begin_due(double start)
{
	double elapsed = now() - start;
	long due = want.rate ? (long)(elapsed * want.rate) + 1 : want.count;

	if (due > want.count)
		due = want.count;
	if (want.seconds && elapsed > want.seconds)
		due = 0;
	while (saw.begun < due && spare_count) {
		int slot = spare[--spare_count];

		active[active_count++] = slot;
		begin(&connections[slot]);
	}
}

/* Whether there is nothing left to do: all begun, and each finished or held to the end. */
static int settled(double start)
{
	if (saw.begun < want.count && !(want.seconds && now() - start > want.seconds))
		return 0;
	for (int i = 0; i < active_count; i++) {
		if (connections[active[i]].state != DONE && !(connections[active[i]].state == HELD && want.hold_s < 0))
			return 0;
	}
	return 1;
}

static void run(double start)
{
	struct epoll_event events[EVENTS];

	do {
		begin_due(start);
		int ready = epoll_wait(epoll, events, EVENTS, TICK_MS);

		for (int i = 0; i < ready; i++)
			on_event(events[i].data.ptr);
		look_at_clock();
		collect_finished();
	} while (!settled(start));
}

static int ascending(const void *one, const void *other)
{
	double difference = *(const double *)one - *(const double *)other;

	return (difference > 0) - (difference < 0);
}

static double percentile(double share)
{
	return saw.worked ? times_ms[(long)((saw.worked - 1) * share)] : 0;
}

static double cpu_us(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
}

static void report(double seconds, double cpu)
{
	long slow = 0;

	qsort(times_ms, saw.worked, sizeof(*times_ms), ascending);
	while (slow < saw.worked && times_ms[saw.worked - 1 - slow] > 900)
		slow++;
	printf("{\"begun\": %ld, \"worked\": %ld, \"hung\": %ld, \"gave_up\": %ld, \"broken\": %ld, \"tries\": %ld, "
	       "\"refused\": %ld, \"refused_free\": %ld, \"unavailable\": %ld, \"other_errors\": %ld, \"slow\": %ld, "
	       "\"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f, \"seconds\": %.3f, \"cpu_us\": %.0f}\n",
	       saw.begun, saw.worked, saw.hung, saw.gave_up, saw.broken, saw.tries, saw.refused, saw.refused_free,
	       saw.unavailable, saw.other_errors, slow, percentile(0.5), percentile(0.99), percentile(1), seconds, cpu);
	fflush(stdout);
}

static void usage(void)
{
	fputs("connects --source ADDRESS [--sources N] [--ports FIRST-LAST] --to ADDRESS [--destinations N] [--port N]\n"
	      "  [--udp] [--count N] [--at-once N] [--rate PER_SECOND] [--seconds S] [--retries N] [--patience S]\n"
	      "  [--hold S (-1: until standard input ends)] [--server-closes] [--ask-conntrack]\n", stderr);
	exit(2);
}

static void read_ports(const char *text)
{
	if (sscanf(text, "%u-%u", &want.first_port, &want.last_port) != 2 || want.last_port < want.first_port)
		usage();
}

static const struct option options[] = {
	{ "source", 1, 0, 's' }, { "sources", 1, 0, 'S' }, { "ports", 1, 0, 'p' }, { "to", 1, 0, 't' },
	{ "destinations", 1, 0, 'D' }, { "port", 1, 0, 'P' }, { "udp", 0, 0, 'u' }, { "count", 1, 0, 'c' },
	{ "at-once", 1, 0, 'a' }, { "rate", 1, 0, 'r' }, { "seconds", 1, 0, 'l' }, { "retries", 1, 0, 'R' },
	{ "patience", 1, 0, 'w' }, { "hold", 1, 0, 'h' }, { "server-closes", 0, 0, 'f' },
	{ "ask-conntrack", 0, 0, 'q' }, { 0 },
};

static void set_option(int option)
{
	switch (option) {
	case 's': endpoint_parse(&want.source, optarg); break;
	case 'S': want.sources = atoi(optarg); break;
	case 'p': read_ports(optarg); break;
	case 't': endpoint_parse(&want.destination, optarg); break;
	case 'D': want.destinations = atoi(optarg); break;
	case 'P': want.port = atoi(optarg); break;
	case 'u': want.kind = SOCK_DGRAM; break;
	case 'c': want.count = atoi(optarg); break;
	case 'a': want.at_once = atoi(optarg); break;
	case 'r': want.rate = atof(optarg); break;
	case 'l': want.seconds = atof(optarg); break;
	case 'R': want.retries = atoi(optarg); break;
	case 'w': want.patience_s = atof(optarg); break;
	case 'h': want.hold_s = atof(optarg); break;
	case 'f': want.server_closes = 1; break;
	case 'q': want.ask_conntrack = 1; break;
	default: usage();
	}
}

static void prepare(void)
{
	struct rlimit files;

	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	epoll = epoll_create1(0);
	netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
	times_ms = calloc(want.count, sizeof(*times_ms));
	connections = calloc(want.at_once, sizeof(*connections));
	active = calloc(want.at_once, sizeof(*active));
	spare = calloc(want.at_once, sizeof(*spare));
	for (spare_count = 0; spare_count < want.at_once; spare_count++)
		spare[spare_count] = spare_count;
}

int main(int count, char **arguments)
{
	int option;

	while ((option = getopt_long(count, arguments, "", options, NULL)) >= 0)
		set_option(option);
	if (!want.source.any.sa_family || want.source.any.sa_family != want.destination.any.sa_family)
		usage();
	prepare();
	double start = now(), cpu = cpu_us();

	run(start);
	report(now() - start, cpu_us() - cpu);
	if (active_count) {
		char ignored;

		while (read(0, &ignored, 1) > 0)
			;
	}
	return 0;
}
