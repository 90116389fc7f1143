//! One request: its header, its data in guest memory, its status byte (virtio 1.2, 5.2.6).

use libc::iovec;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::disk::Disk;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// More pieces than the device offers (seg_max), with header and status.
const MOST: usize = 256;

/// Serve it; how many bytes of guest memory were written. A chain without a place for the status is
/// dropped.
pub fn serve(
    disk: &Disk,
    memory: &GuestMemoryMmap<()>,
    mut chain: DescriptorChain<&GuestMemoryMmap<()>>,
) -> u32 {
    let mut header = [0u8; 16];
    let Some(first) = chain.next() else { return 0 };
    if first.is_write_only() || memory.read_slice(&mut header, first.addr()).is_err() {
        return 0;
    }
    let kind = u32::from_le_bytes(header[0..4].try_into().unwrap());
    let sector = u64::from_le_bytes(header[8..16].try_into().unwrap());
    let mut pieces = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MOST];
    let mut count = 0;
    let mut status: Option<GuestAddress> = None;
    let mut written = 1;
    while let Some(descriptor) = chain.next() {
        if !descriptor.has_next() {
            status = descriptor.is_write_only().then_some(descriptor.addr());
            break;
        }
        let length = descriptor.len() as usize;
        let Ok(slice) = memory.get_slice(descriptor.addr(), length) else { return 0 };
        if count == MOST || descriptor.is_write_only() != (kind == IN) {
            return 0;
        }
        let base = slice.ptr_guard_mut().as_ptr();
        pieces[count] = iovec { iov_base: base.cast(), iov_len: length };
        count += 1;
        written += if kind == IN { descriptor.len() } else { 0 };
    }
    let Some(status) = status else { return 0 };
    let offset = sector.saturating_mul(512);
    let done = match kind {
        IN => disk.read(&pieces[..count], offset),
        OUT => disk.write(&pieces[..count], offset),
        FLUSH => disk.flush(),
        _ => {
            let _ = memory.write_obj(UNSUPP, status);
            return 1;
        }
    };
    let _ = memory.write_obj(if done { OK } else { IOERR }, status);
    written
}
