"""Numbers and layouts of the file system device (virtio 1.3 section 5.11), whose requests are those
of FUSE, version 7 (linux/fuse.h; what is here is in 7.31 to 7.38). Little-endian.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from vuproc.spec.layout import Layout

HIPRIO = 0
"""The queue of FORGET, BATCH_FORGET and INTERRUPT; those after it are for requests (5.11.2)."""
TAG_BYTES = 36
"""Of the name of the file system in the configuration space, zeros included (5.11.4)."""
MAJOR = 7
MINOR = 38
MINOR_MIN = 31
"""The least minor version that a driver of this device speaks: Linux 5.4."""
ROOT = 1
"""The node id of the root directory."""
NAME_MAX = 255
"""Bytes of one component of a path (NAME_MAX)."""
PATH_MAX = 4096
"""Bytes of a path, its end included: of the target of a symlink, too."""
ERRNO_MAX = 511
"""Largest error number that the driver takes in an answer."""
ALIGN = 8
"""Directory entries are filled up to multiples of so many bytes."""


class Opcode(IntEnum):
    """What is asked for (`fuse_opcode`)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47


class InitFlag(IntFlag):
    """What both sides can do, of INIT (`FUSE_*`)."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22


class SetattrValid(IntFlag):
    """Which fields of SETATTR count (`FATTR_*`)."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


GETATTR_FH = 1 << 0
"""Flag of GETATTR: it is of the open file `fh`."""
FSYNC_FDATASYNC = 1 << 0
"""Flag of FSYNC: the content alone, and what is needed to find it."""
RENAME_NOREPLACE, RENAME_EXCHANGE = 1 << 0, 1 << 1
"""Flags of RENAME2, those of renameat2(2)."""

CONFIG = Layout("virtio_fs_config", "<36sI", "tag", "num_request_queues")
"""The configuration space (5.11.4), without the field of a feature that is not offered."""

IN_HEADER = Layout(
    "fuse_in_header",
    "<IIQQIIIHH",
    "len",
    "opcode",
    "unique",
    "nodeid",
    "uid",
    "gid",
    "pid",
    "total_extlen",
    "padding",
)
"""What each request begins with; `len` is that of the request without room for the answer."""
OUT_HEADER = Layout("fuse_out_header", "<IiQ", "len", "error", "unique")
"""What each answer begins with; `error` is 0 or a negative error number."""

INIT_IN = Layout("fuse_init_in", "<IIII", "major", "minor", "max_readahead", "flags")
"""The part of it that is there from 7.6 on."""
INIT_OUT = Layout(
    "fuse_init_out",
    "<IIIIHHIIHHI28x",
    "major",
    "minor",
    "max_readahead",
    "flags",
    "max_background",
    "congestion_threshold",
    "max_write",
    "time_gran",
    "max_pages",
    "map_alignment",
    "flags2",
)
ATTR = Layout(
    "fuse_attr",
    "<QQQQQQIIIIIIIIII",
    "ino",
    "size",
    "blocks",
    "atime",
    "mtime",
    "ctime",
    "atimensec",
    "mtimensec",
    "ctimensec",
    "mode",
    "nlink",
    "uid",
    "gid",
    "rdev",
    "blksize",
    "flags",
)
"""Attributes of a node; `blocks` are of 512 bytes."""
ENTRY_OUT = Layout(
    "fuse_entry_out",
    "<QQQQII",
    "nodeid",
    "generation",
    "entry_valid",
    "attr_valid",
    "entry_valid_nsec",
    "attr_valid_nsec",
)
"""What a name stands for, before its attributes; the times say how long that may be believed."""
ATTR_OUT = Layout("fuse_attr_out", "<QII", "attr_valid", "attr_valid_nsec", "dummy")
"""Before the attributes."""
FORGET_IN = Layout("fuse_forget_in", "<Q", "nlookup")
FORGET_ONE = Layout("fuse_forget_one", "<QQ", "nodeid", "nlookup")
BATCH_FORGET_IN = Layout("fuse_batch_forget_in", "<II", "count", "dummy")
GETATTR_IN = Layout("fuse_getattr_in", "<IIQ", "getattr_flags", "dummy", "fh")
SETATTR_IN = Layout(
    "fuse_setattr_in",
    "<IIQQQQQQIIIIIIII",
    "valid",
    "padding",
    "fh",
    "size",
    "lock_owner",
    "atime",
    "mtime",
    "ctime",
    "atimensec",
    "mtimensec",
    "ctimensec",
    "mode",
    "unused4",
    "uid",
    "gid",
    "unused5",
)
MKNOD_IN = Layout("fuse_mknod_in", "<IIII", "mode", "rdev", "umask", "padding")
MKDIR_IN = Layout("fuse_mkdir_in", "<II", "mode", "umask")
RENAME_IN = Layout("fuse_rename_in", "<Q", "newdir")
RENAME2_IN = Layout("fuse_rename2_in", "<QII", "newdir", "flags", "padding")
LINK_IN = Layout("fuse_link_in", "<Q", "oldnodeid")
OPEN_IN = Layout("fuse_open_in", "<II", "flags", "open_flags")
CREATE_IN = Layout("fuse_create_in", "<IIII", "flags", "mode", "umask", "open_flags")
OPEN_OUT = Layout("fuse_open_out", "<QII", "fh", "open_flags", "padding")
RELEASE_IN = Layout("fuse_release_in", "<QIIQ", "fh", "flags", "release_flags", "lock_owner")
READ_IN = Layout(
    "fuse_read_in",
    "<QQIIQII",
    "fh",
    "offset",
    "size",
    "read_flags",
    "lock_owner",
    "flags",
    "padding",
)
"""Of READ, READDIR and READDIRPLUS."""
WRITE_IN = Layout(
    "fuse_write_in",
    "<QQIIQII",
    "fh",
    "offset",
    "size",
    "write_flags",
    "lock_owner",
    "flags",
    "padding",
)
WRITE_OUT = Layout("fuse_write_out", "<II", "size", "padding")
"""Of COPY_FILE_RANGE, too."""
STATFS_OUT = Layout(
    "fuse_statfs_out",
    "<QQQQQIIII24x",
    "blocks",
    "bfree",
    "bavail",
    "files",
    "ffree",
    "bsize",
    "namelen",
    "frsize",
    "padding",
)
FSYNC_IN = Layout("fuse_fsync_in", "<QII", "fh", "fsync_flags", "padding")
SETXATTR_IN = Layout("fuse_setxattr_in", "<II", "size", "flags")
"""As it is without SETXATTR_EXT."""
GETXATTR_IN = Layout("fuse_getxattr_in", "<II", "size", "padding")
"""Of GETXATTR and LISTXATTR."""
GETXATTR_OUT = Layout("fuse_getxattr_out", "<II", "size", "padding")
ACCESS_IN = Layout("fuse_access_in", "<II", "mask", "padding")
FALLOCATE_IN = Layout("fuse_fallocate_in", "<QQQII", "fh", "offset", "length", "mode", "padding")
LSEEK_IN = Layout("fuse_lseek_in", "<QQII", "fh", "offset", "whence", "padding")
LSEEK_OUT = Layout("fuse_lseek_out", "<Q", "offset")
COPY_FILE_RANGE_IN = Layout(
    "fuse_copy_file_range_in",
    "<QQQQQQQ",
    "fh_in",
    "off_in",
    "nodeid_out",
    "fh_out",
    "off_out",
    "len",
    "flags",
)
DIRENT = Layout("fuse_dirent", "<QQII", "ino", "off", "namelen", "type")
"""Before the name, which is filled up with zeros to a multiple of ALIGN bytes."""
