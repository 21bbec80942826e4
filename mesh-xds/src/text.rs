//! Texts of others, of which no more is kept than is useful.

/// The beginning of a text: what others send is shown and kept only so far.
pub(crate) fn truncated(text: &str) -> &str {
    const MAX_BYTES: usize = 512;
    text.get(..text.floor_char_boundary(MAX_BYTES)).unwrap_or(text)
}
