/* A stream between a program in a guest and one of the host: bulk PORT
 *
 * Connects to the host by AF_VSOCK and says so. Then it does what it is told there, in 16 bytes,
 * two numbers of this machine's order: 0 and a count, to send so many bytes; or 1 and a count, to
 * receive so many and to answer with a byte. It ends when the host ends the connection.
 */

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

enum { HOST = 2, TO_HOST = 0, CHUNK = 256 * 1024 };

static char chunk[CHUNK];

static void fail(const char *what)
{
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static void send_bytes(int stream, uint64_t count)
{
    while (count) {
        size_t part = count < CHUNK ? (size_t)count : CHUNK;
        ssize_t done = send(stream, chunk, part, MSG_NOSIGNAL);
        if (done <= 0)
            fail("send");
        count -= (uint64_t)done;
    }
}

static void receive_bytes(int stream, uint64_t count)
{
    while (count) {
        size_t part = count < CHUNK ? (size_t)count : CHUNK;
        ssize_t done = recv(stream, chunk, part, 0);
        if (done <= 0)
            fail("recv");
        count -= (uint64_t)done;
    }
}

int main(int count, char **words)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = HOST};
    uint64_t order[2];
    int stream;
    if (count != 2)
        return 2;
    address.svm_port = (unsigned)strtoul(words[1], NULL, 10);
    stream = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (stream < 0 || connect(stream, (struct sockaddr *)&address, sizeof(address)))
        fail("connect");
    printf("connected\n");
    fflush(stdout);
    while (recv(stream, order, sizeof(order), MSG_WAITALL) == sizeof(order)) {
        if (order[0] == TO_HOST) {
            send_bytes(stream, order[1]);
        } else {
            receive_bytes(stream, order[1]);
            send_bytes(stream, 1);
        }
    }
    return 0;
}
