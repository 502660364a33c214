//! Whether a layer does what it does in training only.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::flags;
use crate::module::Data;

/// The mode of one layer: as [`flags::training_mode`] says for the thread, or fixed.
#[derive(Default)]
pub(super) struct Mode(AtomicU8);

const AS_THREAD: u8 = 0;
const EVALUATION: u8 = 1;
const TRAINING: u8 = 2;

impl Mode {
    /// Fixes the mode, or, with `None`, leaves it to the thread.
    pub(super) fn set(&self, training: Option<bool>) {
        let mode = match training {
            None => AS_THREAD,
            Some(false) => EVALUATION,
            Some(true) => TRAINING,
        };
        self.0.store(mode, Ordering::Relaxed);
    }

    pub(super) fn is_training(&self) -> bool {
        match self.0.load(Ordering::Relaxed) {
            AS_THREAD => flags::training(),
            mode => mode == TRAINING,
        }
    }
}

impl Data for Mode {}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.load(Ordering::Relaxed) {
            AS_THREAD => "AsThread",
            EVALUATION => "Evaluation",
            _ => "Training",
        })
    }
}
