//! Switches of the current thread, each set for as long as a guard lives (spec §8.4).
//!
//! Threads do not see each other's switches: a model can be evaluated in several threads while one of them holds strict
//! mode off for itself. A guard gives back what was there before it, also when a panic or an early return drops it.
//!
//! ```
//! use fastforward::flags;
//! assert!(flags::strict());
//! {
//!     let _lenient = flags::strict_quantization(false);
//!     assert!(!flags::strict());
//!     let _strict_again = flags::strict_quantization(true);
//!     assert!(flags::strict());
//! }
//! assert!(flags::strict());
//! std::thread::spawn(|| assert!(flags::strict())).join().unwrap();
//! ```
//!
//! | switch | default | what it does |
//! |---|---|---|
//! | [`strict_quantization`] | on | floats where quantized values are expected are errors |
//! | [`export_mode`] | off | quantizers return floats on their grid instead of quantized tensors |
//! | [`integer_execution`](integer_execution_mode) | on | products of 8-bit codes are computed in integers where nothing records gradients |
//! | [`training_mode`] | off | dropout drops; batch normalization takes its statistics from the batch, and keeps them |
//! | [`inference`] | off | no gradients are recorded, and the quantized form of a weight is kept and used again |

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Switch {
    Strict,
    Export,
    Integer,
    Training,
    Inference,
}

/// What one guard set.
#[derive(Clone, Copy)]
struct Setting {
    id: u64,
    switch: Switch,
    value: bool,
    /// Changes when gradients were recorded in between: what was kept before that is void.
    scope: u64,
}

thread_local! {
    /// What guards of this thread set, oldest first.
    static SET: RefCell<Vec<Setting>> = const { RefCell::new(Vec::new()) };
}

static NEXT: AtomicU64 = AtomicU64::new(1);

/// Holds a switch of the current thread.
#[must_use = "the switch goes back when the guard is dropped"]
#[derive(Debug)]
pub struct FlagGuard {
    id: u64,
    /// Switches belong to a thread, and so do their guards.
    thread: PhantomData<*const ()>,
}

impl Drop for FlagGuard {
    fn drop(&mut self) {
        // The thread may be ending, its switches gone: then there is nothing to give back.
        let _ = SET.try_with(|set| {
            let mut set = set.borrow_mut();
            let Some(at) = set.iter().position(|one| one.id == self.id) else { return };
            let gone = set.remove(at);
            if gone.switch == Switch::Inference && !gone.value {
                let scope = NEXT.fetch_add(1, Ordering::Relaxed);
                set.iter_mut().for_each(|one| one.scope = scope);
            }
        });
    }
}

/// Strict mode, on or off, while the guard lives. In strict mode an operator refuses float operands where quantized ones are
/// expected, and needs an output quantizer (a stub will do).
pub fn strict_quantization(strict: bool) -> FlagGuard {
    hold(Switch::Strict, strict)
}

/// Whether strict mode is on.
pub fn strict() -> bool {
    get(Switch::Strict).unwrap_or(true)
}

/// Export mode, on or off, while the guard lives: quantizers return floats on their grid, so that a forward is made of float
/// operators alone. Strict mode does not apply in it.
pub fn export_mode(export: bool) -> FlagGuard {
    hold(Switch::Export, export)
}

/// Whether export mode is on.
pub fn exporting() -> bool {
    get(Switch::Export).unwrap_or(false)
}

/// Integer products, on or off, while the guard lives. Off, every operator computes on dequantized floats: the simulation
/// that training sees.
pub fn integer_execution_mode(integer: bool) -> FlagGuard {
    hold(Switch::Integer, integer)
}

/// Whether products of 8-bit codes are computed in integers.
pub fn integer_execution() -> bool {
    get(Switch::Integer).unwrap_or(true)
}

/// Training mode, on or off, while the guard lives: what `Module.train()` is in torch, for the thread instead of the model, so
/// that one thread can train a model while others evaluate it. Layers whose own mode is fixed
/// ([`BatchNorm`](crate::nn::BatchNorm), [`Dropout`](crate::nn::Dropout)) do not follow it. It is independent of
/// [`inference`]: statistics can be gathered without gradients.
pub fn training_mode(training: bool) -> FlagGuard {
    hold(Switch::Training, training)
}

/// Whether training mode is on.
pub fn training() -> bool {
    get(Switch::Training).unwrap_or(false)
}

/// No gradients while the guard lives. Parameters are read as constants, and each weight is quantized once and used again
/// until the guard is dropped or the weight is set through its [`Param`](crate::nn::Param): an optimizer must not step in
/// between. The quantized form stays in memory after the guard, until the parameter is set, quantized again, or dropped.
pub fn inference() -> FlagGuard {
    hold(Switch::Inference, true)
}

/// Gradients again, inside of [`inference`].
pub fn recording() -> FlagGuard {
    hold(Switch::Inference, false)
}

/// Whether gradients are left out.
pub fn is_inference() -> bool {
    get(Switch::Inference).unwrap_or(false)
}

/// A number for the inference that is in force, `None` if there is none: what is kept under it is kept under this number,
/// and is void once gradients were recorded in between.
pub(crate) fn inference_scope() -> Option<u64> {
    SET.with_borrow(|set| {
        let mut scope = None;
        for one in set.iter().filter(|one| one.switch == Switch::Inference) {
            scope = if one.value { scope.or(Some(one.scope)) } else { None };
        }
        scope
    })
}

fn hold(switch: Switch, value: bool) -> FlagGuard {
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    SET.with_borrow_mut(|set| set.push(Setting { id, switch, value, scope: id }));
    FlagGuard { id, thread: PhantomData }
}

fn get(switch: Switch) -> Option<bool> {
    SET.with_borrow(|set| set.iter().rev().find(|one| one.switch == switch).map(|one| one.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_may_be_dropped_in_any_order() {
        let off = strict_quantization(false);
        let on = strict_quantization(true);
        drop(off);
        assert!(strict());
        let off = strict_quantization(false);
        drop(on);
        assert!(!strict());
        drop(off);
        assert!(strict());
    }

    #[test]
    fn a_panic_gives_the_switch_back() {
        let caught = std::panic::catch_unwind(|| {
            let _guard = strict_quantization(false);
            panic!("unwinds through the guard");
        });
        assert!(caught.is_err() && strict());
    }

    #[test]
    fn inference_scopes_nest() {
        assert_eq!(inference_scope(), None);
        let outer = inference();
        let scope = inference_scope();
        let inner = inference();
        assert_eq!(inference_scope(), scope);
        let gradients = recording();
        assert_eq!((inference_scope(), is_inference()), (None, false));
        drop((gradients, inner));
        // Parameters may have been trained in between: nothing kept before holds.
        assert!(inference_scope().is_some() && inference_scope() != scope);
        drop(outer);
        assert_eq!(inference_scope(), None);
    }
}
