/* can kinds: one frame of each kind is sent, and what comes back is said.
 * can off: another node answers; one frame has the controller go bus off, and it comes back when it is started anew.
 * can rounds UNTIL: numbered frames are sent; each comes back, or is refused or lost.
 */
#include <linux/can.h>
#include <linux/can/error.h>
#include <linux/can/raw.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "common.h"

enum { LOST_MS = 8000, BOUND_MS = 60000 };

static int bus;

static void turn(int up)
{
	struct ifreq wanted = { .ifr_name = "can0" };

	must(ioctl(bus, SIOCGIFFLAGS, &wanted), "SIOCGIFFLAGS");
	wanted.ifr_flags = up ? wanted.ifr_flags | IFF_UP : wanted.ifr_flags & ~IFF_UP;
	must(ioctl(bus, SIOCSIFFLAGS, &wanted), up ? "up" : "down");
}

static void attach(void)
{
	const int off = 0, on = 1;
	const can_err_mask_t errors = CAN_ERR_MASK;
	struct ifreq wanted = { .ifr_name = "can0" };
	struct sockaddr_can address = { .can_family = AF_CAN };

	bus = must(socket(PF_CAN, SOCK_RAW, CAN_RAW), "socket");
	must(ioctl(bus, SIOCGIFINDEX, &wanted), "can0");
	address.can_ifindex = wanted.ifr_ifindex;
	turn(1);
	/* What comes is what the device gives, and no echo of this kernel's. */
	must(setsockopt(bus, SOL_CAN_RAW, CAN_RAW_LOOPBACK, &off, sizeof(off)), "CAN_RAW_LOOPBACK");
	must(setsockopt(bus, SOL_CAN_RAW, CAN_RAW_FD_FRAMES, &on, sizeof(on)), "CAN_RAW_FD_FRAMES");
	must(setsockopt(bus, SOL_CAN_RAW, CAN_RAW_ERR_FILTER, &errors, sizeof(errors)), "CAN_RAW_ERR_FILTER");
	must(bind(bus, (struct sockaddr *)&address, sizeof(address)), "bind");
}

/* The size of what came, 0 if there is nothing for so long. */
static int receive(struct canfd_frame *frame, int bound_ms)
{
	struct pollfd waits = { .fd = bus, .events = POLLIN };

	if (must(poll(&waits, 1, bound_ms), "poll") == 0)
		return 0;
	return must(read(bus, frame, sizeof(*frame)), "read");
}

static void kinds(void)
{
	const struct canfd_frame frames[] = {
		{ .can_id = 0x123, .len = 8, .data = "classic" },
		{ .can_id = 0x1234567 | CAN_EFF_FLAG, .len = 5, .data = "long" },
		{ .can_id = 0x321 | CAN_RTR_FLAG, .len = 3 },
		{ .can_id = 0x7ff, .len = 64, .data = "much" },
	};

	for (unsigned int number = 0; number < 4; number++) {
		const struct canfd_frame *frame = &frames[number];
		size_t size = frame->len > 8 ? CANFD_MTU : CAN_MTU;
		struct canfd_frame came = { 0 };
		int got;

		must(write(bus, frame, size), "write");
		got = receive(&came, BOUND_MS);
		printf("kind%u=%d %x %u %.8s\n", number, got, came.can_id, came.len, came.data);
	}
}

/* A frame that asks another node, and what it says. */
static void ask(const char *when)
{
	struct can_frame frame = { .can_id = 0x700, .len = 3, .data = "abc" };
	struct canfd_frame came = { 0 };

	must(write(bus, &frame, sizeof(frame)), "write");
	receive(&came, BOUND_MS);
	printf("%s=%x %.3s\n", when, came.can_id, came.data);
}

static void off(void)
{
	struct can_frame frame = { .can_id = 0x704 };
	struct canfd_frame came = { 0 };

	ask("before");
	must(write(bus, &frame, sizeof(frame)), "write");
	/* An interface that goes down, or is down, is an error for a socket that reads. */
	receive(&came, BOUND_MS);
	printf("off=%x\n", came.can_id);
	turn(0);
	turn(1);
	while (recv(bus, &came, sizeof(came), MSG_DONTWAIT) >= 0 || errno == ENETDOWN)
		;
	ask("after");
}

/* What becomes of a frame with a number: 1 if it comes back, 0 if another node may have it and may not, which Linux is
 * told, -1 if nothing comes. One that was given up may still come back, once and in its order; else it is wrong.
 */
static int became(uint32_t number, uint32_t *wrong)
{
	static uint32_t next;

	for (;;) {
		struct canfd_frame came = { 0 };
		uint32_t data;

		if (receive(&came, LOST_MS) == 0)
			return -1;
		if (came.can_id & CAN_ERR_FLAG)
			return 0;
		memcpy(&data, came.data, 4);
		*wrong += came.len != 4 || came.can_id != (data & CAN_SFF_MASK) || data < next || data > number;
		next = data + 1;
		if (data >= number)
			return 1;
	}
}

static void rounds(const char *until)
{
	uint32_t count = 0, back = 0, refused = 0, lost = 0, wrong = 0;

	do {
		struct can_frame frame = { .can_id = count & CAN_SFF_MASK, .len = 4 };
		int fate;

		memcpy(frame.data, &count, 4);
		must(write(bus, &frame, sizeof(frame)), "write");
		fate = became(count++, &wrong);
		back += fate > 0;
		refused += fate == 0;
		lost += fate < 0;
	} while (!enough(until));
	printf("count=%u\nback=%u\nrefused=%u\nlost=%u\nwrong=%u\n", count, back, refused, lost, wrong);
}

int main(int argc, char **argv)
{
	attach();
	if (argc > 1 && !strcmp(argv[1], "off"))
		off();
	else if (argc > 2)
		rounds(argv[2]);
	else
		kinds();
	return 0;
}
