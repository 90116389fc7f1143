/* A program of the guest that has a conversation over AF_VSOCK, and says how it went.
 *
 * sockets connect PORT COUNT: to the host; send COUNT bytes while receiving, end sending, receive
 *                             until the end
 * sockets listen PORT COUNT:  the same with whom connects
 * sockets messages PORT COUNT: SEQPACKET: send COUNT messages and receive each of them back
 *
 * Byte i of what is sent is that of `pattern`; what comes is to be the same.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

#define HOST 2
#define BLOCK 65521
#define LARGEST 40000

static unsigned char block[BLOCK];

static void fail(const char *what)
{
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static unsigned char pattern(unsigned long i)
{
    return block[i % BLOCK] ^ (unsigned char)(i / BLOCK);
}

static int made(int kind, const char *port, int listens)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = HOST};
    int made = socket(AF_VSOCK, kind, 0), sock;

    address.svm_port = (unsigned)strtoul(port, NULL, 10);
    if (made < 0)
        fail("socket");
    if (!listens) {
        if (connect(made, (struct sockaddr *)&address, sizeof(address)))
            fail("connect");
        return made;
    }
    address.svm_cid = VMADDR_CID_ANY;
    if (bind(made, (struct sockaddr *)&address, sizeof(address)) || listen(made, 4))
        fail("listen");
    printf("listens=%s\n", port);
    fflush(stdout);
    sock = accept(made, NULL, NULL);
    if (sock < 0)
        fail("accept");
    close(made);
    return sock;
}

static void send_bytes(int sock, unsigned long count)
{
    static unsigned char buffer[50000];
    unsigned long sent = 0;

    while (sent < count) {
        unsigned long length = count - sent < sizeof(buffer) ? count - sent : sizeof(buffer), i;
        ssize_t done;

        for (i = 0; i < length; i++)
            buffer[i] = pattern(sent + i);
        done = send(sock, buffer, length, MSG_NOSIGNAL);
        if (done <= 0)
            fail("send");
        sent += (unsigned long)done;
    }
    if (shutdown(sock, SHUT_WR))
        fail("shutdown");
}

static void receive_bytes(int sock)
{
    static unsigned char buffer[100000];
    unsigned long came = 0;
    ssize_t length, i;

    while ((length = recv(sock, buffer, sizeof(buffer), 0)) > 0)
        for (i = 0; i < length; i++, came++)
            if (buffer[i] != pattern(came)) {
                printf("byte %lu is wrong\n", came);
                exit(1);
            }
    if (length < 0)
        fail("recv");
    printf("received=%lu\n", came);
}

static void converse(int sock, unsigned long count)
{
    int status;
    pid_t child;

    child = fork();
    if (child < 0)
        fail("fork");
    if (!child) {
        send_bytes(sock, count);
        exit(0);
    }
    receive_bytes(sock);
    if (waitpid(child, &status, 0) != child || status)
        fail("the child");
}

static void messages(int sock, unsigned long count)
{
    static unsigned char there[LARGEST], back[LARGEST + 1];
    unsigned long number, i;

    for (number = 0; number < count; number++) {
        size_t length = 1 + number * 7919 % LARGEST;
        ssize_t came;

        for (i = 0; i < length; i++)
            there[i] = pattern(number + i);
        if (send(sock, there, length, MSG_NOSIGNAL) != (ssize_t)length)
            fail("send");
        came = recv(sock, back, sizeof(back), 0);
        if (came < 0)
            fail("recv");
        if ((size_t)came != length || memcmp(there, back, length)) {
            printf("message %lu of %zu bytes is wrong: %zd\n", number, length, came);
            exit(1);
        }
    }
    printf("messages=%lu\n", number);
}

int main(int count, char **words)
{
    unsigned x = 1;
    int i;

    if (count != 4)
        return 2;
    for (i = 0; i < BLOCK; i++) {
        x = x * 1103515245 + 12345;
        block[i] = (unsigned char)(x >> 16);
    }
    if (!strcmp(words[1], "messages"))
        messages(made(SOCK_SEQPACKET, words[2], 0), strtoul(words[3], NULL, 10));
    else
        converse(made(SOCK_STREAM, words[2], !strcmp(words[1], "listen")),
                 strtoul(words[3], NULL, 10));
    return 0;
}
