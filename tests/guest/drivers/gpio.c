/* gpio UNTIL: line 0 is an output that is set and cleared; each of its edges comes back as one event of line 1.
 * gpio watch COUNT: says the next edges of line 2.
 */
#include <fcntl.h>
#include <linux/gpio.h>
#include <poll.h>
#include <sys/ioctl.h>

#include "common.h"

enum { BOUND_MS = 60000 };

static int chip;

static int line(unsigned int offset, uint64_t flags)
{
	struct gpio_v2_line_request request = {
		.offsets = { offset }, .num_lines = 1, .config.flags = flags, .consumer = "test",
	};

	must(ioctl(chip, GPIO_V2_GET_LINE_IOCTL, &request), "GPIO_V2_GET_LINE_IOCTL");
	return request.fd;
}

static struct gpio_v2_line_event next(int input)
{
	struct gpio_v2_line_event event;
	struct pollfd waits = { .fd = input, .events = POLLIN };

	if (must(poll(&waits, 1, BOUND_MS), "poll") == 0) {
		printf("no event comes\n");
		exit(1);
	}
	must(read(input, &event, sizeof(event)), "read");
	return event;
}

int main(int argc, char **argv)
{
	const uint64_t edges = GPIO_V2_LINE_FLAG_INPUT | GPIO_V2_LINE_FLAG_EDGE_RISING | GPIO_V2_LINE_FLAG_EDGE_FALLING;
	struct gpio_v2_line_values values = { .mask = 1 };
	unsigned int toggles = 0, wrong = 0;
	int input, output;

	if (argc < 2)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	chip = must(open("/dev/gpiochip0", O_RDWR), "/dev/gpiochip0");
	if (argc > 2) {
		input = line(2, edges);
		printf("watching\n");
		for (int count = atoi(argv[2]); count > 0; count--)
			printf("edge %s\n", next(input).id == GPIO_V2_LINE_EVENT_RISING_EDGE ? "up" : "down");
		return 0;
	}
	output = line(0, GPIO_V2_LINE_FLAG_OUTPUT);
	input = line(1, edges);
	do {
		struct gpio_v2_line_event event;
		uint32_t wanted;

		values.bits ^= 1;
		must(ioctl(output, GPIO_V2_LINE_SET_VALUES_IOCTL, &values), "GPIO_V2_LINE_SET_VALUES_IOCTL");
		event = next(input);
		wanted = values.bits ? GPIO_V2_LINE_EVENT_RISING_EDGE : GPIO_V2_LINE_EVENT_FALLING_EDGE;
		/* One that was told twice would be the next one's number. */
		wrong += event.id != wanted || event.line_seqno != ++toggles;
	} while (!enough(argv[1]) || values.bits);
	printf("toggles=%u\nwrong=%u\n", toggles, wrong);
	return 0;
}
