/* rtc NUMBER UNTIL: /dev/ptpNUMBER is read again and again; it never goes back.
 * rtc alarm SECONDS: /dev/rtc0 wakes us so many seconds from now.
 */
#include <fcntl.h>
#include <linux/rtc.h>
#include <sys/ioctl.h>

#include "common.h"

static void alarm_in(int seconds)
{
	int clock = must(open("/dev/rtc0", O_RDONLY), "/dev/rtc0");
	struct rtc_time now, then;
	struct rtc_wkalrm wakes = { .enabled = 1 };
	struct tm tm = { 0 };
	unsigned long events;
	time_t at;

	must(ioctl(clock, RTC_RD_TIME, &now), "RTC_RD_TIME");
	/* Its first fields are those of libc's. */
	memcpy(&tm, &now, sizeof(now));
	at = timegm(&tm) + seconds;
	gmtime_r(&at, &tm);
	memcpy(&wakes.time, &tm, sizeof(wakes.time));
	must(ioctl(clock, RTC_WKALM_SET, &wakes), "RTC_WKALM_SET");
	printf("set\n");
	must(read(clock, &events, sizeof(events)), "read");
	must(ioctl(clock, RTC_RD_TIME, &then), "RTC_RD_TIME");
	memcpy(&tm, &then, sizeof(then));
	printf("events=%lx\nlate=%ld\n", events, (long)(timegm(&tm) - at));
}

static void readings(const char *number, const char *until)
{
	char path[32];
	int64_t first = 0, last = 0;
	unsigned int count = 0, back = 0;
	int file;

	snprintf(path, sizeof(path), "/dev/ptp%s", number);
	file = must(open(path, O_RDWR), path);
	do {
		/* A clock by its file: include/linux/posix-timers.h of the kernel. */
		int64_t came = now_of(~(clockid_t)file << 3 | 3);

		if (!count++)
			first = came;
		back += came < last;
		last = came;
	} while (!enough(until));
	printf("first=%ld\nlast=%ld\ncount=%u\nback=%u\n", first, last, count, back);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc < 3)
		return 2;
	if (!strcmp(argv[1], "alarm"))
		alarm_in(atoi(argv[2]));
	else
		readings(argv[1], argv[2]);
	return 0;
}
