//! Where we differ from the Python system on purpose.
//!
//! One table. An entry says by a property of the case when it applies, why we differ, and how; the family's test runs
//! `check` on every case to which the entry applies, with the case and our answer in the layout of the golden file. A
//! case to which no entry applies must be equal.

use serde_json::Value;

/// A deliberate difference.
pub struct Difference {
    /// The family of cases.
    pub family: &'static str,
    /// When it applies, in words.
    pub when: &'static str,
    /// Why we differ.
    pub reason: &'static str,
    /// When it applies.
    pub applies: fn(&Value) -> bool,
    /// Whether our answer differs as said; the message tells how it does not.
    pub check: fn(case: &Value, ours: &Value) -> Result<(), String>,
}

/// Every deliberate difference.
pub const TABLE: &[&[Difference]] = &[
    crate::affine::DIFFERENCES,
    crate::config::DIFFERENCES,
    crate::estimators::DIFFERENCES,
    crate::dynamic::DIFFERENCES,
    crate::mpath::DIFFERENCES,
    crate::ranges::DIFFERENCES,
];

/// Judges our answer to a case: equal to the golden's (`is_equal`), or different as an entry of the table says.
///
/// Returns the entry, if one explains the difference.
pub fn judge(
    family: &str,
    case: &Value,
    ours: &Value,
    is_equal: impl FnOnce() -> Result<(), String>,
) -> Result<Option<&'static Difference>, String> {
    let Err(unequal) = is_equal() else { return Ok(None) };
    let applying = TABLE
        .iter()
        .flat_map(|entries| entries.iter())
        .filter(|entry| entry.family == family && (entry.applies)(case));
    let mut refusals = Vec::new();
    for entry in applying {
        match (entry.check)(case, ours) {
            Ok(()) => return Ok(Some(entry)),
            Err(refusal) => refusals.push(format!("not as in {:?}: {refusal}", entry.when)),
        }
    }
    Err(format!("{unequal}; {}", refusals.join("; ")))
}

/// Runs a family: every case is judged, all failures are shown, and the differences that were met are counted.
pub fn run(
    family: &str,
    cases: &[Value],
    mut judge_case: impl FnMut(&Value) -> Result<Option<&'static Difference>, String>,
) {
    let mut failures = Vec::new();
    let mut met: Vec<(&str, usize)> = Vec::new();
    for case in cases {
        match judge_case(case) {
            Ok(None) => {}
            Ok(Some(entry)) => match met.iter_mut().find(|(when, _)| *when == entry.when) {
                Some((_, count)) => *count += 1,
                None => met.push((entry.when, 1)),
            },
            Err(failure) => failures.push(format!("{}: {failure}", crate::golden::id(case))),
        }
    }
    println!("{family}: {} cases, differences met: {met:?}", cases.len());
    assert!(
        failures.is_empty(),
        "{family}: {} of {} cases fail:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

/// The table names each difference once, with a reason.
#[test]
fn differences_are_told_apart_and_explained() {
    let mut seen = std::collections::HashSet::new();
    for entry in TABLE.iter().flat_map(|entries| entries.iter()) {
        assert!(seen.insert((entry.family, entry.when)), "{} twice", entry.when);
        assert!(entry.reason.len() > 20, "{} has no reason", entry.when);
    }
}
