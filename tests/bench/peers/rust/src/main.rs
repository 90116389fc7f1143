//! A multi-queue virtio-blk over vhost-user, one thread a queue: `blk-peer SOCKET IMAGE QUEUES [FLAG...]`.
//!
//! IMAGE `null` moves no data. Flags: `map` copies from and to a mapping of the image instead of
//! calling preadv and pwritev, `direct` opens it with O_DIRECT, `sum` reckons the CRC-32 of what
//! was read. It serves one connection after the other until it is killed.

mod disk;
mod request;

use std::io;
use std::sync::{Arc, Mutex};

use vhost::vhost_user::{Listener, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_SEG_MAX};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{new_event_consumer_and_notifier, EventConsumer};
use vmm_sys_util::event::{EventFlag, EventNotifier};

use disk::Disk;

const QUEUE_SIZE: usize = 1024;
const SEG_MAX: u32 = 126;
/// Requests after which the driver is told, if it wants to be, while there are more.
const BATCH: usize = 64;

type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;

struct Blk {
    disk: Arc<Disk>,
    queues: usize,
    memory: Memory,
    /// What ends the threads: the crate joins them when a daemon is dropped.
    ends: Mutex<Vec<EventNotifier>>,
}

impl Blk {
    /// Serve what there is; false if the queue was empty at once.
    fn drain(&self, vring: &VringRwLock) -> io::Result<bool> {
        let memory = self.memory.memory();
        let mut state = vring.get_mut();
        let mut any = false;
        loop {
            let mut served = 0;
            while served < BATCH {
                let Some(chain) = state.get_queue_mut().pop_descriptor_chain(&*memory) else {
                    break;
                };
                let head = chain.head_index();
                let written = request::serve(&self.disk, &memory, chain);
                state.add_used(head, written).map_err(io::Error::other)?;
                served += 1;
            }
            if served == 0 {
                return Ok(any);
            }
            any = true;
            if state.needs_notification().map_err(io::Error::other)? {
                state.signal_used_queue()?;
            }
        }
    }
}

impl VhostUserBackend for Blk {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        self.queues
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_MQ
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, _enabled: bool) {}

    /// struct virtio_blk_config (virtio 1.2, 5.2.4), up to num_queues.
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut space = vec![0u8; 60];
        space[0..8].copy_from_slice(&(self.disk.size() / 512).to_le_bytes());
        space[12..16].copy_from_slice(&SEG_MAX.to_le_bytes());
        space[20..24].copy_from_slice(&512u32.to_le_bytes());
        space[34..36].copy_from_slice(&(self.queues as u16).to_le_bytes());
        let (offset, size) = (offset as usize, size as usize);
        space.resize(space.len().max(offset + size), 0);
        space[offset..offset + size].to_vec()
    }

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        Ok(()) // It is the one that the daemon was made with.
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.queues).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let pair = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()?;
        self.ends.lock().unwrap().push(pair.1.try_clone().ok()?);
        Some(pair)
    }

    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        let vring = &vrings[event as usize];
        loop {
            vring.disable_notification().map_err(io::Error::other)?;
            self.drain(vring)?;
            // True if something came in between: nobody will kick for that.
            if !vring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, image, queues, flags @ ..] = arguments.as_slice() else {
        return Err("usage: blk-peer SOCKET IMAGE QUEUES [map] [direct] [sum]".into());
    };
    let disk = Arc::new(Disk::open(image, flags)?);
    let queues: usize = queues.parse()?;
    let mut listener = Listener::new(socket, true)?;
    loop {
        let memory = Memory::new(GuestMemoryMmap::new());
        let ends = Mutex::new(Vec::new());
        let blk = Arc::new(Blk { disk: disk.clone(), queues, memory: memory.clone(), ends });
        let mut daemon = VhostUserDaemon::new("blk-peer".into(), blk.clone(), memory)
            .map_err(|error| error.to_string())?;
        daemon.start(&mut listener).map_err(|error| error.to_string())?;
        if let Err(error) = daemon.wait() {
            eprintln!("connection ended: {error}");
        }
        for end in blk.ends.lock().unwrap().iter() {
            end.notify()?;
        }
    }
}
