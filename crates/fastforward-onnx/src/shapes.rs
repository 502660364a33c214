//! Shapes of activations: stated by the file, or seen when it runs.

use std::collections::BTreeMap;

use crate::engine::{BatchInput, Engine};
use crate::error::{Error, Result};
use crate::graph::{Dim, Model};
use crate::tensor::Tensor;

/// How much of the values is held at a time while shapes are recorded.
const MAX_BYTES: usize = 64 << 20;

/// The shape of every value of the main graph, as far as it is known.
///
/// ```
/// use fastforward_onnx::{engine::{BatchInput, Engine, EngineOptions}, graph::Model};
/// use fastforward_onnx::{shapes::ShapeTable, tensor::Tensor};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits/digits_cnn.onnx");
///
/// let model = Model::load(path.as_ref())?;
/// assert!(ShapeTable::stated(&model).get("c1").is_none());
///
/// let engine = Engine::new(&model, &EngineOptions::default())?;
/// let images = Tensor::from_f32(vec![2, 1, 8, 8], vec![0.0; 128])?;
/// let inputs = [BatchInput { name: "image", tensor: &images, shared: false }];
/// let shapes = ShapeTable::recorded(&model, &engine, &inputs)?;
/// assert_eq!(shapes.text("c1"), "[N, 8, 8, 8]");
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShapeTable {
    shapes: BTreeMap<String, Vec<Dim>>,
}

impl ShapeTable {
    /// The shapes that the file states, and those of its constants.
    pub fn stated(model: &Model) -> Self {
        let shapes = model.value_infos().into_values();
        Self { shapes: shapes.filter_map(|info| Some((info.name, info.shape?))).collect() }
    }

    /// The stated shapes, completed by running one and two samples of `inputs`.
    ///
    /// An axis whose size differs between the two runs is that of the samples
    /// and gets the name it has in the inputs. Where an input has other axes
    /// without a fixed size, two runs cannot tell which sizes follow from them:
    /// the number of axes is recorded, their sizes stay unknown.
    ///
    /// # Errors
    /// As [`Engine::run_batches`].
    pub fn recorded(model: &Model, engine: &Engine, inputs: &[BatchInput<'_>]) -> Result<Self> {
        let mut table = Self::stated(model);
        let names: Vec<&str> = (model.graph().node.iter().flat_map(|node| &node.output))
            .map(String::as_str)
            .filter(|name| engine.has_value(name))
            .collect();
        let batches = engine.batches(inputs, 1)?;
        let first = run_shapes(engine, inputs, &names, batches[0].clone())?;
        let is_single = batches.len() < 2 || batches[0].len() != 1;
        let second = match engine.batches(inputs, 2)?.first() {
            Some(rows) if !is_single && rows.len() == 2 => {
                Some(run_shapes(engine, inputs, &names, rows.clone())?)
            }
            _ => None,
        };
        let sample_axis = sample_axis(engine, inputs);
        let is_open = engine.inputs().iter().any(|info| {
            let shared = inputs.iter().any(|input| input.name == info.name && input.shared);
            let dims = info.shape.as_deref();
            dims.is_none_or(|dims| {
                dims.iter().skip(usize::from(!shared)).any(|dim| dim.fixed().is_none())
            })
        });
        for (name, shape) in &first {
            let other = second.as_ref().and_then(|shapes| shapes.get(name));
            let dims = shape.iter().enumerate().map(|(axis, &size)| {
                match other.and_then(|other| other.get(axis)) {
                    Some(&changed) if changed != size => sample_axis.clone(),
                    _ if is_open => Dim::Unknown,
                    // Without a second run the first axis may count samples.
                    None if axis == 0 && sample_axis.fixed().is_none() => Dim::Unknown,
                    _ => Dim::Fixed(size),
                }
            });
            let dims: Vec<Dim> = dims.collect();
            let known = table.shapes.entry(name.clone()).or_insert_with(|| dims.clone());
            if known.len() == dims.len() {
                let unknown = known.iter_mut().zip(dims).filter(|(dim, _)| **dim == Dim::Unknown);
                unknown.for_each(|(dim, found)| *dim = found);
            }
        }
        Ok(table)
    }

    /// The axes of a value.
    pub fn get(&self, name: &str) -> Option<&[Dim]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    /// The number of axes of a value.
    pub fn rank(&self, name: &str) -> Option<usize> {
        self.get(name).map(<[Dim]>::len)
    }

    /// The shape as it is printed: `[N, 8, 8, 8]`, `[..]` where unknown.
    pub fn text(&self, name: &str) -> String {
        crate::graph::ShapeText(self.get(name)).to_string()
    }

    /// All values with their axes, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Dim])> {
        self.shapes.iter().map(|(name, dims)| (name.as_str(), dims.as_slice()))
    }
}

/// What the inputs call the axis that counts samples.
fn sample_axis(engine: &Engine, inputs: &[BatchInput<'_>]) -> Dim {
    let samples = inputs.iter().filter(|input| !input.shared);
    let infos =
        samples.filter_map(|input| engine.inputs().iter().find(|info| info.name == input.name));
    infos.filter_map(|info| info.shape.as_ref()?.first().cloned()).next().unwrap_or(Dim::Unknown)
}

fn run_shapes(
    engine: &Engine,
    inputs: &[BatchInput<'_>],
    names: &[&str],
    rows: std::ops::Range<usize>,
) -> Result<BTreeMap<String, Vec<usize>>> {
    let batch = BatchInput::cut(inputs, rows)?;
    let batch: Vec<(&str, &Tensor)> = batch.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let mut shapes = BTreeMap::new();
    engine.run_bounded(&batch, names, MAX_BYTES, |name, value| {
        shapes.insert(name.to_owned(), value.shape().to_vec());
        Ok::<(), Error>(())
    })?;
    Ok(shapes)
}
