/* spi wire UNTIL: what is sent at chip select 0, by spidev, is received.
 * spi modes: which modes Linux has the chip at select 0 take, and whether transfers are made then.
 * spi flash UNTIL: /dev/mtd0, a NOR flash, is erased, written and read, a block after the other.
 */
#include <fcntl.h>
#include <linux/spi/spidev.h>
#include <mtd/mtd-user.h>
#include <sys/ioctl.h>

#include "common.h"

enum { MOST = 4096 };

static uint8_t out[1 << 16], in[1 << 16];

static void wire(const char *until)
{
	int chip = must(open("/dev/spidev0.0", O_RDWR), "/dev/spidev0.0");
	unsigned int rounds = 0, failed = 0, wrong = 0;

	do {
		unsigned int length = 1 + rounds * 37 % MOST;
		struct spi_ioc_transfer transfer = {
			.tx_buf = (uintptr_t)out, .rx_buf = (uintptr_t)in, .len = length, .speed_hz = 1000000,
			.delay_usecs = 10, .bits_per_word = 8,
		};

		for (unsigned int at = 0; at < length; at++)
			out[at] = pattern(rounds, at);
		memset(in, 0, length);
		if (ioctl(chip, SPI_IOC_MESSAGE(1), &transfer) < 0)
			failed++;
		else if (memcmp(out, in, length))
			wrong++;
		rounds++;
	} while (!enough(until));
	printf("rounds=%u\nfailed=%u\nwrong=%u\n", rounds, failed, wrong);
}

static void modes(void)
{
	const struct { const char *name; uint8_t mode; } all[] = {
		{ "mode0", SPI_MODE_0 }, { "mode1", SPI_MODE_1 }, { "mode2", SPI_MODE_2 }, { "mode3", SPI_MODE_3 },
		{ "high", SPI_CS_HIGH }, { "loop", SPI_LOOP }, { "last", SPI_LSB_FIRST },
	};
	int chip = must(open("/dev/spidev0.0", O_RDWR), "/dev/spidev0.0");

	for (unsigned int at = 0; at < sizeof(all) / sizeof(all[0]); at++) {
		struct spi_ioc_transfer transfer = {
			.tx_buf = (uintptr_t) "moon", .rx_buf = (uintptr_t)in, .len = 4, .bits_per_word = 8,
		};
		int takes = ioctl(chip, SPI_IOC_WR_MODE, &all[at].mode) == 0;
		int makes = takes && ioctl(chip, SPI_IOC_MESSAGE(1), &transfer) == 4;

		printf("%s=%s\n", all[at].name, makes ? (char *)in : takes ? strerror(errno) : "refused");
	}
}

static void flash(const char *until)
{
	int chip = must(open("/dev/mtd0", O_RDWR), "/dev/mtd0");
	struct mtd_info_user info;
	unsigned int rounds = 0, wrong = 0;

	must(ioctl(chip, MEMGETINFO, &info), "MEMGETINFO");
	do {
		struct erase_info_user block = { rounds * info.erasesize % info.size, info.erasesize };

		for (unsigned int at = 0; at < info.erasesize; at++)
			out[at] = pattern(rounds, at);
		must(ioctl(chip, MEMERASE, &block), "MEMERASE");
		must(pread(chip, in, info.erasesize, block.start), "read");
		for (unsigned int at = 0; at < info.erasesize; at++)
			wrong += in[at] != 0xff;
		must(pwrite(chip, out, info.erasesize, block.start), "write");
		must(pread(chip, in, info.erasesize, block.start), "read");
		wrong += !!memcmp(out, in, info.erasesize);
		rounds++;
	} while (!enough(until));
	printf("size=%u\nerasesize=%u\nrounds=%u\nwrong=%u\n", info.size, info.erasesize, rounds, wrong);
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "modes"))
		modes();
	else if (argc < 3)
		return 2;
	else if (!strcmp(argv[1], "flash"))
		flash(argv[2]);
	else
		wire(argv[2]);
	return 0;
}
