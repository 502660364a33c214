//! What the channels of values hold.

use fastforward_core::ArrayView;
use fastforward_core::algorithms::ChannelStatistics;

use crate::calibrate::{Batch, RunOptions};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Model;
use crate::tensor::Tensor;

/// Minimum, maximum, mean and deviation of each channel of some values, over all batches.
///
/// `values` are names with the axis that counts channels, from the last one where it is negative. The statistics come in
/// the same order.
///
/// ```
/// use fastforward_onnx::{calibrate::RunOptions, graph::Model, rewrite::channel_statistics, tensor::Tensor};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/digits/digits_mlp.onnx");
///
/// let model = Model::load(path.as_ref())?;
/// let images = Tensor::from_f32(vec![1, 1, 8, 8], vec![0.5; 64])?;
/// let batches = [Ok(vec![("image".to_owned(), images)])];
/// let seen = channel_statistics(&model, &[("r1", -1)], batches, &RunOptions::default())?;
/// assert_eq!(seen[0].n_channels(), 64);
/// assert!(seen[0].min().iter().all(|&min| min >= 0.0));
/// # Ok::<(), fastforward_onnx::Error>(())
/// ```
///
/// # Errors
/// Those of [`Engine::new`], of [`Engine::run`] and of `batches`; `Input` for a value that holds no 32-bit floats, NaN, or
/// lacks the axis, and when there is no batch.
pub fn channel_statistics(
    model: &Model,
    values: &[(&str, isize)],
    batches: impl IntoIterator<Item = Result<Batch>>,
    options: &RunOptions,
) -> Result<Vec<ChannelStatistics>> {
    let mut seen: Vec<ChannelStatistics> =
        values.iter().map(|&(_, axis)| ChannelStatistics::new(axis)).collect();
    if values.is_empty() {
        return Ok(seen);
    }
    let mut names: Vec<&str> = values.iter().map(|&(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    let engine = Engine::new(model, &options.engine)?;
    let mut n_batches = 0;
    for batch in batches {
        let batch = batch?;
        let inputs: Vec<(&str, &Tensor)> = batch.iter().map(|(n, t)| (n.as_str(), t)).collect();
        engine.run_bounded(&inputs, &names, options.max_bytes, |name, tensor| {
            let wrong = |problem: String| {
                Error::new(
                    ErrorKind::Input,
                    format!("value `{name}`, batch {n_batches}: {problem}"),
                )
            };
            let data = tensor
                .as_f32()
                .ok_or_else(|| wrong(format!("holds {}, expected float32", tensor.dtype())))?;
            let view = ArrayView::new(data, tensor.shape()).map_err(|e| wrong(e.to_string()))?;
            for (statistics, _) in
                seen.iter_mut().zip(values).filter(|(_, (other, _))| *other == name)
            {
                statistics.observe(view).map_err(|e| wrong(e.to_string()).caused_by(e))?;
            }
            Ok::<(), Error>(())
        })?;
        n_batches += 1;
    }
    if n_batches == 0 {
        let problem = format!("no data, but {} values to observe", names.len());
        return Err(Error::new(ErrorKind::Input, problem));
    }
    Ok(seen)
}
