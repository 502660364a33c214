//! Being told how far a job is.

/// Watches a job. The library never prints: whoever runs a job shows what it wants.
///
/// ```
/// use std::cell::RefCell;
/// use fastforward_onnx::pipeline::{Progress, Stage};
///
/// #[derive(Default)]
/// struct Log(RefCell<Vec<String>>);
/// impl Progress for Log {
///     fn start(&self, stage: Stage, _n_samples: usize) {
///         self.0.borrow_mut().push(stage.to_string());
///     }
/// }
/// let log = Log::default();
/// log.start(Stage::Calibrate, 512);
/// assert_eq!(*log.0.borrow(), ["calibrating"]);
/// ```
pub trait Progress {
    /// A stage begins; it will process so many samples (constants in [`Stage::Constants`], layers in [`Stage::Layers`]), none where it is a single step.
    fn start(&self, stage: Stage, n_samples: usize) {
        let _ = (stage, n_samples);
    }
    /// So many more samples of the current stage are done.
    fn advance(&self, n_samples: usize) {
        let _ = n_samples;
    }
    /// The current stage is done.
    fn finish(&self) {}
    /// The algorithm at a position of the configuration worked this long on a layer.
    fn algorithm(&self, position: usize, seconds: f64) {
        let _ = (position, seconds);
    }
    /// A layer's weight was taken from an earlier run that was interrupted.
    fn resumed(&self, layer: &str) {
        let _ = layer;
    }
}

/// A part of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Ranges of constants are set, one constant after the other.
    Constants,
    /// Ranges are set from data.
    Calibrate,
    /// An algorithm works on the whole network.
    Algorithm(&'static str),
    /// Weights are chosen, layer by layer.
    Layers,
    /// Each weight is quantized alone, at one width after the other.
    Sweep,
    /// Float and quantized model are measured.
    Evaluate,
    /// Each value of the float graph is compared with that of the quantized one.
    Compare,
    /// The quantized model is written.
    Export,
    /// What was written is read back, computed and compared.
    Verify,
}

impl Stage {
    /// What the stage counts.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Constants => "constants",
            Self::Layers => "layers",
            _ => "samples",
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Constants => "ranges",
            Self::Calibrate => "calibrating",
            Self::Algorithm(name) => name,
            Self::Layers => "layers",
            Self::Sweep => "sweeping",
            Self::Evaluate => "evaluating",
            Self::Compare => "comparing",
            Self::Export => "exporting",
            Self::Verify => "verifying",
        })
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}
