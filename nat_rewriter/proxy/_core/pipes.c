/* Pipes for splice(2): a connection has one only while something is on its way, so that those at rest need none. */
#include "internal.h"

#define PIPE_SIZE (1 << 20)

bool pipe_take(struct worker *worker, struct way *way) {
    if (way->pipe[0] >= 0)
        return true;
    struct pipes *pipes = &worker->pipes;
    if (pipes->free_count) {
        memcpy(way->pipe, pipes->free[--pipes->free_count], sizeof way->pipe);
        return true;
    }
    if (pipe2(way->pipe, O_NONBLOCK | O_CLOEXEC) != 0) {
        way->pipe[0] = way->pipe[1] = -1;
        return false;
    }
    fcntl(way->pipe[1], F_SETPIPE_SZ, PIPE_SIZE); /* an ordinary user may get less: it works with any size */
    pipes->open++;
    worker->counters[0].pipes = pipes->open;
    return true;
}

static void pipe_close(struct worker *worker, struct way *way) {
    close(way->pipe[0]);
    close(way->pipe[1]);
    worker->pipes.open--;
    worker->counters[0].pipes = worker->pipes.open;
}

/* A pipe that still holds bytes is of no use to anyone. */
void pipe_give_back(struct worker *worker, struct way *way) {
    struct pipes *pipes = &worker->pipes;
    if (way->pipe[0] < 0)
        return;
    if (!way->held && pipes->free_count < sizeof pipes->free / sizeof pipes->free[0])
        memcpy(pipes->free[pipes->free_count++], way->pipe, sizeof way->pipe);
    else
        pipe_close(worker, way);
    way->pipe[0] = way->pipe[1] = -1;
    way->held = 0;
}
