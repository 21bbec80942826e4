//! One copy of every text that policies have in common: the same few identities occur in thousands of rules.

use std::collections::HashSet;
use std::sync::Arc;

/// Texts in use, each once.
#[derive(Debug, Default)]
pub struct Strings {
    known: HashSet<Arc<str>>,
    /// Size at which texts that nobody else holds any more are thrown out.
    limit: usize,
}

/// Not worth a sweep below this.
const SMALL: usize = 1024;

impl Strings {
    /// The shared copy of `text`.
    pub fn share(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.limit {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            // Sweeps are paid for by as many insertions.
            self.limit = SMALL.max(self.known.len() * 2);
        }
        let text: Arc<str> = text.into();
        self.known.insert(Arc::clone(&text));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_once_and_no_longer_than_needed() {
        let mut strings = Strings::default();
        let kept = strings.share("kept");
        assert!(Arc::ptr_eq(&kept, &strings.share("kept")));
        for number in 0..10 * SMALL {
            strings.share(&number.to_string());
        }
        assert!(strings.known.len() <= SMALL);
        assert!(Arc::ptr_eq(&kept, &strings.share("kept")));
    }
}
