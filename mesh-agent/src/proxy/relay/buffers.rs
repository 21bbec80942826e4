//! Buffers that are lent to a stream while it has bytes to move and come back when it has not.
//!
//! A worker relays thousands of connections of which a handful have bytes at any moment, so it needs a handful of
//! buffers. They come in three sizes; a stream asks for larger ones while it fills those it has.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Size of a buffer, in steps of four.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::proxy) enum Size {
    /// 4 KiB: requests and answers.
    #[default]
    Small,
    /// 16 KiB.
    Medium,
    /// 64 KiB: half of what a read of a fast stream finds; more does not save system calls worth the cache.
    Large,
}

impl Size {
    /// In bytes.
    pub(in crate::proxy) fn bytes(self) -> usize {
        match self {
            Self::Small => 4 << 10,
            Self::Medium => 16 << 10,
            Self::Large => 64 << 10,
        }
    }

    /// The smallest that holds so many bytes, or the largest.
    pub(in crate::proxy) fn for_bytes(count: usize) -> Self {
        match count {
            0..=0x1000 => Self::Small,
            0x1001..=0x4000 => Self::Medium,
            _ => Self::Large,
        }
    }

    /// The size to ask for after a read of `count` bytes into a buffer of this one.
    pub(in crate::proxy) fn after_read(self, count: usize) -> Self {
        if count >= self.bytes() {
            self.larger()
        } else if count < self.bytes() / 4 {
            self.smaller()
        } else {
            self
        }
    }

    fn larger(self) -> Self {
        match self {
            Self::Small => Self::Medium,
            Self::Medium | Self::Large => Self::Large,
        }
    }

    fn smaller(self) -> Self {
        match self {
            Self::Large => Self::Medium,
            Self::Medium | Self::Small => Self::Small,
        }
    }
}

/// The buffers of one worker.
#[derive(Debug)]
pub struct BufferPool {
    idle: [RefCell<Vec<Box<[u8]>>>; 3],
    /// Bytes in all buffers, lent and idle.
    allocated: Cell<usize>,
    budget: usize,
}

/// Idle buffers kept of one size: what a burst leaves behind is given back to the system.
const KEPT: usize = 16;

impl BufferPool {
    /// A pool that allocates larger buffers than the smallest only while all take less than `budget` bytes.
    pub fn new(budget: usize) -> Rc<Self> {
        Rc::new(Self { idle: Default::default(), allocated: Cell::new(0), budget })
    }

    /// Lends a buffer of the wanted size, or a smaller one where the budget is used up.
    pub(in crate::proxy) fn take(self: &Rc<Self>, wanted: Size) -> Buffer {
        let size = if self.allocated.get() + wanted.bytes() <= self.budget { wanted } else { Size::Small };
        let idle = self.idle(size).borrow_mut().pop();
        let bytes = idle.unwrap_or_else(|| {
            self.allocated.set(self.allocated.get() + size.bytes());
            vec![0; size.bytes()].into_boxed_slice()
        });
        Buffer { bytes, size, pool: Rc::clone(self) }
    }

    /// Bytes in all buffers, lent and idle.
    pub fn allocated(&self) -> usize {
        self.allocated.get()
    }

    fn idle(&self, size: Size) -> &RefCell<Vec<Box<[u8]>>> {
        let [small, medium, large] = &self.idle;
        match size {
            Size::Small => small,
            Size::Medium => medium,
            Size::Large => large,
        }
    }
}

/// A buffer on loan; goes back when dropped.
#[derive(Debug)]
pub(in crate::proxy) struct Buffer {
    bytes: Box<[u8]>,
    size: Size,
    pool: Rc<BufferPool>,
}

impl Buffer {
    pub(in crate::proxy) fn size(&self) -> Size {
        self.size
    }

    pub(in crate::proxy) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(in crate::proxy) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = self.pool.idle(self.size).borrow_mut();
        if idle.len() < KEPT {
            idle.push(std::mem::take(&mut self.bytes));
        } else {
            self.pool.allocated.set(self.pool.allocated.get() - self.size.bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_bursts_are_forgotten() {
        let pool = BufferPool::new(1 << 20);
        let burst: Vec<Buffer> = (0..40).map(|_| pool.take(Size::Small)).collect();
        assert_eq!(pool.allocated(), 40 * Size::Small.bytes());
        drop(burst);
        assert_eq!(pool.allocated(), KEPT * Size::Small.bytes());
        let _again = pool.take(Size::Small);
        assert_eq!(pool.allocated(), KEPT * Size::Small.bytes());
    }

    #[test]
    fn a_used_up_budget_leaves_small_buffers() {
        let pool = BufferPool::new(Size::Large.bytes());
        let large = pool.take(Size::Large);
        assert_eq!(large.size(), Size::Large);
        assert_eq!(pool.take(Size::Large).size(), Size::Small);
    }

    #[test]
    fn streams_grow_and_shrink_their_buffers() {
        let mut size = Size::Small;
        for full in [Size::Medium, Size::Large, Size::Large] {
            size = size.after_read(size.bytes());
            assert_eq!(size, full);
        }
        assert_eq!(size.after_read(20_000), Size::Large);
        assert_eq!(size.after_read(100), Size::Medium);
    }
}
