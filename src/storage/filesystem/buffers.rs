//! Reuses the buffers of large reads: fresh memory costs page faults and zeroing, as much as the read itself.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Keeps up to `kept_max` buffers of `buffer_bytes` each for the next read.
pub(super) struct BufferPool {
    free: Mutex<Vec<Vec<u8>>>,
    kept_max: usize,
    buffer_bytes: usize,
}

impl BufferPool {
    pub(super) fn new(kept_max: usize, buffer_bytes: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), kept_max, buffer_bytes })
    }

    /// An empty buffer with room for `size_bytes`: a fresh one of just that size when it is small.
    pub(super) fn take(&self, size_bytes: usize) -> Vec<u8> {
        if size_bytes <= self.buffer_bytes / 2 || size_bytes > self.buffer_bytes {
            return Vec::with_capacity(size_bytes);
        }
        let kept = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| Vec::with_capacity(self.buffer_bytes))
    }

    /// Shares a filled buffer; it comes back to the pool with the last share.
    pub(super) fn share(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        if buffer.capacity() != self.buffer_bytes {
            return Bytes::from(buffer);
        }
        Bytes::from_owner(Pooled { buffer, pool: self.clone() })
    }

    /// Takes back a buffer that was not needed.
    pub(super) fn give_back(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() != self.buffer_bytes {
            return;
        }
        buffer.clear();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.kept_max {
            free.push(buffer);
        }
    }
}

struct Pooled {
    buffer: Vec<u8>,
    pool: Arc<BufferPool>,
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_come_back_when_the_last_share_is_gone_and_small_ones_do_not() {
        let pool = BufferPool::new(1, 1024);
        let mut buffer = pool.take(1000);
        buffer.extend_from_slice(b"large");
        let address = buffer.as_ptr();
        let shared = pool.share(buffer);
        let part = shared.slice(1..);
        drop(shared);
        assert_eq!(&part[..], b"arge");
        drop(part);
        let again = pool.take(1024);
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (address, 0, 1024));
        assert_eq!(pool.take(10).capacity(), 10);
        drop((pool.share(again), pool.share(pool.take(1024))));
        assert_eq!(pool.free.lock().unwrap().len(), 1, "no more is kept than allowed");
    }
}
