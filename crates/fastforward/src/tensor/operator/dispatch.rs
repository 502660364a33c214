//! Which kernel runs: those that are registered for an operator, the newest that accepts the arguments first (spec §5.2).
//!
//! Registration is for the whole process. Kernels are asked in the order of their [priority](Priority), newest first in each;
//! the first whose predicate accepts the call runs and takes the whole responsibility: strict mode is not checked, and the
//! output slot is the kernel's to apply ([`Call::finish`]).
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use fastforward::tensor::operator::{dispatch, functional, Output};
//! use fastforward::tensor::Value;
//!
//! let x = Value::from(Tensor::new(&[-1f32, 2.0], &Device::Cpu)?);
//! let is_float = dispatch::Predicate::new(|call| call.values().all(|value| !value.is_quantized()));
//! let registered = dispatch::register("relu", is_float, dispatch::Priority::Default, |call| {
//!     let x = call.value("input").expect("relu has an input");
//!     call.finish((x.dequantize()? * 10.0)?)
//! })?;
//! assert_eq!(functional::relu(&x, Output::none())?.dequantize()?.to_vec1::<f32>()?, [-10.0, 20.0]);
//! drop(registered);
//! let relaxed = Output::none().strict(false);
//! assert_eq!(functional::relu(&x, relaxed)?.dequantize()?.to_vec1::<f32>()?, [0.0, 2.0]);
//! # Ok::<(), fastforward::tensor::Error>(())
//! ```

use std::collections::HashMap;
use std::fmt;
use std::ops::{BitAnd, BitOr, Not};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use super::{Call, codes, find as find_operator, integer, kernels, simulated};
use crate::tensor::{Error, Result, Value};

/// Decides whether a kernel can run a call. Predicates combine with `&`, `|` and `!`; the second is asked only if the first
/// does not decide.
#[derive(Clone)]
pub struct Predicate(Arc<dyn Fn(&Call<'_>) -> bool + Send + Sync>);

/// A kernel: computes the output and sends it through the output slot.
pub type Kernel = Arc<dyn Fn(&Call<'_>) -> Result<Value> + Send + Sync>;

/// An operator, when a kernel runs, and the kernel.
pub(super) fn row(
    operator: &'static str,
    accepts: fn(&Call<'_>) -> bool,
    kernel: fn(&Call<'_>) -> Result<Value>,
) -> (&'static str, Predicate, Kernel) {
    (operator, Predicate::new(accepts), Arc::new(kernel))
}

impl Predicate {
    /// A predicate.
    pub fn new(accepts: impl Fn(&Call<'_>) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(accepts))
    }

    /// Accepts every call.
    pub fn always() -> Self {
        Self::new(|_| true)
    }

    /// Whether the call is accepted.
    pub fn accepts(&self, call: &Call<'_>) -> bool {
        (self.0)(call)
    }
}

impl BitAnd for Predicate {
    type Output = Predicate;

    fn bitand(self, other: Self) -> Self {
        Self::new(move |call| self.accepts(call) && other.accepts(call))
    }
}

impl BitOr for Predicate {
    type Output = Predicate;

    fn bitor(self, other: Self) -> Self {
        Self::new(move |call| self.accepts(call) || other.accepts(call))
    }
}

impl Not for Predicate {
    type Output = Predicate;

    fn not(self) -> Self {
        Self::new(move |call| !self.accepts(call))
    }
}

impl fmt::Debug for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Predicate(..)")
    }
}

/// Which kernels are asked first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// First.
    #[default]
    Default,
    /// After those.
    Fallback,
    /// Last: in place of what is not implemented.
    NotImplementedFallback,
}

/// A registered kernel; dropping this removes it.
#[derive(Debug)]
#[must_use = "the kernel is removed when this is dropped; `keep` leaves it registered"]
pub struct Registration {
    operator: &'static str,
    id: u64,
}

impl Registration {
    /// Leaves the kernel registered for as long as the process runs.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        change(self.operator, |entries| entries.retain(|entry| entry.id != self.id));
    }
}

#[derive(Clone)]
struct Entry {
    id: u64,
    priority: Priority,
    predicate: Predicate,
    kernel: Kernel,
}

type Registry = HashMap<&'static str, Arc<[Entry]>>;

static REGISTRY: LazyLock<RwLock<Registry>> = LazyLock::new(|| {
    let mut registry = Registry::new();
    for (operator, predicate, kernel) in
        [kernels::built_in(), integer::built_in(), codes::built_in(), simulated::built_in()]
            .into_iter()
            .flatten()
    {
        let entry = Entry { id: 0, priority: Priority::Default, predicate, kernel };
        let mut entries = registry.get(operator).map_or_else(Vec::new, |entries| entries.to_vec());
        insert(&mut entries, entry);
        registry.insert(operator, entries.into());
    }
    RwLock::new(registry)
});
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Registers a kernel for an operator, for as long as the registration lives.
///
/// # Errors
/// [`ErrorKind::Operator`](crate::ErrorKind::Operator) when the table has no such operator.
pub fn register(
    operator: &str,
    predicate: Predicate,
    priority: Priority,
    kernel: impl Fn(&Call<'_>) -> Result<Value> + Send + Sync + 'static,
) -> Result<Registration> {
    let Some(spec) = find_operator(operator) else {
        let names: Vec<&str> = super::OPERATORS.iter().map(|operator| operator.name).collect();
        let nearest = mpath::suggest::nearest(operator, names.iter().copied());
        let hint = nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
        return Err(Error::operator(
            operator,
            format_args!("the table has no such operator{hint}"),
        ));
    };
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let entry = Entry { id, priority, predicate, kernel: Arc::new(kernel) };
    change(spec.name, |entries| insert(entries, entry));
    Ok(Registration { operator: spec.name, id })
}

/// In front of its priority class.
fn insert(entries: &mut Vec<Entry>, entry: Entry) {
    let at = entries.partition_point(|other| other.priority < entry.priority);
    entries.insert(at, entry);
}

fn change(operator: &'static str, f: impl FnOnce(&mut Vec<Entry>)) {
    let mut registry = REGISTRY.write().unwrap_or_else(PoisonError::into_inner);
    let mut entries = registry.get(operator).map_or_else(Vec::new, |entries| entries.to_vec());
    f(&mut entries);
    let old = registry.insert(operator, entries.into());
    // A kernel may hold anything, also another registration, which comes back here when it is dropped: unlock first.
    drop(registry);
    drop(old);
}

/// The kernel that runs the call, if there is one. Predicates run without any lock held.
pub fn find(call: &Call<'_>) -> Option<Kernel> {
    let entries = {
        let registry = REGISTRY.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(registry.get(call.operator.name)?)
    };
    entries
        .iter()
        .find(|entry| entry.predicate.accepts(call))
        .map(|entry| Arc::clone(&entry.kernel))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::tensor::functional;

    #[test]
    fn the_float_operator_takes_over_from_a_kernel_that_no_longer_fits() {
        let kernel = |call: &Call<'_>| Err(call.mismatch());
        let _declines = register("sin", Predicate::always(), Priority::Default, kernel).unwrap();
        let x = Value::from(Tensor::new(&[0.5f32], &Device::Cpu).unwrap());
        let _lenient = crate::flags::strict_quantization(false);
        let y = functional::sin(&x, None).unwrap().dequantize().unwrap();
        assert_eq!(y.to_vec1::<f32>().unwrap(), [0.5f32.sin()]);
    }
}
