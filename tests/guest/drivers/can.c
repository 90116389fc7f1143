/* can kinds: one frame of each kind is sent, and what comes back is said.
 * can rounds UNTIL: numbered frames are sent; each comes back, or is refused or lost as others are under way.
 */
#include <linux/can.h>
#include <linux/can/error.h>
#include <linux/can/raw.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "common.h"

enum { LOST_MS = 2000 };

static int bus;

static void attach(void)
{
	const int off = 0, on = 1;
	const can_err_mask_t errors = CAN_ERR_MASK;
	struct ifreq wanted = { .ifr_name = "can0" };
	struct sockaddr_can address = { .can_family = AF_CAN };

	bus = must(socket(PF_CAN, SOCK_RAW, CAN_RAW), "socket");
	must(ioctl(bus, SIOCGIFINDEX, &wanted), "can0");
	address.can_ifindex = wanted.ifr_ifindex;
	must(ioctl(bus, SIOCGIFFLAGS, &wanted), "SIOCGIFFLAGS");
	wanted.ifr_flags |= IFF_UP;
	must(ioctl(bus, SIOCSIFFLAGS, &wanted), "up");
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
		got = receive(&came, 10 * LOST_MS);
		printf("kind%u=%d %x %u %.8s\n", number, got, came.can_id, came.len, came.data);
	}
}

static void rounds(const char *until)
{
	uint32_t count = 0, back = 0, refused = 0, lost = 0, wrong = 0;

	do {
		struct can_frame frame = { .can_id = count & CAN_SFF_MASK, .len = 4 };
		struct canfd_frame came = { 0 };
		int got;

		memcpy(frame.data, &count, 4);
		must(write(bus, &frame, sizeof(frame)), "write");
		got = receive(&came, LOST_MS);
		if (got == 0)
			lost++;
		else if (came.can_id & CAN_ERR_FLAG)
			refused++;
		else if (got == CAN_MTU && came.can_id == frame.can_id && !memcmp(came.data, frame.data, 4))
			back++;
		else
			wrong++;
		count++;
	} while (!enough(until));
	printf("count=%u\nback=%u\nrefused=%u\nlost=%u\nwrong=%u\n", count, back, refused, lost, wrong);
}

int main(int argc, char **argv)
{
	attach();
	if (argc > 2)
		rounds(argv[2]);
	else
		kinds();
	return 0;
}
