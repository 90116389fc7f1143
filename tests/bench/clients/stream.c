/* A guest's end of one TCP stream after the other: stream ADDRESS PORT.
 *
 * It connects, reads one byte, and does what that says until the other end closes: 'u', it sends;
 * 'd', it receives; 'e', it ends. Then it connects anew.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BLOCK = 128 << 10, TRIES = 600, PAUSE_US = 50000 };

static char block[BLOCK];

static int joined(const struct sockaddr_in *there)
{
    for (int tries = 0; tries < TRIES; tries++) {
        int end = socket(AF_INET, SOCK_STREAM, 0);
        if (end < 0)
            return -1;
        if (connect(end, (const struct sockaddr *)there, sizeof(*there)) == 0)
            return end;
        close(end);
        usleep(PAUSE_US);
    }
    return -1;
}

int main(int count, char **words)
{
    struct sockaddr_in there = {.sin_family = AF_INET};
    char what = 'e';
    if (count != 3 || inet_pton(AF_INET, words[1], &there.sin_addr) != 1) {
        fprintf(stderr, "stream ADDRESS PORT\n");
        return 2;
    }
    there.sin_port = htons((uint16_t)atoi(words[2]));
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        int end = joined(&there);
        if (end < 0)
            return 1;
        if (read(end, &what, 1) == 1) {
            if (what == 'e')
                return 0;
            while (what == 'u' ? write(end, block, BLOCK) > 0 : read(end, block, BLOCK) > 0)
                ;
        }
        close(end);
    }
}
