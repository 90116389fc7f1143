/* sound play UNTIL: frames with their numbers are played. sound record UNTIL: such frames are recorded.
 * In the middle of it playing pauses. 16 bits, two channels, 48000 frames a second.
 */
#include <fcntl.h>
#include <sound/asound.h>
#include <sys/ioctl.h>

#include "common.h"

enum { PERIOD = 3840, PERIODS = 16, RATE = 48000, PAUSE_AT = 8 * PERIOD };

static void exactly(struct snd_pcm_hw_params *hw, int which, unsigned int value)
{
	struct snd_interval *interval = &hw->intervals[which - SNDRV_PCM_HW_PARAM_FIRST_INTERVAL];

	interval->min = interval->max = value;
	interval->integer = 1;
}

static void one_of(struct snd_pcm_hw_params *hw, int which, unsigned int value)
{
	struct snd_mask *mask = &hw->masks[which - SNDRV_PCM_HW_PARAM_FIRST_MASK];

	memset(mask, 0, sizeof(*mask));
	mask->bits[value / 32] = 1u << value % 32;
}

static void configure(int pcm)
{
	struct snd_pcm_hw_params hw = { .rmask = ~0u };
	struct snd_pcm_sw_params sw = { .avail_min = PERIOD, .period_step = 1, .start_threshold = PERIOD };

	memset(hw.masks, 0xff, sizeof(hw.masks));
	for (unsigned int at = 0; at < sizeof(hw.intervals) / sizeof(hw.intervals[0]); at++)
		hw.intervals[at].max = ~0u;
	one_of(&hw, SNDRV_PCM_HW_PARAM_ACCESS, SNDRV_PCM_ACCESS_RW_INTERLEAVED);
	one_of(&hw, SNDRV_PCM_HW_PARAM_FORMAT, SNDRV_PCM_FORMAT_S16_LE);
	exactly(&hw, SNDRV_PCM_HW_PARAM_CHANNELS, 2);
	exactly(&hw, SNDRV_PCM_HW_PARAM_RATE, RATE);
	exactly(&hw, SNDRV_PCM_HW_PARAM_PERIOD_SIZE, PERIOD);
	exactly(&hw, SNDRV_PCM_HW_PARAM_PERIODS, PERIODS);
	must(ioctl(pcm, SNDRV_PCM_IOCTL_HW_PARAMS, &hw), "HW_PARAMS");
	/* A program that is late is no error: the boundary is out of reach. */
	sw.boundary = PERIOD * PERIODS;
	while (sw.boundary * 2 <= 0x7fffffffffffffffL - PERIOD * PERIODS)
		sw.boundary *= 2;
	sw.stop_threshold = sw.boundary;
	must(ioctl(pcm, SNDRV_PCM_IOCTL_SW_PARAMS, &sw), "SW_PARAMS");
	must(ioctl(pcm, SNDRV_PCM_IOCTL_PREPARE), "PREPARE");
}

/* All frames of a period. A device that is silent for as long as the buffer lasts is an error for Linux, and for us a
 * stall: whoever goes on has lost nothing.
 */
static uint32_t transfer(int pcm, unsigned long how, uint32_t *frames)
{
	uint32_t stalls = 0;

	for (unsigned int done = 0; done < PERIOD;) {
		struct snd_xferi rest = { .buf = frames + done, .frames = PERIOD - done };

		if (ioctl(pcm, how, &rest) == 0)
			done += rest.result;
		else if (errno == EIO)
			stalls++;
		else
			must(-1, "transfer");
	}
	return stalls;
}

/* Waits until all is played. DRAIN would give up in a stall. */
static void drain(int pcm)
{
	snd_pcm_sframes_t left;

	do {
		usleep(10000);
		must(ioctl(pcm, SNDRV_PCM_IOCTL_DELAY, &left), "DELAY");
	} while (left > 0);
	must(ioctl(pcm, SNDRV_PCM_IOCTL_DROP), "DROP");
}

int main(int argc, char **argv)
{
	static uint32_t frames[PERIOD];
	int plays = argc > 2 && !strcmp(argv[1], "play");
	uint32_t number = 0, wrong = 0, stalls = 0;
	int pcm;

	if (argc < 3)
		return 2;
	pcm = must(open(plays ? "/dev/snd/pcmC0D0p" : "/dev/snd/pcmC0D0c", O_RDWR), "pcmC0D0");
	configure(pcm);
	do {
		for (unsigned int at = 0; plays && at < PERIOD; at++)
			frames[at] = number++;
		stalls += transfer(pcm, plays ? SNDRV_PCM_IOCTL_WRITEI_FRAMES : SNDRV_PCM_IOCTL_READI_FRAMES, frames);
		if (plays && number == PAUSE_AT) {
			must(ioctl(pcm, SNDRV_PCM_IOCTL_PAUSE, 1), "PAUSE");
			must(ioctl(pcm, SNDRV_PCM_IOCTL_PAUSE, 0), "PAUSE");
		}
		for (unsigned int at = 0; !plays && at < PERIOD; at++)
			wrong += frames[at] != number++;
	} while (number <= PAUSE_AT || !enough(argv[2]));
	if (plays)
		drain(pcm);
	printf("frames=%u\nstalls=%u\nwrong=%u\n", number, stalls, wrong);
	return 0;
}
