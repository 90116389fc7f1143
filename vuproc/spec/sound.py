"""Numbers and layouts of the sound device (virtio 1.3 section 5.14)."""

from __future__ import annotations

from enum import IntEnum

from vuproc.spec.layout import Layout

CONTROL, EVENT, TRANSMIT, RECEIVE = range(4)
"""The queues (5.14.2)."""
QUEUES = 4
OUTPUT, INPUT = 0, 1
"""Where a stream's sound goes, as the guest has it (5.14.6.2)."""
MAX_CHANNELS = 18
"""Channels of a channel map, VIRTIO_SND_CHMAP_MAX_SIZE (5.14.6.9.1)."""


class SoundRequest(IntEnum):
    """What a control request asks for (5.14.6.2)."""

    JACK_INFO = 0x0001
    JACK_REMAP = 0x0002
    PCM_INFO = 0x0100
    PCM_SET_PARAMS = 0x0101
    PCM_PREPARE = 0x0102
    PCM_RELEASE = 0x0103
    PCM_START = 0x0104
    PCM_STOP = 0x0105
    CHMAP_INFO = 0x0200


class SoundStatus(IntEnum):
    """What a request is answered with (5.14.6.2)."""

    OK = 0x8000
    BAD_MSG = 0x8001
    NOT_SUPP = 0x8002
    IO_ERR = 0x8003


class SampleFormat(IntEnum):
    """Sample formats, little-endian, as `format` has them; bits of `formats` (5.14.6.6.2)."""

    U8 = 4
    S16 = 5
    S24_3 = 11
    """24 bits in 3 bytes."""
    S32 = 17
    FLOAT = 19
    """32 bits, from -1 to 1."""


SAMPLE_BYTES: dict[SampleFormat, int] = {
    SampleFormat.U8: 1,
    SampleFormat.S16: 2,
    SampleFormat.S24_3: 3,
    SampleFormat.S32: 4,
    SampleFormat.FLOAT: 4,
}

RATES: tuple[int, ...] = (
    5512,
    8000,
    11025,
    16000,
    22050,
    32000,
    44100,
    48000,
    64000,
    88200,
    96000,
    176400,
    192000,
    384000,
)
"""Frames a second; `rate` is the place in this list, as are the bits of `rates` (5.14.6.6.2)."""


class Position(IntEnum):
    """Where a channel is heard (5.14.6.9.1)."""

    NA = 1
    MONO = 2
    FL = 3
    FR = 4
    RL = 5
    RR = 6
    FC = 7
    LFE = 8
    SL = 9
    SR = 10


CONFIG = Layout("virtio_snd_config", "<III", "jacks", "streams", "chmaps")
"""Config space without VIRTIO_SND_F_CTLS, 12 bytes (5.14.4)."""

HEADER = Layout("virtio_snd_hdr", "<I", "code")
"""What each control request and each answer begins with (5.14.6.1)."""

QUERY_INFO = Layout("virtio_snd_query_info", "<IIII", "code", "start_id", "count", "size")
"""JACK_INFO, PCM_INFO and CHMAP_INFO: `count` things, each in `size` bytes (5.14.6.1)."""

JACK_INFO = Layout(
    "virtio_snd_jack_info",
    "<IIIIB7x",
    "hda_fn_nid",
    "features",
    "hda_reg_defconf",
    "hda_reg_caps",
    "connected",
)
"""One jack (5.14.6.4.1)."""

PCM_INFO = Layout(
    "virtio_snd_pcm_info",
    "<IIQQBBB5x",
    "hda_fn_nid",
    "features",
    "formats",
    "rates",
    "direction",
    "channels_min",
    "channels_max",
)
"""One stream (5.14.6.6.2)."""

PCM_HEADER = Layout("virtio_snd_pcm_hdr", "<II", "code", "stream_id")
"""PREPARE, RELEASE, START, STOP, whole (5.14.6.6)."""

PCM_SET_PARAMS = Layout(
    "virtio_snd_pcm_set_params",
    "<IIIIIBBBx",
    "code",
    "stream_id",
    "buffer_bytes",
    "period_bytes",
    "features",
    "channels",
    "format",
    "rate",
)
"""Parameters of a stream (5.14.6.6.3)."""

CHMAP_INFO = Layout(
    "virtio_snd_chmap_info", "<IBB18s", "hda_fn_nid", "direction", "channels", "positions"
)
"""One channel map (5.14.6.9.1)."""

TRANSFER = Layout("virtio_snd_pcm_xfer", "<I", "stream_id")
"""What each transfer begins with, both ways (5.14.6.8)."""

TRANSFER_STATUS = Layout("virtio_snd_pcm_status", "<II", "status", "latency_bytes")
"""What each transfer ends with (5.14.6.8)."""

CONNECTED_OUTPUT = 0x0000_0010
CONNECTED_INPUT = 0x00A0_0020
"""`hda_reg_defconf` of a line out and of a microphone: the default device in bits 20 to 23, and an
association of its own (High Definition Audio 1.0a, 7.3.3.31).
"""
