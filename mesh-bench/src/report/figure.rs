//! How figures are written.

/// Three digits that matter, thousands apart.
pub(super) fn value(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        ..0.001 => format!("{value:.1e}"),
        ..0.1 => format!("{value:.4}"),
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => thousands(&format!("{value:.0}")),
    }
}

/// A ratio to `direct`.
pub(super) fn ratio(ratio: f64) -> String {
    if ratio.abs() < 10.0 { format!("{ratio:.2}") } else { thousands(&format!("{ratio:.0}")) }
}

/// From the least to the greatest.
pub(super) fn range(min: f64, max: f64, figure: fn(f64) -> String) -> String {
    format!("{}–{}", figure(min), figure(max))
}

/// A change, such as 1.05, in percent.
pub(super) fn change(change: f64) -> String {
    let percent = (change - 1.0) * 100.0;
    let digits = usize::from(percent.abs() < 10.0);
    format!("{percent:+.digits$} %")
}

fn thousands(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    let mut text = String::from(sign);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_digits_that_matter() {
        let cases = [
            (0.0, "0"),
            (0.000_123, "1.2e-4"),
            (0.012_34, "0.0123"),
            (0.5, "0.50"),
            (9.876, "9.88"),
            (41.25, "41.2"),
            (999.4, "999"),
            (1_234.5, "1,234"),
            (-1_234_567.0, "-1,234,567"),
        ];
        for (number, expected) in cases {
            assert_eq!(value(number), expected);
        }
        assert_eq!(ratio(0.975), "0.97");
        assert_eq!(ratio(1_234.0), "1,234");
        assert_eq!(change(1.05), "+5.0 %");
        assert_eq!(change(0.5), "-50 %");
    }
}
