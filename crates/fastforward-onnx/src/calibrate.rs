//! Showing the values of a float graph to observers, batch by batch.

use std::collections::BTreeMap;

use fastforward_core::ArrayView;
use fastforward_core::range_setting::{RangeObserver, Unread};

use crate::engine::{Engine, EngineOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Model;
use crate::placement::ConstantFinder;
use crate::tensor::Tensor;
use crate::tree::{Role, Site};

/// One batch: a tensor for each input of the graph, by name.
pub type Batch = Vec<(String, Tensor)>;

/// Looks at the data that flows past a site.
///
/// A [`RangeObserver`] does, and so does any closure over an [`ArrayView`].
pub trait SiteObserver {
    /// Takes in one batch, or a constant.
    ///
    /// # Errors
    /// Whatever is wrong with the data.
    fn observe(&mut self, x: ArrayView<'_>) -> Result<(), fastforward_core::Error>;
}

impl<F: FnMut(ArrayView<'_>) -> Result<(), fastforward_core::Error>> SiteObserver for F {
    fn observe(&mut self, x: ArrayView<'_>) -> Result<(), fastforward_core::Error> {
        self(x)
    }
}

impl SiteObserver for RangeObserver {
    fn observe(&mut self, x: ArrayView<'_>) -> Result<(), fastforward_core::Error> {
        RangeObserver::observe(self, x)
    }
}

/// A site and who looks at it.
pub struct Watched<'o> {
    /// The place in the graph.
    pub site: &'o Site,
    /// The observer.
    pub observer: &'o mut dyn SiteObserver,
}

/// What a long computation tells about how far it got.
pub trait Progress {
    /// `done` batches are through; `total` is how many there are, where that is known.
    fn batch(&mut self, done: usize, total: Option<usize>);
}

/// Nobody listens.
impl Progress for () {
    fn batch(&mut self, _done: usize, _total: Option<usize>) {}
}

impl<F: FnMut(usize, Option<usize>)> Progress for F {
    fn batch(&mut self, done: usize, total: Option<usize>) {
        self(done, total);
    }
}

/// How to calibrate, and to compare layers.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The engine.
    pub engine: EngineOptions,
    /// About how many bytes of intermediate values may be held at a time. Where a batch has more, the graph is computed
    /// several times for it, with a part of the values each time; results do not change.
    pub max_bytes: usize,
}

impl Default for RunOptions {
    /// All cores, half a gibibyte of values.
    fn default() -> Self {
        Self { engine: EngineOptions::default(), max_bytes: 1 << 29 }
    }
}

/// What calibration saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CalibrationSummary {
    /// How many batches there were.
    pub batches: usize,
    /// How many constants were observed.
    pub constants: usize,
    /// The shape that each observed activation had in the last batch.
    pub shapes: BTreeMap<String, Vec<usize>>,
}

/// Shows each watched site its data: constants once, activations batch by batch as the unquantized graph computes them.
///
/// A value at which several sites stand is computed once. Without watched activations no batch is asked for.
///
/// ```
/// use fastforward_core::{ArrayView, Error};
/// use fastforward_onnx::calibrate::{RunOptions, Watched, calibrate};
/// use fastforward_onnx::{graph::Model, tensor::Tensor, tree::Tree};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits/digits_mlp.onnx");
///
/// let model = Model::load(path.as_ref())?;
/// let tree = Tree::new(&model);
/// let site = tree.sites().iter().find(|site| site.name == "r1.output_quantizer").unwrap();
/// let mut largest = f32::MIN;
/// let mut observer = |x: ArrayView<'_>| -> Result<(), Error> {
///     largest = x.data().iter().copied().fold(largest, f32::max);
///     Ok(())
/// };
/// let images = Tensor::from_f32(vec![1, 1, 8, 8], vec![0.5; 64])?;
/// let batches = [Ok(vec![("image".to_owned(), images)])];
/// calibrate(
///     &model,
///     vec![Watched { site, observer: &mut observer }],
///     batches,
///     &RunOptions::default(),
///     &mut (),
/// )?;
/// assert!(largest > 0.0);
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
///
/// # Errors
/// Those of [`Engine::new`], of [`Engine::run`], of `batches`, and of the observers, with site and value; `Input` when
/// there is no batch but an activation to observe, and for a value that does not hold 32-bit floats.
pub fn calibrate(
    model: &Model,
    mut watched: Vec<Watched<'_>>,
    batches: impl IntoIterator<Item = Result<Batch>>,
    options: &RunOptions,
    progress: &mut dyn Progress,
) -> Result<CalibrationSummary> {
    let mut summary = CalibrationSummary::default();
    let mut by_value: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut finder = ConstantFinder::new(model);
    for (at, one) in watched.iter_mut().enumerate() {
        if matches!(one.site.role, Role::Input | Role::Output) {
            by_value.entry(&one.site.value).or_default().push(at);
            continue;
        }
        observe_constant(one, &mut finder)?;
        summary.constants += 1;
    }
    if by_value.is_empty() {
        return Ok(summary);
    }
    let values: Vec<&str> = by_value.keys().copied().collect();
    let engine = Engine::new(model, &options.engine)?;
    let batches = batches.into_iter();
    let total = batches.size_hint().1;
    for batch in batches {
        let batch = batch?;
        let inputs: Vec<(&str, &Tensor)> = batch.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let number = summary.batches;
        engine.run_bounded(&inputs, &values, options.max_bytes, |value, tensor| {
            let shape = tensor.shape();
            for &at in &by_value[value] {
                let one = &mut watched[at];
                let place = || format!("`{}` (value `{value}`, batch {number})", one.site.name);
                let data = tensor.as_f32().ok_or_else(|| {
                    let found = tensor.dtype();
                    let text = format!("{}: holds {found}, expected float32", place());
                    Error::new(ErrorKind::Input, text)
                })?;
                let view = ArrayView::new(data, shape).map_err(|e| input_error(place(), e))?;
                let place = place();
                one.observer.observe(view).map_err(|e| input_error(place, e))?;
            }
            summary.shapes.insert(value.to_owned(), shape.to_vec());
            Ok::<(), Error>(())
        })?;
        summary.batches += 1;
        progress.batch(summary.batches, total);
    }
    if summary.batches == 0 {
        return Err(Error::new(
            ErrorKind::Input,
            format!("no calibration data, but {} activations to observe", values.len()),
        ));
    }
    Ok(summary)
}

fn observe_constant(one: &mut Watched<'_>, finder: &mut ConstantFinder<'_>) -> Result<()> {
    let observer = &mut *one.observer;
    show_constant(one.site, finder, &mut Vec::new(), |mut x| observer.observe(x.whole()?))
}

/// Lets `look` read the constant at a site, with a buffer that is used again.
pub(crate) fn show_constant<T>(
    site: &Site,
    finder: &mut ConstantFinder<'_>,
    buffer: &mut Vec<f32>,
    look: impl FnOnce(Unread<'_>) -> Result<T, fastforward_core::Error>,
) -> Result<T> {
    let (_, constant) = finder.find(site)?;
    let shape = constant.info()?.shape;
    let len = shape.iter().product();
    if buffer.len() < len {
        // Not both at a time: the old buffer, and a larger one.
        *buffer = Vec::new();
        *buffer = vec![0.0; len];
    }
    let floats = constant.floats()?;
    let mut failed = None;
    let mut read = |first: usize, out: &mut [f32]| {
        floats.read(first, out).map_err(|error| {
            let text = error.to_string();
            failed = Some(error);
            fastforward_core::Error::new(fastforward_core::ErrorKind::Io, text)
        })
    };
    let result = look(Unread { shape: &shape, read: &mut read, buffer });
    match (failed, result) {
        (Some(error), _) => Err(error),
        (None, result) => result.map_err(|error| {
            input_error(format!("`{}` (constant `{}`)", site.name, site.value), error)
        }),
    }
}

fn input_error(place: String, error: fastforward_core::Error) -> Error {
    Error::new(ErrorKind::Input, format!("{place}: {error}")).caused_by(error)
}
