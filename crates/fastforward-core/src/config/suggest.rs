//! The nearest of some names: "did you mean".

/// The known name that `found` is most likely a slip of: at most a third of its letters, and always one, inserted,
/// dropped, changed or swapped with their neighbour. Of equally near names the first.
pub(crate) fn nearest<'a>(
    found: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let found: Vec<char> = found.to_lowercase().chars().take(MAX_LENGTH).collect();
    let allowed = (found.len() / 3).max(1);
    let mut best: Option<(usize, &str)> = None;
    for name in known {
        let letters: Vec<char> = name.to_lowercase().chars().take(MAX_LENGTH).collect();
        let distance = distance(&found, &letters);
        if distance <= allowed && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, name));
        }
    }
    best.map(|(_, name)| name)
}

/// Names of this length are compared by their beginning, so that no input makes the comparison slow.
const MAX_LENGTH: usize = 128;

/// Optimal string alignment distance: edits and swaps of neighbours.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = vec![];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let mut least =
                (above[j + 1] + 1).min(row[j] + 1).min(above[j] + usize::from(a[i] != b[j]));
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognized() {
        let known = ["num_bits", "symmetric", "granularity", "type"];
        for (found, expected) in [
            ("num_bit", Some("num_bits")),
            ("numbits", Some("num_bits")),
            ("symetric", Some("symmetric")),
            ("tpye", Some("type")),
            ("Type", Some("type")),
            ("granulrity", Some("granularity")),
            ("bits", None),
            ("", None),
            ("zzzz", None),
        ] {
            assert_eq!(nearest(found, known), expected, "{found}");
        }
    }
}
