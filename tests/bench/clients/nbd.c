/* An NBD client for the bench: `nbd SOCKET WORK...`, one connection and thread a queue.
 *
 * It speaks just enough of the protocol (newstyle handshake, simple replies) to keep DEPTH requests
 * in flight on each connection. What was asked for at one time goes out by one system call.
 */
#define _GNU_SOURCE
#include "lane.h"

#include <endian.h>
#include <sys/socket.h>
#include <sys/un.h>

#define GREETING 18              /* "NBDMAGIC", "IHAVEOPT", flags */
#define OPTION_MAGIC 0x49484156454f5054u
#define EXPORT_NAME 1u
#define EXPORT_REPLY 10          /* size and flags; no zeros follow (NBD_FLAG_C_NO_ZEROES) */
#define REQUEST_MAGIC 0x25609513u
#define REPLY_MAGIC 0x67446698u
#define REPLY 16

struct request {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t handle, offset;
    uint32_t length;
} __attribute__((packed));

struct connection {
    int fd;
    char *in, *out, *data;
    size_t held, out_size;
    uint64_t *started;
};

static struct connection connections[MOST_LANES];
static size_t in_size;

static void send_all(int fd, const void *bytes, size_t size)
{
    const char *at = bytes;
    while (size) {
        ssize_t sent = send(fd, at, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            die("send: %s", strerror(errno));
        if (sent > 0) {
            at += sent;
            size -= (size_t)sent;
        }
    }
}

static void receive_all(int fd, void *bytes, size_t size)
{
    ssize_t got = recv(fd, bytes, size, MSG_WAITALL);
    if (got != (ssize_t)size)
        die("handshake: %s", got < 0 ? strerror(errno) : "the server went away");
}

static void open_connection(struct connection *to, const char *path)
{
    char greeting[GREETING], reply[EXPORT_REPLY];
    uint32_t flags = htobe32(3); /* fixed newstyle, no zeros */
    struct {
        uint64_t magic;
        uint32_t option, length;
    } __attribute__((packed)) option = {htobe64(OPTION_MAGIC), htobe32(EXPORT_NAME), 0};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        die("%s is too long", path);
    strcpy(address.sun_path, path);
    to->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (to->fd < 0 || connect(to->fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("%s: %s", path, strerror(errno));
    receive_all(to->fd, greeting, sizeof greeting);
    send_all(to->fd, &flags, sizeof flags);
    send_all(to->fd, &option, sizeof option);
    receive_all(to->fd, reply, sizeof reply);
    to->in = malloc(in_size);
    to->out = malloc(work.depth * (sizeof(struct request) + work.block));
    to->data = shared_memory(work.depth * work.block);
    to->started = calloc(work.depth, sizeof *to->started);
}

static void ask(struct lane *lane, struct connection *to, uint64_t slot, uint64_t now)
{
    struct request request = {
        .magic = htobe32(REQUEST_MAGIC),
        .type = htobe16(work.writes ? 1 : 0),
        .handle = slot,
        .offset = htobe64(lane_place(lane)),
        .length = htobe32((uint32_t)work.block),
    };
    memcpy(to->out + to->out_size, &request, sizeof request);
    to->out_size += sizeof request;
    if (work.writes) {
        memcpy(to->out + to->out_size, to->data + slot * work.block, work.block);
        to->out_size += work.block;
    }
    to->started[slot] = now;
}

/* Take one reply out of what was received; its size, 0 if it is not whole yet. */
static size_t take(struct lane *lane, struct connection *from, size_t at, uint64_t *slot)
{
    uint32_t magic, error;
    size_t size = REPLY;
    if (from->held - at < REPLY)
        return 0;
    memcpy(&magic, from->in + at, 4);
    memcpy(&error, from->in + at + 4, 4);
    memcpy(slot, from->in + at + 8, 8);
    if (be32toh(magic) != REPLY_MAGIC || *slot >= work.depth)
        die("not a simple reply");
    if (!work.writes && !error) {
        size += work.block;
        if (from->held - at < size)
            return 0;
        memcpy(from->data + *slot * work.block, from->in + at + REPLY, work.block);
    }
    lane->failed += error != 0;
    return size;
}

static void lane_run(struct lane *lane)
{
    struct connection *to = &connections[lane->index];
    uint64_t submitted = 0, completed = 0, now = now_ns(), slot;
    to->held = to->out_size = 0;
    while (submitted < work.depth && lane_next(lane))
        ask(lane, to, submitted++, now);
    while (completed < submitted) {
        size_t at = 0, size;
        if (to->out_size)
            send_all(to->fd, to->out, to->out_size);
        to->out_size = 0;
        ssize_t got = recv(to->fd, to->in + to->held, in_size - to->held,
                           work.polls ? MSG_DONTWAIT : 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (got <= 0)
            die("receive: %s", got ? strerror(errno) : "the server went away");
        to->held += (size_t)got;
        now = now_ns();
        while ((size = take(lane, to, at, &slot))) {
            at += size;
            lane_record(lane, now - to->started[slot]);
            completed++;
            if (lane_next(lane)) {
                submitted++;
                ask(lane, to, slot, now);
            }
        }
        to->held -= at;
        memmove(to->in, to->in + at, to->held);
    }
}

int main(int count, char **words)
{
    if (count != 7)
        die("usage: nbd SOCKET BLOCK SPAN DEPTH QUEUES LETTERS");
    work_parse(words + 2);
    in_size = 4 * (REPLY + work.block) > 262144 ? 4 * (REPLY + work.block) : 262144;
    for (unsigned i = 0; i < work.lanes; i++)
        open_connection(&connections[i], words[1]);
    return lanes_serve();
}
