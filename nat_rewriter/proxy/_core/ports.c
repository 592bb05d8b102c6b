/* Which source port the next connection to a destination leaves from. A port is used once per destination, not once for
 * all. The kernel has the last word (bind and connect refuse a tuple that is taken, by whomever); what is kept here is
 * what this worker holds, and what the kernel refused it a moment ago, so that a full slice costs little to refuse. */
#include "internal.h"

#include <sys/random.h>

#define BUCKETS 4096
#define BUSY_MS 1000    /* how long a refusal by the kernel is believed */
#define FORGET_MS 60000 /* how long the place in the ring is remembered: as long as TIME_WAIT */

struct destination {
    struct destination *next;
    struct relay_address address;
    uint32_t count;  /* ports of the family's slices */
    uint32_t cursor; /* the port used longest ago comes next */
    uint32_t used;
    uint64_t last_ms, busy_until_ms;
    uint64_t *held, *busy; /* bitmaps of count bits */
};

struct port_pool {
    const struct relay_proxy *proxy;
    uint32_t counts[2]; /* IPv4, IPv6 */
    uint32_t swept;
    uint64_t key;    /* of the hash: nobody outside can fill one bucket */
    uint64_t random; /* where rings begin */
    struct destination *buckets[BUCKETS];
};

static uint32_t family_index(uint8_t family) { return family == 6; }

static struct port_pool *pool_new(const struct relay_proxy *proxy, uint32_t worker) {
    struct port_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return NULL;
    pool->proxy = proxy;
    if (getrandom(&pool->key, sizeof pool->key, 0) != sizeof pool->key)
        pool->key = 0x9e3779b97f4a7c15u * (worker + 1);
    pool->random = pool->key ^ (uint64_t)getpid() << 20;
    for (uint32_t i = 0; i < proxy->range_count; i++)
        pool->counts[family_index(proxy->ranges[i].first.family)] += proxy->ranges[i].count;
    return pool;
}

/* Returns the pools of all proxies, or NULL. */
struct port_pool **ports_open(const struct relay_settings *settings) {
    struct port_pool **pools = calloc(settings->proxy_count, sizeof *pools);
    for (uint32_t i = 0; pools && i < settings->proxy_count; i++)
        if (!(pools[i] = pool_new(&settings->proxies[i], settings->worker)))
            return NULL;
    return pools;
}

uint32_t ports_count(const struct port_pool *pool, uint8_t family) { return pool->counts[family_index(family)]; }

bool ports_has_family(const struct port_pool *pool, uint8_t family) { return ports_count(pool, family) > 0; }

static uint64_t mix(uint64_t value) {
    value ^= value >> 33;
    value *= 0xff51afd7ed558ccdu;
    value ^= value >> 33;
    value *= 0xc4ceb9fe1a85ec53u;
    return value ^ value >> 33;
}

static uint32_t bucket_of(const struct port_pool *pool, const struct relay_address *address) {
    uint64_t high, low;
    memcpy(&high, address->bytes, 8);
    memcpy(&low, address->bytes + 8, 8);
    return mix(high ^ mix(low ^ address->port ^ pool->key)) % BUCKETS;
}

static struct destination *destination_new(struct port_pool *pool, const struct relay_address *address) {
    uint32_t count = ports_count(pool, address->family), words = (count + 63) / 64;
    struct destination *found = calloc(1, sizeof *found + 2 * words * sizeof(uint64_t));
    if (!found || !count) {
        free(found);
        return NULL;
    }
    found->held = (uint64_t *)(found + 1);
    found->busy = found->held + words;
    found->address = *address;
    found->count = count;
    pool->random = mix(pool->random + 1);
    found->cursor = pool->random % count; /* so that workers do not all begin with the same port */
    return found;
}

struct destination *ports_find(struct port_pool *pool, const struct relay_address *address, uint64_t now_ms) {
    struct destination **bucket = &pool->buckets[bucket_of(pool, address)], *found = *bucket;
    while (found && !address_equal(&found->address, address))
        found = found->next;
    if (!found && (found = destination_new(pool, address))) {
        found->next = *bucket;
        *bucket = found;
    }
    if (found)
        found->last_ms = now_ms;
    return found;
}

/* Finds a clear bit from `from` on, in both bitmaps; `to` when there is none. */
static uint32_t clear_bit(const struct destination *place, uint32_t from, uint32_t to) {
    while (from < to) {
        uint64_t taken = place->held[from / 64] | place->busy[from / 64];
        uint64_t clear = ~taken & (~0ull << from % 64);
        if (clear) {
            uint32_t found = from / 64 * 64 + (uint32_t)__builtin_ctzll(clear);
            return found < to ? found : to;
        }
        from = from / 64 * 64 + 64;
    }
    return to;
}

/* Returns the index of a port, or -1: every one is held here, or was refused by the kernel a moment ago. */
int64_t ports_take(struct destination *place, uint64_t now_ms) {
    if (place->busy_until_ms && now_ms >= place->busy_until_ms) {
        memset(place->busy, 0, (place->count + 63) / 64 * sizeof(uint64_t));
        place->busy_until_ms = 0;
    }
    if (place->used >= place->count)
        return -1;
    uint32_t index = clear_bit(place, place->cursor, place->count);
    if (index == place->count && (index = clear_bit(place, 0, place->cursor)) == place->cursor)
        return -1;
    place->held[index / 64] |= 1ull << index % 64;
    place->used++;
    place->cursor = index + 1 == place->count ? 0 : index + 1;
    return index;
}

void ports_give_back(struct destination *place, uint32_t index, bool busy, uint64_t now_ms) {
    place->held[index / 64] &= ~(1ull << index % 64);
    place->used--;
    place->last_ms = now_ms;
    if (!busy)
        return;
    place->busy[index / 64] |= 1ull << index % 64;
    if (!place->busy_until_ms)
        place->busy_until_ms = now_ms + BUSY_MS;
}

void ports_source(const struct port_pool *pool, struct destination *place, uint32_t index,
                  struct relay_address *source) {
    for (uint32_t i = 0; i < pool->proxy->range_count; i++) {
        const struct relay_range *range = &pool->proxy->ranges[i];
        if (range->first.family != place->address.family)
            continue;
        if (index < range->count) {
            *source = range->first;
            source->port = (uint16_t)(range->first.port + index);
            return;
        }
        index -= range->count;
    }
}

/* Forgets destinations that nothing has used for a while, some buckets at a time. */
void ports_sweep(struct port_pool *pool, uint64_t now_ms) {
    for (uint32_t i = 0; i < BUCKETS / 64; i++, pool->swept = (pool->swept + 1) % BUCKETS) {
        struct destination **link = &pool->buckets[pool->swept], *place;
        while ((place = *link)) {
            if (place->used || now_ms - place->last_ms < FORGET_MS) {
                link = &place->next;
                continue;
            }
            *link = place->next;
            free(place);
        }
    }
}
