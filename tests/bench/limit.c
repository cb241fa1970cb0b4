/* The limit: what IPVS can be made to do over generic netlink when nothing is in the way.
 *
 *     limit SERVICES DESTINATIONS FAMILY [VERB...]      FAMILY: 4 or 6; verbs: load read update pair delete (default: all)
 *
 * A raw netlink socket, messages prebuilt in memory, up to 200 KiB of them in a send, NLM_F_ACK on the last only (the
 * kernel reports errors whether asked or not), reads by one dump per service with recvmmsg into 32 KiB buffers, entries
 * counted. The table is the one of tests/bench/table.py: service i is tcp 172.16.0.1+i:80 or [fd00::i+1]:80, scheduler
 * rr; destination n of the whole table is 10.0.0.1+n:8080 or [fd01::n+1]:8080, method nat, weight 1 (2 after update).
 * Prints one JSON object of seconds a line. `load` is building + sending, `load_sends` the sending of the same run;
 * update and delete are sends of ready messages. `read_cold` is this process's first read, the opening of the socket
 * included; `read_warm` the median of three later ones. `pair` is the mean of 2000 round trips of one add and one delete.
 * Any error, and any count that differs from the table's, ends it with status 1 and a line on stderr.
 * Does not: decode what it reads beyond the services' keys, or make a network namespace.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/genetlink.h>
#include <linux/ip_vs.h>
#include <linux/netlink.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 200 * 1024, PIECE = 32 * 1024, PIECES = 4, PAIRS = 2000, WARM = 3 };

/* Messages one after another. */
struct messages {
    char *data;
    size_t used, size;
};

static int fd = -1;
static uint16_t ipvs;
static uint32_t sequence;
static unsigned services, each;
static int family, wanted_weight = 1;
static char pieces[PIECES][PIECE];

static void die(const char *format, ...)
{
    va_list rest;
    va_start(rest, format);
    fputs("limit: ", stderr);
    vfprintf(stderr, format, rest);
    fputc('\n', stderr);
    exit(1);
}

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void say(const char *verb, double seconds)
{
    printf("{\"%s\": %.9f}\n", verb, seconds);
}

/* Building */

static void *room(struct messages *all, size_t length)
{
    size_t padded = NLMSG_ALIGN(length);
    if (all->used + padded > all->size) {
        all->size = all->size ? 2 * all->size : 1 << 16;
        if (!(all->data = realloc(all->data, all->size)))
            die("no memory");
    }
    char *place = all->data + all->used;
    memset(place, 0, padded);
    all->used += padded;
    return place;
}

static size_t begin(struct messages *all, uint16_t kind, uint8_t command, uint16_t flags)
{
    size_t start = all->used;
    struct nlmsghdr *header = room(all, NLMSG_HDRLEN + GENL_HDRLEN);
    header->nlmsg_type = kind;
    header->nlmsg_flags = NLM_F_REQUEST | flags;
    header->nlmsg_seq = ++sequence;
    struct genlmsghdr *generic = NLMSG_DATA(header);
    generic->cmd = command;
    generic->version = 1;
    return start;
}

static void end(struct messages *all, size_t start)
{
    ((struct nlmsghdr *)(all->data + start))->nlmsg_len = all->used - start;
}

static void put(struct messages *all, uint16_t type, const void *value, size_t length)
{
    struct nlattr *attribute = room(all, NLA_HDRLEN + length);
    attribute->nla_len = NLA_HDRLEN + length;
    attribute->nla_type = type;
    memcpy((char *)attribute + NLA_HDRLEN, value, length);
}

static void put16(struct messages *all, uint16_t type, uint16_t value) { put(all, type, &value, 2); }
static void put32(struct messages *all, uint16_t type, uint32_t value) { put(all, type, &value, 4); }

static size_t nest(struct messages *all, uint16_t type)
{
    size_t start = all->used;
    put(all, type, "", 0);
    return start;
}

static void unnest(struct messages *all, size_t start)
{
    ((struct nlattr *)(all->data + start))->nla_len = all->used - start;
}

static void put_address(struct messages *all, uint16_t type, uint32_t ipv4, uint8_t ipv6, uint32_t number)
{
    uint8_t address[16] = {0};
    if (family == AF_INET) {
        *(uint32_t *)address = htonl(ipv4 + number);
    } else {
        address[0] = 0xfd;
        address[1] = ipv6;
        *(uint32_t *)(address + 12) = htonl(number + 1);
    }
    put(all, type, address, 16);
}

static void put_service(struct messages *all, unsigned number, int whole)
{
    struct ip_vs_flags flags = {0, ~0u};
    size_t start = nest(all, IPVS_CMD_ATTR_SERVICE);
    put16(all, IPVS_SVC_ATTR_AF, family);
    put16(all, IPVS_SVC_ATTR_PROTOCOL, IPPROTO_TCP);
    put_address(all, IPVS_SVC_ATTR_ADDR, 0xAC100001, 0, number);
    put16(all, IPVS_SVC_ATTR_PORT, htons(80));
    if (whole) {
        put(all, IPVS_SVC_ATTR_SCHED_NAME, "rr", 3);
        put(all, IPVS_SVC_ATTR_FLAGS, &flags, sizeof flags);
        put32(all, IPVS_SVC_ATTR_TIMEOUT, 0);
        put32(all, IPVS_SVC_ATTR_NETMASK, family == AF_INET ? ~0u : 128);
    }
    unnest(all, start);
}

static void put_destination(struct messages *all, unsigned number, int whole)
{
    size_t start = nest(all, IPVS_CMD_ATTR_DEST);
    put_address(all, IPVS_DEST_ATTR_ADDR, 0x0A000001, 1, number);
    put16(all, IPVS_DEST_ATTR_PORT, htons(8080));
    put16(all, IPVS_DEST_ATTR_ADDR_FAMILY, family);
    if (whole) {
        put32(all, IPVS_DEST_ATTR_FWD_METHOD, IP_VS_CONN_F_MASQ);
        put32(all, IPVS_DEST_ATTR_WEIGHT, wanted_weight);
        put32(all, IPVS_DEST_ATTR_U_THRESH, 0);
        put32(all, IPVS_DEST_ATTR_L_THRESH, 0);
    }
    unnest(all, start);
}

static void service_message(struct messages *all, uint8_t command, unsigned number, uint16_t flags)
{
    size_t start = begin(all, ipvs, command, flags);
    put_service(all, number, command != IPVS_CMD_DEL_SERVICE);
    end(all, start);
}

static void destination_message(struct messages *all, uint8_t command, unsigned service, unsigned number, uint16_t flags)
{
    size_t start = begin(all, ipvs, command, flags);
    put_service(all, service, 0);
    put_destination(all, number, command != IPVS_CMD_DEL_DEST);
    end(all, start);
}

/* Sending changes */

/* Read until message `last` is acknowledged; an error of any message ends the program. */
static void await(uint32_t last)
{
    for (;;) {
        ssize_t got = recv(fd, pieces[0], PIECE, 0);
        if (got < 0)
            die("waiting for the acknowledgement of message %u: %s", last, strerror(errno));
        for (struct nlmsghdr *header = (void *)pieces[0]; NLMSG_OK(header, got); header = NLMSG_NEXT(header, got)) {
            if (header->nlmsg_type != NLMSG_ERROR)
                die("an answer of type %u to a change", header->nlmsg_type);
            int code = ((struct nlmsgerr *)NLMSG_DATA(header))->error;
            if (code)
                die("message %u: %s", header->nlmsg_seq, strerror(-code));
            if (header->nlmsg_seq == last)
                return;
        }
    }
}

static void transmit(const void *data, size_t length)
{
    ssize_t sent = send(fd, data, length, 0);
    if (sent < 0 || (size_t)sent != length)
        die("sending %zu bytes: %s", length, sent < 0 ? strerror(errno) : "only a part went");
}

/* All messages, as many to a send as fit into BATCH, the last of each marked for acknowledgement. */
static void send_all(const struct messages *all)
{
    for (size_t from = 0, to; from < all->used; from = to) {
        struct nlmsghdr *last = NULL;
        for (to = from; to < all->used; to += NLMSG_ALIGN(last->nlmsg_len)) {
            struct nlmsghdr *header = (void *)(all->data + to);
            if (to + header->nlmsg_len - from > BATCH)
                break;
            last = header;
        }
        last->nlmsg_flags |= NLM_F_ACK;
        transmit(all->data + from, to - from);
        await(last->nlmsg_seq);
    }
}

/* Reading */

typedef void visitor(const struct nlmsghdr *, void *);

/* One dump: each entry to `visit`; how many there were. */
static unsigned dump(const struct nlmsghdr *request, visitor *visit, void *visitor_s)
{
    static struct mmsghdr slots[PIECES];
    static struct iovec vectors[PIECES];
    unsigned entries = 0;
    for (int i = 0; i < PIECES; i++) {
        vectors[i] = (struct iovec){pieces[i], PIECE};
        slots[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
    }
    transmit(request, request->nlmsg_len);
    for (;;) {
        int filled = recvmmsg(fd, slots, PIECES, MSG_WAITFORONE, NULL);
        if (filled < 0)
            die("reading a dump: %s", strerror(errno));
        for (int i = 0; i < filled; i++) {
            ssize_t got = slots[i].msg_len;
            if (slots[i].msg_hdr.msg_flags & MSG_TRUNC)
                die("an answer was cut off");
            for (struct nlmsghdr *header = (void *)pieces[i]; NLMSG_OK(header, got); header = NLMSG_NEXT(header, got)) {
                if (header->nlmsg_seq != request->nlmsg_seq)
                    die("an answer to message %u instead of %u", header->nlmsg_seq, request->nlmsg_seq);
                if (header->nlmsg_type == NLMSG_DONE || header->nlmsg_type == NLMSG_ERROR) {
                    int code = *(int *)NLMSG_DATA(header);
                    if (code)
                        die("a dump: %s", strerror(-code));
                    return entries;
                }
                if (header->nlmsg_type != ipvs)
                    die("an answer of type %u in a dump", header->nlmsg_type);
                entries++;
                if (visit)
                    visit(header, visitor_s);
            }
        }
    }
}

/* A request for the destinations of the service that this answer describes. */
static void ask_for_destinations(const struct nlmsghdr *answer, void *requests)
{
    struct messages *all = requests;
    const struct nlattr *outer = (void *)((char *)NLMSG_DATA(answer) + GENL_HDRLEN);
    size_t start = begin(all, ipvs, IPVS_CMD_GET_DEST, NLM_F_DUMP);
    size_t nested = nest(all, IPVS_CMD_ATTR_SERVICE);
    unsigned found = 0;
    for (int at = NLA_HDRLEN; at + NLA_HDRLEN <= outer->nla_len;) {
        const struct nlattr *inner = (void *)((char *)outer + at);
        unsigned type = inner->nla_type & NLA_TYPE_MASK;
        if (inner->nla_len < NLA_HDRLEN || at + inner->nla_len > outer->nla_len)
            die("a malformed service");
        if (type >= IPVS_SVC_ATTR_AF && type <= IPVS_SVC_ATTR_PORT) {
            put(all, type, (char *)inner + NLA_HDRLEN, inner->nla_len - NLA_HDRLEN);
            found++;
        }
        at += NLA_ALIGN(inner->nla_len);
    }
    if (found != 4)
        die("a service with %u of the 4 attributes of its key", found);
    unnest(all, nested);
    end(all, start);
}

static void read_table(unsigned want_services, unsigned want_destinations)
{
    struct messages first = {0}, requests = {0};
    end(&first, begin(&first, ipvs, IPVS_CMD_GET_SERVICE, NLM_F_DUMP));
    unsigned seen = dump((void *)first.data, ask_for_destinations, &requests), destinations = 0;
    for (size_t at = 0; at < requests.used;) {
        struct nlmsghdr *request = (void *)(requests.data + at);
        destinations += dump(request, NULL, NULL);
        at += NLMSG_ALIGN(request->nlmsg_len);
    }
    free(first.data);
    free(requests.data);
    if (seen != want_services || destinations != want_destinations)
        die("read %u services and %u destinations, not %u and %u", seen, destinations, want_services, want_destinations);
}

/* The socket */

static void resolve(void)
{
    struct messages one = {0};
    size_t start = begin(&one, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 0);
    put(&one, CTRL_ATTR_FAMILY_NAME, "IPVS", 5);
    end(&one, start);
    transmit(one.data, one.used);
    free(one.data);
    ssize_t got = recv(fd, pieces[0], PIECE, 0);
    struct nlmsghdr *header = (void *)pieces[0];
    if (got < 0 || !NLMSG_OK(header, got))
        die("resolving IPVS: %s", got < 0 ? strerror(errno) : "a malformed answer");
    if (header->nlmsg_type == NLMSG_ERROR)
        die("resolving IPVS: %s", strerror(-*(int *)NLMSG_DATA(header)));
    char *stop = (char *)header + header->nlmsg_len;
    for (char *at = (char *)NLMSG_DATA(header) + GENL_HDRLEN; at < stop; at += NLA_ALIGN(((struct nlattr *)at)->nla_len))
        if (((struct nlattr *)at)->nla_type == CTRL_ATTR_FAMILY_ID)
            ipvs = *(uint16_t *)(at + NLA_HDRLEN);
    if (!ipvs)
        die("resolving IPVS: no number in the answer");
}

static void open_socket(void)
{
    int size = 1 << 20;
    struct timeval limit = {60, 0};
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    if (fd >= 0)
        close(fd);
    if ((fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC)) < 0)
        die("socket: %s", strerror(errno));
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size)
        || setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size)
        || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit)
        || connect(fd, (void *)&kernel, sizeof kernel))
        die("preparing the socket: %s", strerror(errno));
    resolve();
}

/* Verbs */

static void on_each(struct messages *all, uint8_t command)
{
    for (unsigned i = 0; i < services; i++)
        for (unsigned j = 0; j < each; j++)
            destination_message(all, command, i, i * each + j, 0);
}

static void load(void)
{
    struct messages all = {0};
    open_socket();
    double begun = now();
    for (unsigned i = 0; i < services; i++)
        service_message(&all, IPVS_CMD_NEW_SERVICE, i, 0);
    on_each(&all, IPVS_CMD_NEW_DEST);
    double built = now();
    send_all(&all);
    double sent = now();
    say("load", sent - begun);
    say("load_sends", sent - built);
    free(all.data);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void read_all(void)
{
    double begun = now(), later[WARM];
    open_socket();
    read_table(services, services * each);
    say("read_cold", now() - begun);
    for (int i = 0; i < WARM; i++) {
        begun = now();
        read_table(services, services * each);
        later[i] = now() - begun;
    }
    qsort(later, WARM, sizeof *later, ascending);
    say("read_warm", later[WARM / 2]);
}

static void update(void)
{
    struct messages all = {0};
    open_socket();
    wanted_weight = 2;
    on_each(&all, IPVS_CMD_SET_DEST);
    double begun = now();
    send_all(&all);
    say("update", now() - begun);
    free(all.data);
}

static void pair(void)
{
    struct messages add = {0}, del = {0};
    open_socket();
    destination_message(&add, IPVS_CMD_NEW_DEST, 0, services * each, NLM_F_ACK);
    destination_message(&del, IPVS_CMD_DEL_DEST, 0, services * each, NLM_F_ACK);
    double begun = now();
    for (int i = 0; i < PAIRS; i++) {
        transmit(add.data, add.used);
        await(((struct nlmsghdr *)add.data)->nlmsg_seq);
        transmit(del.data, del.used);
        await(((struct nlmsghdr *)del.data)->nlmsg_seq);
    }
    say("pair", (now() - begun) / PAIRS);
}

static void delete(void)
{
    struct messages all = {0};
    open_socket();
    on_each(&all, IPVS_CMD_DEL_DEST);
    for (unsigned i = 0; i < services; i++)
        service_message(&all, IPVS_CMD_DEL_SERVICE, i, 0);
    double begun = now();
    send_all(&all);
    say("delete", now() - begun);
    read_table(0, 0);
    free(all.data);
}

static const struct {
    const char *name;
    void (*run)(void);
} verbs[] = {{"load", load}, {"read", read_all}, {"update", update}, {"pair", pair}, {"delete", delete}};
enum { VERBS = sizeof verbs / sizeof *verbs };

int main(int count, char **words)
{
    if (count < 4 || atoi(words[1]) < 1 || atoi(words[2]) < 1 || (strcmp(words[3], "4") && strcmp(words[3], "6")))
        die("usage: limit SERVICES DESTINATIONS 4|6 [load|read|update|pair|delete ...]");
    services = atoi(words[1]);
    each = atoi(words[2]);
    family = words[3][0] == '4' ? AF_INET : AF_INET6;
    for (int i = 0; i < VERBS && count == 4; i++)
        verbs[i].run();
    for (int word = 4; word < count; word++) {
        int i = 0;
        while (i < VERBS && strcmp(verbs[i].name, words[word]))
            i++;
        if (i == VERBS)
            die("no verb %s", words[word]);
        verbs[i].run();
    }
    return fflush(stdout) ? 1 : 0;
}
