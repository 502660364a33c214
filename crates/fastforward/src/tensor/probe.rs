//! Looking at the operators of one forward: what they take, what they give.

use std::cell::RefCell;
use std::rc::Rc;

use super::operator::Call;
use super::{Result, Value};

/// Somebody who looks at every operator that the current thread calls.
pub(crate) trait Probe {
    /// An operator is about to run.
    ///
    /// # Errors
    /// Whatever is wrong; the operator then fails with it.
    fn operands(&self, call: &Call<'_>) -> Result<()>;

    /// It gave this, which has been through the output slot.
    ///
    /// # Errors
    /// As for [`operands`](Self::operands).
    fn result(&self, call: &Call<'_>, result: &Value) -> Result<()> {
        let _ = (call, result);
        Ok(())
    }

    /// A [`Value`] changed its shape.
    ///
    /// # Errors
    /// As for [`operands`](Self::operands).
    fn reshaped(&self, how: &Reshaping<'_>, input: &Value, result: &Value) -> Result<()> {
        let _ = (how, input, result);
        Ok(())
    }
}

/// How a value changes its shape.
#[cfg_attr(not(feature = "graph"), expect(dead_code, reason = "only graphs that are read off ask"))]
pub(crate) struct Reshaping<'a> {
    /// The method of [`Value`].
    pub(crate) name: &'static str,
    /// For each new axis the old one, where axes only change places.
    pub(crate) order: Option<&'a [usize]>,
}

thread_local! {
    static PROBE: RefCell<Option<Rc<dyn Probe>>> = const { RefCell::new(None) };
}

/// Runs `f` while `probe` looks, in place of one that looked before.
pub(crate) fn probe<R>(probe: Rc<dyn Probe>, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Rc<dyn Probe>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let before = self.0.take();
            PROBE.with_borrow_mut(|current| *current = before);
        }
    }
    let _restore = Restore(PROBE.replace(Some(probe)));
    f()
}

/// Who looks now.
pub(super) fn current() -> Option<Rc<dyn Probe>> {
    PROBE.with_borrow(Clone::clone)
}
