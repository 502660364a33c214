//! Where the output of a block comes from.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;

use candle_core::Tensor;

use crate::ErrorKind;
use crate::algorithms::data::{Data, Forward};
use crate::algorithms::network::Network;
use crate::tensor::operator::Call;
use crate::tensor::probe::{Probe, probe};
use crate::tensor::{Error, Result, Value};

/// The operators of a block.
pub(super) struct Outputs {
    /// The block.
    pub(super) name: String,
    /// The slots in it.
    pub(super) slots: HashSet<usize>,
    /// The number of the operator that gives the block's output, counted from 1 among those with a slot in the block.
    pub(super) last: Cell<usize>,
}

/// For each block, how many operators the forward of the first batch calls in it, and when the last of them came.
pub(super) fn count(
    network: &Network<'_>,
    blocks: &[&Outputs],
    data: &dyn Data,
) -> Result<Vec<(usize, usize)>> {
    struct Counting {
        slots: Vec<HashSet<usize>>,
        /// How many calls there were, and the number of the last one among all.
        found: RefCell<Vec<(usize, usize)>>,
        all: Cell<usize>,
    }
    impl Probe for Counting {
        fn operands(&self, call: &Call<'_>) -> Result<()> {
            self.all.set(self.all.get() + 1);
            let Some(slot) = call.output.slot() else { return Ok(()) };
            for (slots, found) in self.slots.iter().zip(self.found.borrow_mut().iter_mut()) {
                if slots.contains(&slot.id()) {
                    *found = (found.0 + 1, self.all.get());
                }
            }
            Ok(())
        }
    }
    let counting = Rc::new(Counting {
        slots: blocks.iter().map(|block| block.slots.clone()).collect(),
        found: RefCell::new(vec![(0, 0); blocks.len()]),
        all: Cell::new(0),
    });
    let batches = data.each(1, &mut |forward| {
        let _float = network.in_float();
        probe(Rc::clone(&counting) as Rc<dyn Probe>, forward)
    })?;
    if batches == 0 {
        let text =
            format!("no calibration data, but {} blocks whose outputs are needed", blocks.len());
        return Err(Error::new(ErrorKind::NoData, text));
    }
    Ok(counting.found.take())
}

/// Runs a forward up to the output of a block, and returns that.
pub(super) fn output_of(block: &Outputs, forward: Forward<'_>) -> Result<Tensor> {
    struct Taking {
        slots: HashSet<usize>,
        /// Calls until the output comes.
        left: Cell<usize>,
        output: RefCell<Option<Value>>,
    }
    impl Probe for Taking {
        fn operands(&self, _call: &Call<'_>) -> Result<()> {
            Ok(())
        }

        fn result(&self, call: &Call<'_>, result: &Value) -> Result<()> {
            let is_own = call.output.slot().is_some_and(|slot| self.slots.contains(&slot.id()));
            if !is_own || self.output.borrow().is_some() {
                return Ok(());
            }
            self.left.set(self.left.get().saturating_sub(1));
            if self.left.get() > 0 {
                return Ok(());
            }
            *self.output.borrow_mut() = Some(result.clone());
            // Nothing behind it matters: the forward ends here.
            Err(Error::new(
                ErrorKind::Operator,
                "the forward is over: the output of the block is there",
            ))
        }
    }
    let taking = Rc::new(Taking {
        slots: block.slots.clone(),
        left: Cell::new(block.last.get()),
        output: RefCell::new(None),
    });
    let ended = probe(Rc::clone(&taking) as Rc<dyn Probe>, forward);
    match (taking.output.take(), ended) {
        (Some(output), _) => output.dequantize(),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(Error::new(
            ErrorKind::InvalidData,
            format!(
                "`{}`: the forward calls fewer operators in it than for the first batch in float, {}",
                block.name,
                block.last.get()
            ),
        )),
    }
}
