//! What a search for quantizers found.

use std::fmt;
use std::sync::Arc;

use mpath::{FilterResult, MPathCollection};

use super::Factory;
use super::query_error;
use super::transaction::{Assignment, InitializeOptions, Outcome, fill};
use crate::module::NodeRef;
use crate::quantization::quantizer::{Quantizer, QuantizerSlot};
use crate::{Error, ErrorKind};

/// A search result of one quantizer.
type Found<'m> = FilterResult<NodeRef<'m>>;

/// An ordered collection of quantizer slots found in one model (spec §2.2).
///
/// It remembers the quantizer that stood in each slot when it was found: `safe` initialization insists on it.
#[derive(Clone)]
pub struct QuantizerCollection<'m> {
    found: MPathCollection<NodeRef<'m>>,
    /// The quantizers that were seen, in the order of `found`.
    seen: Vec<Arc<dyn Quantizer>>,
}

impl<'m> QuantizerCollection<'m> {
    /// The quantizers among the results of a search; other results are left out.
    pub fn from_search(mut results: MPathCollection<NodeRef<'m>>) -> Self {
        results.retain(|result| result.node.as_slot().is_some());
        let seen = results.iter().filter_map(slot_of).map(QuantizerSlot::quantizer).collect();
        Self { found: results, seen }
    }

    /// Adds a result.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidData`] when it is not a quantizer.
    pub fn append(&mut self, item: Found<'m>) -> Result<(), Error> {
        let Some(slot) = slot_of(&item) else {
            return Err(Error::new(
                ErrorKind::InvalidData,
                format!("only quantizers can be collected, found {item}"),
            ));
        };
        self.seen.push(slot.quantizer());
        self.found.append(item);
        Ok(())
    }

    /// Fills every slot of the collection, or none.
    ///
    /// `factory` is called once per slot, in order, unless the policy is to skip the slot. Afterwards the collection
    /// remembers the new quantizers. A slot that occurs twice is filled once.
    ///
    /// # Errors
    /// [`ErrorKind::UnsafeUpdate`] when `safe` and a slot no longer holds the quantizer that was found;
    /// [`ErrorKind::AlreadySet`] when a slot holds a quantizer and the policy is `error`; what the factory reports.
    /// Every bad slot is named, and no slot has changed.
    pub fn initialize(
        &mut self,
        factory: impl Into<Factory>,
        options: InitializeOptions,
    ) -> Result<Vec<Outcome>, Error> {
        let factory = factory.into();
        let mut first: std::collections::HashMap<usize, usize> = std::collections::HashMap::new();
        let mut assignments = Vec::new();
        let mut position = Vec::with_capacity(self.len());
        for (result, seen) in self.found.iter().zip(&self.seen) {
            let Some(slot) = slot_of(result) else { continue };
            let at = *first.entry(slot.id()).or_insert_with(|| {
                assignments.push(Assignment {
                    name: result.full_name(),
                    slot,
                    seen,
                    factory: &factory,
                });
                assignments.len() - 1
            });
            position.push(at);
        }
        let outcomes = fill(&assignments, options)?;
        self.seen = self.found.iter().filter_map(slot_of).map(QuantizerSlot::quantizer).collect();
        Ok(position.into_iter().map(|at| outcomes[at]).collect())
    }

    /// The number of quantizers.
    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// The results with their names, in order.
    pub fn results(&self) -> &MPathCollection<NodeRef<'m>> {
        &self.found
    }

    /// The full names, in order.
    pub fn names(&self) -> Vec<&str> {
        self.found.iter().map(FilterResult::full_name).collect()
    }

    /// The slots, in order.
    pub fn slots(&self) -> Vec<&'m QuantizerSlot> {
        self.found.iter().filter_map(slot_of).collect()
    }

    /// What is in this collection or in the other; this one's order first.
    ///
    /// # Errors
    /// [`ErrorKind::Query`] when the collections come from different models.
    pub fn union(&self, other: &Self) -> Result<Self, Error> {
        self.combined(other, self.found.union(&other.found))
    }

    /// What is in both, in this one's order.
    ///
    /// # Errors
    /// As for [`union`](Self::union).
    pub fn intersection(&self, other: &Self) -> Result<Self, Error> {
        self.combined(other, self.found.intersection(&other.found))
    }

    /// What is in this collection and not in the other.
    ///
    /// # Errors
    /// As for [`union`](Self::union).
    pub fn difference(&self, other: &Self) -> Result<Self, Error> {
        self.combined(other, self.found.difference(&other.found))
    }

    /// What is in exactly one of the two; this one's first.
    ///
    /// # Errors
    /// As for [`union`](Self::union).
    pub fn symmetric_difference(&self, other: &Self) -> Result<Self, Error> {
        self.combined(other, self.found.symmetric_difference(&other.found))
    }

    /// A combination of two collections remembers what each of them saw.
    fn combined(
        &self,
        other: &Self,
        found: Result<MPathCollection<NodeRef<'m>>, mpath::Error>,
    ) -> Result<Self, Error> {
        let found = found.map_err(query_error)?;
        let remembered: std::collections::HashMap<usize, &Arc<dyn Quantizer>> = [other, self]
            .into_iter()
            .flat_map(|one| one.found.iter().filter_map(slot_of).zip(&one.seen))
            .map(|(slot, seen)| (slot.id(), seen))
            .collect();
        let seen = found
            .iter()
            .filter_map(slot_of)
            .map(|slot| {
                remembered.get(&slot.id()).map_or_else(|| slot.quantizer(), |&q| Arc::clone(q))
            })
            .collect();
        Ok(Self { found, seen })
    }
}

fn slot_of<'m>(result: &Found<'m>) -> Option<&'m QuantizerSlot> {
    result.node.as_slot()
}

impl fmt::Display for QuantizerCollection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("QuantizerCollection([])");
        }
        writeln!(f, "QuantizerCollection([")?;
        for (at, result) in self.found.iter().enumerate() {
            let class = mpath::Facts::class(&result.node);
            writeln!(f, "    <{at}: {}: {class}>,", result.full_name())?;
        }
        f.write_str("])")
    }
}

impl fmt::Debug for QuantizerCollection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
