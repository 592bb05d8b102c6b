/* Names to addresses: getaddrinfo(3) blocks, so that a few threads call it. Jobs belong to the threads until they are done;
 * a connection that ends meanwhile only takes its name off its job. */
#include "internal.h"

#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>

#define THREADS 16
#define WAITING 1024
#define STACK (512 << 10)

struct job {
    struct job *next;
    struct connection *connection; /* touched by the loop alone */
    uint8_t count;
    uint16_t port;
    struct relay_address found[ADDRESSES_TRIED];
    char host[256];
};

struct resolver {
    pthread_mutex_t lock;
    pthread_cond_t asked;
    struct job *first, *last, *done;
    uint32_t threads, idle, waiting;
    int event_fd;
};

struct resolver *resolver_open(void) {
    struct resolver *resolver = calloc(1, sizeof *resolver);
    if (!resolver)
        return NULL;
    pthread_mutex_init(&resolver->lock, NULL);
    pthread_cond_init(&resolver->asked, NULL);
    resolver->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return resolver;
}

int resolver_fd(const struct resolver *resolver) { return resolver->event_fd; }

static void look_up(struct job *job) {
    char port[8];
    struct addrinfo wanted = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found = NULL;
    snprintf(port, sizeof port, "%u", job->port);
    if (getaddrinfo(job->host, port, &wanted, &found) != 0)
        return;
    for (struct addrinfo *one = found; one && job->count < ADDRESSES_TRIED; one = one->ai_next) {
        struct sockaddr_storage storage = {0};
        memcpy(&storage, one->ai_addr, one->ai_addrlen);
        address_from_kernel(&job->found[job->count], &storage);
        job->count += job->found[job->count].family != 0;
    }
    freeaddrinfo(found);
}

static struct job *next_job(struct resolver *resolver) {
    pthread_mutex_lock(&resolver->lock);
    resolver->idle++;
    while (!resolver->first)
        pthread_cond_wait(&resolver->asked, &resolver->lock);
    resolver->idle--;
    resolver->waiting--;
    struct job *job = resolver->first;
    resolver->first = job->next;
    pthread_mutex_unlock(&resolver->lock);
    return job;
}

static void *thread_main(void *argument) {
    struct resolver *resolver = argument;
    for (;;) {
        struct job *job = next_job(resolver);
        look_up(job);
        pthread_mutex_lock(&resolver->lock);
        job->next = resolver->done;
        resolver->done = job;
        pthread_mutex_unlock(&resolver->lock);
        eventfd_write(resolver->event_fd, 1);
    }
    return NULL;
}

static bool start_thread(struct resolver *resolver) {
    pthread_attr_t attributes;
    pthread_t thread;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    bool started = pthread_create(&thread, &attributes, thread_main, resolver) == 0;
    pthread_attr_destroy(&attributes);
    return started;
}

/* Returns NULL when too much is asked already. */
struct job *resolver_ask(struct resolver *resolver, struct connection *connection, const char *host, uint16_t port) {
    struct job *job = calloc(1, sizeof *job);
    if (!job)
        return NULL;
    job->connection = connection;
    job->port = port;
    snprintf(job->host, sizeof job->host, "%s", host);
    pthread_mutex_lock(&resolver->lock);
    if (resolver->idle <= resolver->waiting && resolver->threads < THREADS && start_thread(resolver))
        resolver->threads++;
    bool accepted = resolver->threads > 0 && resolver->waiting < WAITING;
    if (accepted) {
        resolver->waiting++;
        if (resolver->first)
            resolver->last->next = job;
        else
            resolver->first = job;
        resolver->last = job;
        pthread_cond_signal(&resolver->asked);
    }
    pthread_mutex_unlock(&resolver->lock);
    if (accepted)
        return job;
    free(job);
    return NULL;
}

void resolver_forget(struct job *job) { job->connection = NULL; }

/* Returns a connection whose name has been looked up, with what was found; NULL when there is none left. */
struct connection *resolver_take(struct resolver *resolver, struct relay_address *addresses, uint8_t *count) {
    eventfd_t ignored;
    eventfd_read(resolver->event_fd, &ignored);
    for (;;) {
        pthread_mutex_lock(&resolver->lock);
        struct job *job = resolver->done;
        if (job)
            resolver->done = job->next;
        pthread_mutex_unlock(&resolver->lock);
        if (!job)
            return NULL;
        struct connection *connection = job->connection;
        memcpy(addresses, job->found, sizeof job->found);
        *count = job->count;
        free(job);
        if (connection)
            return connection;
    }
}
