//! Numbers and names as people read them.

use std::time::Duration;

use mesh_xds::identity::Identity;

/// `1.5 KiB`.
pub(super) fn bytes(count: u64) -> String {
    scaled(count, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// `1.5 M`, or the number itself while it is short.
pub(super) fn number(count: u64) -> String {
    if count < 100_000 {
        return count.to_string();
    }
    scaled(count, 1000, &["", "k", "M", "G", "T", "P", "E"])
}

/// Three significant digits and a unit.
fn scaled(count: u64, base: u64, units: &[&str]) -> String {
    let mut unit = 0;
    let mut divisor: u64 = 1;
    while count / divisor >= base && unit + 1 < units.len() {
        divisor *= base;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    let whole = count / divisor;
    if unit == 0 {
        return format!("{whole} {name}").trim_end().into();
    }
    let tenths = u128::from(count % divisor) * 10 / u128::from(divisor);
    if whole < 100 { format!("{whole}.{tenths} {name}") } else { format!("{whole} {name}") }
}

/// `3s`, `2m 5s`, `4h 10m`, `12d 3h`.
pub(super) fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |large: u64, large_unit: char, small: u64, small_unit: char| match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit} {small}{small_unit}"),
    };
    match seconds {
        0 => format!("{}ms", time.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => pair(minutes, 'm', seconds % 60, 's'),
        3600..86_400 => pair(hours, 'h', minutes % 60, 'm'),
        _ => pair(days, 'd', hours % 24, 'h'),
    }
}

/// The same, from whole seconds: `now` for none.
pub(super) fn age_seconds(seconds: u64) -> String {
    if seconds == 0 { "now".into() } else { age(Duration::from_secs(seconds)) }
}

/// `1 pod`, `2 pods`.
pub(super) fn plural(count: usize, thing: &str) -> String {
    if count == 1 { format!("{count} {thing}") } else { format!("{count} {thing}s") }
}

/// `shop/web-1` for the uid `cluster//Pod/shop/web-1`.
pub(super) fn short_uid(uid: &str) -> &str {
    let mut slashes = uid.rmatch_indices('/').map(|(at, _)| at);
    match (slashes.next(), slashes.next()) {
        (Some(_), Some(before)) => uid.get(before + 1..).unwrap_or(uid),
        _ => uid,
    }
}

/// `web.shop` for the service `shop/web.shop.svc.cluster.local`.
pub(super) fn short_service(id: &str) -> &str {
    let hostname = id.split_once('/').map_or(id, |(_, hostname)| hostname);
    hostname.find(".svc.").and_then(|end| hostname.get(..end)).unwrap_or(hostname)
}

/// `shop/web` for the identity `spiffe://cluster.local/ns/shop/sa/web`.
pub(super) fn short_identity(identity: &str) -> String {
    match identity.parse::<Identity>() {
        Ok(identity) => format!("{}/{}", identity.namespace(), identity.service_account()),
        Err(_) => identity.into(),
    }
}

/// Lines of at most `width` characters, broken at spaces.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![];
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// At most `width` characters, the middle left out: names differ at both ends.
pub(super) fn shorten(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.into();
    }
    let head = width.saturating_sub(1) / 2;
    let tail = width.saturating_sub(1) - head;
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(length - tail).collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_numbers_keep_three_digits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(200 << 20), "200 MiB");
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
        assert_eq!(number(99_999), "99999");
        assert_eq!(number(1_234_567), "1.2 M");
    }

    #[test]
    fn ages_name_two_units() {
        assert_eq!(age(Duration::from_millis(250)), "250ms");
        assert_eq!(age(Duration::from_secs(59)), "59s");
        assert_eq!(age(Duration::from_secs(125)), "2m 5s");
        assert_eq!(age(Duration::from_secs(3600)), "1h");
        assert_eq!(age(Duration::from_secs(86_400 * 12 + 3 * 3600)), "12d 3h");
        assert_eq!(age_seconds(0), "now");
    }

    #[test]
    fn names_are_shortened_to_what_tells_them_apart() {
        assert_eq!(short_uid("c1//Pod/shop/web-1"), "shop/web-1");
        assert_eq!(short_uid("odd"), "odd");
        assert_eq!(short_service("shop/web.shop.svc.cluster.local"), "web.shop");
        assert_eq!(short_service("shop/api.example.com"), "api.example.com");
        assert_eq!(short_identity("spiffe://cluster.local/ns/shop/sa/web"), "shop/web");
        assert_eq!(short_identity("odd"), "odd");
        assert_eq!(shorten("web-7d4b9c6f5d-x8zq2", 11), "web-7…x8zq2");
        assert_eq!(shorten("web", 11), "web");
    }

    #[test]
    fn text_is_broken_at_spaces() {
        assert_eq!(wrap("one two three", 8), ["one two", "three"]);
        assert_eq!(wrap("a-very-long-word b", 5), ["a-very-long-word", "b"]);
        assert_eq!(wrap("", 5), [""]);
    }
}
