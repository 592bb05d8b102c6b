/* Reading a long dump with two threads: one lets the kernel write into buffers, the other decodes those that are full.
 * The kernel writes a dump while it is being received, so that the one would else stand still while the other works. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "decode.h"

/* Handed over by the dozen: to wake a thread for each would take longer than to decode it. */
enum { BUNCH = 12, BUFFER_BYTES = 65536 };

struct buffer {
	struct buffer *next;
	ssize_t length; /* negative: an errno, and nothing comes after it */
	int truncated;
	uint32_t sender;
	uint8_t bytes[BUFFER_BYTES]; /* of which netlink_dump() fills the first half; the rest takes no memory */
};

struct nr_pump {
	int descriptor, stop; /* stop: an eventfd, readable when nothing more is wanted */
	int timeout_ms, has_thread;
	size_t most; /* buffers there may be */
	pthread_t thread;
	uint64_t offset; /* byte of the first buffer to go on from */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	size_t buffers, filled; /* this and what follows under the lock */
	struct buffer *first, *last; /* those that are filled, in order */
	struct buffer *spare;        /* the one used last is the first to be used again: it is in the cache */
	int waiting;                 /* for the kernel or for a buffer, or it is the end: no more will come soon */
	int unwanted;
};

static void set_waiting(struct nr_pump *pump, int waiting)
{
	pthread_mutex_lock(&pump->lock);
	pump->waiting = waiting;
	pthread_cond_signal(&pump->changed);
	pthread_mutex_unlock(&pump->lock);
}

/* Returns an errno, or 0 when there is something to read. */
static int wait_readable(struct nr_pump *pump)
{
	struct pollfd ready[2] = {{.fd = pump->descriptor, .events = POLLIN}, {.fd = pump->stop, .events = POLLIN}};
	int found;

	set_waiting(pump, 1);
	found = poll(ready, 2, pump->timeout_ms);
	set_waiting(pump, 0);
	if (found == 0)
		return ETIMEDOUT;
	return found > 0 && ready[1].revents ? ECANCELED : 0;
}

static void fill(struct nr_pump *pump, struct buffer *to)
{
	struct sockaddr_nl sender = {.nl_pid = 0};
	struct iovec vector = {to->bytes, sizeof(to->bytes)};
	struct msghdr header = {
		.msg_name = &sender, .msg_namelen = sizeof(sender), .msg_iov = &vector, .msg_iovlen = 1};
	int failed = 0;

	do {
		to->length = recvmsg(pump->descriptor, &header, MSG_DONTWAIT);
		if (to->length < 0)
			failed = errno == EAGAIN ? wait_readable(pump) : errno == EINTR ? 0 : errno;
	} while (to->length < 0 && !failed);
	if (failed)
		to->length = -failed;
	to->truncated = header.msg_flags & MSG_TRUNC;
	to->sender = sender.nl_pid;
}

static struct buffer *take_spare(struct nr_pump *pump)
{
	struct buffer *found = pump->spare;

	if (found) {
		pump->spare = found->next;
	} else if (pump->buffers < pump->most) {
		found = malloc(sizeof(*found));
		pump->buffers += found != NULL;
	}
	return found;
}

/* Wait for a buffer that is free. Returns NULL when no more are wanted. */
static struct buffer *next_free(struct nr_pump *pump)
{
	struct buffer *found = NULL;

	pthread_mutex_lock(&pump->lock);
	while (!pump->unwanted && !(found = take_spare(pump))) {
		pump->waiting = 1;
		pthread_cond_signal(&pump->changed);
		pthread_cond_wait(&pump->changed, &pump->lock);
	}
	pump->waiting = 0;
	pthread_mutex_unlock(&pump->lock);
	return found;
}

static void append(struct nr_pump *pump, struct buffer *buffer)
{
	buffer->next = NULL;
	if (pump->filled++)
		pump->last->next = buffer;
	else
		pump->first = buffer;
	pump->last = buffer;
}

static void *fill_buffers(void *argument)
{
	struct nr_pump *pump = argument;
	struct buffer *buffer;
	int failed = 0;

	while (!failed && (buffer = next_free(pump))) {
		fill(pump, buffer);
		failed = buffer->length <= 0;
		pthread_mutex_lock(&pump->lock);
		append(pump, buffer);
		pump->waiting = failed;
		if (failed || pump->filled >= BUNCH)
			pthread_cond_signal(&pump->changed);
		pthread_mutex_unlock(&pump->lock);
	}
	return NULL;
}

static void end_thread(struct nr_pump *pump)
{
	const uint64_t one = 1;

	pthread_mutex_lock(&pump->lock);
	pump->unwanted = 1;
	pthread_cond_signal(&pump->changed);
	pthread_mutex_unlock(&pump->lock);
	while (write(pump->stop, &one, sizeof(one)) < 0 && errno == EINTR)
		continue;
	pthread_join(pump->thread, NULL);
}

static void free_all(struct buffer *first)
{
	while (first) {
		struct buffer *next = first->next;

		free(first);
		first = next;
	}
}

void nr_pump_free(struct nr_pump *pump)
{
	if (!pump)
		return;
	if (pump->has_thread)
		end_thread(pump);
	if (pump->stop >= 0)
		close(pump->stop);
	free_all(pump->first);
	free_all(pump->spare);
	pthread_cond_destroy(&pump->changed);
	pthread_mutex_destroy(&pump->lock);
	free(pump);
}

struct nr_pump *nr_pump_new(int descriptor, int timeout_ms, size_t most)
{
	struct nr_pump *pump = calloc(1, sizeof(*pump));

	if (!pump)
		return NULL;
	pump->descriptor = descriptor;
	pump->timeout_ms = timeout_ms;
	pump->most = most;
	pump->stop = eventfd(0, EFD_CLOEXEC);
	pthread_mutex_init(&pump->lock, NULL);
	pthread_cond_init(&pump->changed, NULL);
	pump->has_thread = pump->stop >= 0 && pthread_create(&pump->thread, NULL, fill_buffers, pump) == 0;
	if (pump->has_thread)
		return pump;
	nr_pump_free(pump);
	return NULL;
}

/* Wait for a bunch of buffers, or fewer where no more are coming. */
static struct buffer *next_filled(struct nr_pump *pump)
{
	struct buffer *found;

	pthread_mutex_lock(&pump->lock);
	if (!pump->filled)
		while (pump->filled < BUNCH && !(pump->waiting && pump->filled))
			pthread_cond_wait(&pump->changed, &pump->lock);
	found = pump->first;
	pthread_mutex_unlock(&pump->lock);
	return found;
}

/* Give the first buffer back. The other thread, should it wait, is woken when it can go on for a while. */
static void leave(struct nr_pump *pump)
{
	struct buffer *left;

	pump->offset = 0;
	pthread_mutex_lock(&pump->lock);
	left = pump->first;
	pump->first = left->next;
	pump->filled--;
	left->next = pump->spare;
	pump->spare = left;
	if (pump->filled == pump->most / 2 || !pump->filled)
		pthread_cond_signal(&pump->changed);
	pthread_mutex_unlock(&pump->lock);
}

/* Decode a buffer as far as there is room. Returns an enum nr_problem. */
static int decode(struct nr_pump *pump, const struct buffer *buffer, const struct nr_context *context,
		  struct nr_flow *records, size_t capacity, struct nr_progress *progress)
{
	int problem = NR_OK;

	if (buffer->truncated)
		return NR_DATAGRAM_CUT;
	progress->offset = pump->offset;
	if (buffer->sender == 0) /* only the kernel, port id 0, is believed */
		problem = nr_decode_sifted(buffer->bytes, (size_t)buffer->length, context, records, capacity, progress);
	pump->offset = progress->offset;
	if (buffer->sender != 0 || pump->offset >= (size_t)buffer->length)
		leave(pump);
	return problem;
}

int nr_pump_flows(struct nr_pump *pump, const struct nr_context *context, struct nr_flow *records, size_t capacity,
		  struct nr_progress *progress)
{
	int problem = NR_OK;

	while (!problem && progress->records < capacity && !progress->error &&
	       !(progress->flags & (NR_DONE | NR_ANSWERED))) {
		const struct buffer *buffer = next_filled(pump);

		if (buffer->length <= 0)
			progress->error = buffer->length ? (int32_t)-buffer->length : EPIPE;
		else
			problem = decode(pump, buffer, context, records, capacity, progress);
	}
	return problem;
}
