//! What requests are served from: a file by system calls, a mapping of it, or nothing.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, iovec};

const NULL_SIZE: u64 = 1 << 30;
const CRC_POLYNOMIAL: u32 = 0xedb8_8320;

enum Store {
    File(c_int),
    Map(*mut u8),
    Null,
}

/// A disk. Its file stays open and mapped until the process ends.
pub struct Disk {
    store: Store,
    size: u64,
    sums: Option<Box<[[u32; 256]; 8]>>,
}

// SAFETY: a mapping is shared memory by its nature; two requests for the same place may mix.
unsafe impl Send for Disk {}
unsafe impl Sync for Disk {}

impl Disk {
    pub fn open(image: &str, flags: &[String]) -> io::Result<Self> {
        let has = |flag: &str| flags.iter().any(|each| each == flag);
        let sums = has("sum").then(|| Box::new(tables()));
        if image == "null" {
            return Ok(Disk { store: Store::Null, size: NULL_SIZE, sums });
        }
        let mode = if has("direct") { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).write(true).custom_flags(mode).open(image)?;
        let size = file.metadata()?.len();
        let fd = file.as_raw_fd();
        std::mem::forget(file);
        if !has("map") {
            return Ok(Disk { store: Store::File(fd), size, sums });
        }
        // SAFETY: a new mapping at a place of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Disk { store: Store::Map(at.cast()), size, sums })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fill `pieces` from byte `offset`; whether all of it worked.
    pub fn read(&self, pieces: &[iovec], offset: u64) -> bool {
        let length: usize = pieces.iter().map(|piece| piece.iov_len).sum();
        if !self.holds(offset, length) {
            return false;
        }
        let done = match self.store {
            Store::Null => true,
            // SAFETY: the pieces were found in guest memory by the caller.
            Store::File(fd) => unsafe {
                let count = pieces.len() as c_int;
                libc::preadv(fd, pieces.as_ptr(), count, offset as i64) == length as isize
            },
            Store::Map(at) => {
                let mut from = offset as usize;
                for piece in pieces {
                    // SAFETY: as above; the range was checked against the mapping's size.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            at.add(from),
                            piece.iov_base.cast(),
                            piece.iov_len,
                        )
                    };
                    from += piece.iov_len;
                }
                true
            }
        };
        if let Some(tables) = &self.sums {
            for piece in pieces {
                // SAFETY: as above.
                let bytes =
                    unsafe { std::slice::from_raw_parts(piece.iov_base.cast(), piece.iov_len) };
                std::hint::black_box(sum(tables, bytes));
            }
        }
        done
    }

    /// The other way.
    pub fn write(&self, pieces: &[iovec], offset: u64) -> bool {
        let length: usize = pieces.iter().map(|piece| piece.iov_len).sum();
        if !self.holds(offset, length) {
            return false;
        }
        match self.store {
            Store::Null => true,
            // SAFETY: as in `read`.
            Store::File(fd) => unsafe {
                let count = pieces.len() as c_int;
                libc::pwritev(fd, pieces.as_ptr(), count, offset as i64) == length as isize
            },
            Store::Map(at) => {
                let mut to = offset as usize;
                for piece in pieces {
                    // SAFETY: as in `read`.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            piece.iov_base.cast(),
                            at.add(to),
                            piece.iov_len,
                        )
                    };
                    to += piece.iov_len;
                }
                true
            }
        }
    }

    pub fn flush(&self) -> bool {
        match self.store {
            // SAFETY: a system call on a descriptor of ours.
            Store::File(fd) => unsafe { libc::fdatasync(fd) == 0 },
            _ => true,
        }
    }

    fn holds(&self, offset: u64, length: usize) -> bool {
        offset.checked_add(length as u64).is_some_and(|end| end <= self.size)
    }
}

/// For eight bytes at a time.
fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    for first in 0..256u32 {
        let mut value = first;
        for _ in 0..8 {
            value = if value & 1 == 1 { value >> 1 ^ CRC_POLYNOMIAL } else { value >> 1 };
        }
        tables[0][first as usize] = value;
    }
    for first in 0..256 {
        for level in 1..8 {
            let before = tables[level - 1][first];
            tables[level][first] = before >> 8 ^ tables[0][(before & 0xff) as usize];
        }
    }
    tables
}

fn sum(tables: &[[u32; 256]; 8], bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    let words = bytes.chunks_exact(8);
    let rest = words.remainder();
    for word in words {
        let low = crc ^ u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        crc = tables[7][(low & 0xff) as usize]
            ^ tables[6][(low >> 8 & 0xff) as usize]
            ^ tables[5][(low >> 16 & 0xff) as usize]
            ^ tables[4][(low >> 24) as usize]
            ^ tables[3][word[4] as usize]
            ^ tables[2][word[5] as usize]
            ^ tables[1][word[6] as usize]
            ^ tables[0][word[7] as usize];
    }
    for byte in rest {
        crc = crc >> 8 ^ tables[0][((crc ^ *byte as u32) & 0xff) as usize];
    }
    !crc
}
