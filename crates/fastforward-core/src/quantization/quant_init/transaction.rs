//! Filling slots: all of them, or none.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Factory;
use crate::quantization::quantizer::{Quantizer, QuantizerSlot, SlotUpdate, apply_updates};
use crate::{Error, ErrorKind};

/// What to do with a slot that already holds a quantizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OverwritePolicy {
    /// Leave it as it is; its factory is not called.
    Skip,
    /// Put the new quantizer in its place.
    Overwrite,
    /// Report an error.
    #[default]
    Error,
}

impl FromStr for OverwritePolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "skip" => Ok(Self::Skip),
            "overwrite" => Ok(Self::Overwrite),
            "error" => Ok(Self::Error),
            other => Err(Error::new(
                ErrorKind::InvalidSettings,
                format!("overwrite policy must be `skip`, `overwrite` or `error`, found `{other}`"),
            )),
        }
    }
}

impl fmt::Display for OverwritePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skip => "skip",
            Self::Overwrite => "overwrite",
            Self::Error => "error",
        })
    }
}

/// How slots are filled.
///
/// The two settings are independent: `safe` compares a slot with what was seen when it was looked up, the policy looks
/// at what stands there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitializeOptions {
    /// Whether a slot must still hold the very quantizer that was seen when it was looked up.
    pub safe: bool,
    /// What to do with a slot that already holds a quantizer.
    pub overwrite_policy: OverwritePolicy,
}

impl Default for InitializeOptions {
    fn default() -> Self {
        Self { safe: true, overwrite_policy: OverwritePolicy::Error }
    }
}

/// A slot about to be filled.
pub(super) struct Assignment<'a> {
    pub(super) name: &'a str,
    pub(super) slot: &'a QuantizerSlot,
    /// What stood in the slot when it was looked up.
    pub(super) seen: &'a Arc<dyn Quantizer>,
    pub(super) factory: &'a Factory,
}

/// What became of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The factory's quantizer stands there now.
    Assigned,
    /// The slot held a quantizer and the policy is [`OverwritePolicy::Skip`].
    Skipped,
}

/// Checks every assignment, calls the factories, and fills the slots; on any problem no slot changes.
///
/// Factories are called only when every slot may be filled, in the order of the assignments.
pub(super) fn fill(
    assignments: &[Assignment<'_>],
    options: InitializeOptions,
) -> Result<Vec<Outcome>, Error> {
    let mut moved = Vec::new();
    let mut occupied = Vec::new();
    let mut outcomes = Vec::with_capacity(assignments.len());
    for Assignment { name, slot, seen, .. } in assignments {
        let current = slot.quantizer();
        if options.safe && !slot.holds(seen) {
            moved.push(format!(
                "`{name}` held {seen} when it was looked up and holds {current} now; look it up again, or pass \
                 `safe = false` to go by what is there"
            ));
        }
        outcomes.push(match options.overwrite_policy {
            OverwritePolicy::Skip if !current.is_stub() => Outcome::Skipped,
            OverwritePolicy::Error if !current.is_stub() => {
                occupied.push(format!(
                    "`{name}` already holds {current}; pass the overwrite policy `skip` to keep it or `overwrite` to \
                     replace it"
                ));
                Outcome::Skipped
            }
            _ => Outcome::Assigned,
        });
    }
    if !moved.is_empty() {
        moved.append(&mut occupied);
        return Err(Error::of_problems(ErrorKind::UnsafeUpdate, "slots cannot be filled", &moved));
    }
    if !occupied.is_empty() {
        return Err(Error::of_problems(ErrorKind::AlreadySet, "slots cannot be filled", &occupied));
    }

    let mut updates = Vec::new();
    let mut failures: Vec<Error> = Vec::new();
    for (assignment, outcome) in assignments.iter().zip(&outcomes) {
        if *outcome == Outcome::Skipped {
            continue;
        }
        let Assignment { name, slot, seen, factory } = assignment;
        let current = slot.quantizer();
        match factory.make(name, slot, &current) {
            Ok(new) => updates.push(SlotUpdate {
                name: (*name).to_owned(),
                slot: (*slot).clone(),
                // Without `safe` only overwriting may replace what came into the slot after the check above.
                expected: match (options.safe, options.overwrite_policy) {
                    (true, _) => Some(Arc::clone(seen)),
                    (false, OverwritePolicy::Overwrite) => None,
                    (false, _) => Some(current),
                },
                new,
            }),
            Err(error) => failures.push(error),
        }
    }
    match failures.len() {
        0 => {}
        1 => return Err(failures.remove(0)),
        _ => {
            let problems: Vec<String> = failures.iter().map(ToString::to_string).collect();
            return Err(Error::of_problems(
                failures[0].kind(),
                "quantizers cannot be made",
                &problems,
            ));
        }
    }
    apply_updates(updates)?;
    Ok(outcomes)
}
