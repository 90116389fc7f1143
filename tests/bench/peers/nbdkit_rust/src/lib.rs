//! `nbdkit libnbdkit_peer.so file=IMAGE`: a file as the disk, by pread and pwrite on several threads.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use nbdkit::{plugin, Error, Flags, Result, Server, ThreadModel};

static IMAGE: OnceLock<File> = OnceLock::new();

struct Disk {
    image: &'static File,
}

fn failed(error: io::Error) -> Error {
    Error::new(error.raw_os_error().unwrap_or(libc::EIO), error.to_string())
}

impl Server for Disk {
    fn name() -> &'static str {
        "peer"
    }

    fn config(key: &str, value: &str) -> Result<()> {
        if key != "file" {
            return Err(Error::new(libc::EINVAL, "the one parameter is file"));
        }
        let opened = OpenOptions::new().read(true).write(true).open(value).map_err(failed)?;
        IMAGE.set(opened).map_err(|_| Error::new(libc::EINVAL, "one file is enough"))
    }

    fn open(_readonly: bool) -> Result<Box<dyn Server>> {
        let image = IMAGE.get().ok_or_else(|| Error::new(libc::EINVAL, "file is missing"))?;
        Ok(Box::new(Disk { image }))
    }

    fn thread_model() -> Result<ThreadModel> {
        Ok(ThreadModel::Parallel)
    }

    fn get_size(&self) -> Result<i64> {
        Ok(self.image.metadata().map_err(failed)?.len() as i64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.image.read_exact_at(buffer, offset).map_err(failed)
    }

    fn write_at(&self, buffer: &[u8], offset: u64, _flags: Flags) -> Result<()> {
        self.image.write_all_at(buffer, offset).map_err(failed)
    }

    fn flush(&self) -> Result<()> {
        self.image.sync_data().map_err(failed)
    }

    fn can_multi_conn(&self) -> Result<bool> {
        Ok(true)
    }
}

plugin!(Disk {config, thread_model, write_at, flush, can_multi_conn});
