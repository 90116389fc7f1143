/* i2c [UNTIL]: an EEPROM at 0x50 is written and read back by i2c-dev, eight bytes at a time. */
#include <fcntl.h>
#include <linux/i2c-dev.h>
#include <linux/i2c.h>
#include <sys/ioctl.h>

#include "common.h"

enum { CHIP = 0x50, SIZE = 256, CHUNK = 8 };

int main(int argc, char **argv)
{
	int bus = must(open("/dev/i2c-0", O_RDWR), "/dev/i2c-0");
	unsigned int rounds = 0, failed = 0, wrong = 0;

	do {
		uint8_t out[1 + CHUNK] = { rounds * CHUNK % SIZE }, in[CHUNK] = { 0 };
		struct i2c_msg writes = { .addr = CHIP, .len = sizeof(out), .buf = out };
		struct i2c_msg reads[] = {
			{ .addr = CHIP, .len = 1, .buf = out },
			{ .addr = CHIP, .flags = I2C_M_RD, .len = CHUNK, .buf = in },
		};
		struct i2c_rdwr_ioctl_data write = { &writes, 1 }, read = { reads, 2 };

		for (int at = 0; at < CHUNK; at++)
			out[1 + at] = pattern(rounds, at);
		if (ioctl(bus, I2C_RDWR, &write) < 0 || ioctl(bus, I2C_RDWR, &read) < 0)
			failed++;
		else if (memcmp(out + 1, in, CHUNK))
			wrong++;
		rounds++;
	} while (!enough(argc > 1 ? argv[1] : NULL));
	printf("rounds=%u\nfailed=%u\nwrong=%u\n", rounds, failed, wrong);
	return 0;
}
