//! Memory that is not needed any more goes back to the system: what reading a whole cluster leaves behind.

/// A batch of at least so many changes leaves something to give back.
pub(crate) const MANY: usize = 1_000;

/// Gives free heap pages back. It takes milliseconds.
pub(crate) fn give_back() {
    // SAFETY: it touches nothing but the allocator's own free memory, under the allocator's locks.
    unsafe { libc::malloc_trim(0) };
}
