//! How far networks are from the float one, on the same samples.

use fastforward_core::ArrayView;
use fastforward_core::metrics::{Batch, Metric, MetricAccumulator};
use ff_kernels::Difference;

use crate::engine::{Engine, EngineOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Model;
use crate::pipeline::{Progress, Samples, Stage};
use crate::tensor::Tensor;

/// Bytes of float outputs that are kept; beyond that they are computed again for each network.
const KEPT_BYTES: usize = 256 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Yardstick {
    /// Noise over signal: `sum (y - y')^2 / sum y^2` over all samples, the mean over the outputs.
    Noise,
    /// A metric of one output.
    Metric(Metric),
}

/// A float network and samples, and what others are measured by.
pub(super) struct Judge {
    samples: Samples,
    engine: Engine,
    options: EngineOptions,
    outputs: Vec<String>,
    yardstick: Yardstick,
    /// The float outputs of each batch, if they fit.
    kept: Option<Vec<Vec<Tensor>>>,
    /// The value of the float network, for metrics of labels.
    pub(super) float: Option<f64>,
}

impl Judge {
    /// Computes the outputs of the float network once.
    pub(super) fn new(
        float: &Model,
        samples: Samples,
        outputs: Vec<String>,
        yardstick: Yardstick,
        options: EngineOptions,
    ) -> Result<Self> {
        let mut judge = Self {
            samples,
            engine: Engine::new(float, &options)?,
            options,
            outputs,
            yardstick,
            kept: None,
            float: None,
        };
        let mut found = match yardstick {
            Yardstick::Metric(metric) if metric.needs_labels() => Some(Sums::new(yardstick)),
            _ => None,
        };
        let mut kept = Some(Vec::new());
        let mut bytes = 0;
        for batch in judge.samples.batches() {
            let batch = batch?;
            let values = judge.engine.run(&batch.feed(), &judge.names())?;
            if let Some(found) = &mut found {
                let place = |error: Error| error.within("the float network");
                found.add(&values, &values, batch.labels).map_err(place)?;
            }
            bytes += values.iter().map(Tensor::size_bytes).sum::<usize>();
            if bytes > KEPT_BYTES {
                kept = None;
            }
            match &mut kept {
                Some(kept) => kept.push(values),
                None if found.is_none() => break,
                None => {}
            }
        }
        judge.kept = kept;
        judge.float = found.map(|found| found.value("the float network")).transpose()?;
        Ok(judge)
    }

    pub(super) fn yardstick(&self) -> Yardstick {
        self.yardstick
    }

    pub(super) fn n_samples(&self) -> usize {
        self.samples.len()
    }

    fn names(&self) -> Vec<&str> {
        self.outputs.iter().map(String::as_str).collect()
    }

    /// The values of some networks, by their names in messages. Batches pass all networks, one batch after the other.
    pub(super) fn values(
        &self,
        networks: &[(String, Model)],
        progress: &dyn Progress,
    ) -> Result<Vec<f64>> {
        let engines: Vec<Engine> = networks
            .iter()
            .map(|(name, model)| {
                Engine::new(model, &self.options).map_err(|error| error.within(name))
            })
            .collect::<Result<_>>()?;
        let names = self.names();
        let mut sums: Vec<Sums> = networks.iter().map(|_| Sums::new(self.yardstick)).collect();
        for (at, batch) in self.samples.batches().enumerate() {
            let batch = batch?;
            let mut runs: Vec<(&Engine, &[&str])> = Vec::with_capacity(engines.len() + 1);
            runs.extend(engines.iter().map(|engine| (engine, &names[..])));
            let kept = self.kept.as_ref().map(|kept| &kept[at]);
            if kept.is_none() {
                runs.push((&self.engine, &names[..]));
            }
            let mut found = Engine::run_side_by_side(&batch.feed(), &runs);
            let computed = match kept {
                None => found.pop().transpose()?,
                Some(_) => None,
            };
            let reference = kept.or(computed.as_ref()).map_or(&[][..], Vec::as_slice);
            for ((found, sums), (name, _)) in found.into_iter().zip(&mut sums).zip(networks) {
                let place = |error: Error| {
                    error.within(format_args!("{name}, samples from {}", batch.first))
                };
                sums.add(reference, &found.map_err(place)?, batch.labels).map_err(place)?;
            }
            progress.advance(batch.len());
        }
        sums.into_iter().zip(networks).map(|(sums, (name, _))| sums.value(name)).collect()
    }

    /// As [`Judge::values`], so many networks at a time that their weights stay within a bound; `make` makes them.
    pub(super) fn each(
        &self,
        n_networks: usize,
        weight_bytes: u64,
        make: &dyn Fn(usize) -> Result<(String, Model)>,
        progress: &dyn Progress,
    ) -> Result<Vec<f64>> {
        let mut values = Vec::with_capacity(n_networks);
        let together = networks_together(weight_bytes);
        while values.len() < n_networks {
            let end = n_networks.min(values.len() + together);
            let networks = (values.len()..end).map(make).collect::<Result<Vec<_>>>()?;
            values.extend(self.values(&networks, progress)?);
        }
        Ok(values)
    }

    /// Tells of the work of [`Judge::each`] before it begins.
    pub(super) fn announce(&self, stage: Stage, n_networks: usize, progress: &dyn Progress) {
        progress.start(stage, n_networks * self.samples.len());
    }
}

/// How many networks are held at a time: one copy of the weights each in the engine, half a gibibyte together.
fn networks_together(weight_bytes: u64) -> usize {
    const BYTES: u64 = 1 << 29;
    (BYTES / weight_bytes.max(1)).clamp(1, 8) as usize
}

/// What was seen of one network.
enum Sums {
    Noise(Vec<Difference>),
    Metric(MetricAccumulator),
}

impl Sums {
    fn new(yardstick: Yardstick) -> Self {
        match yardstick {
            Yardstick::Noise => Self::Noise(Vec::new()),
            Yardstick::Metric(metric) => Self::Metric(metric.accumulator()),
        }
    }

    /// Takes the outputs of a batch: of the float network, and of the other.
    fn add(
        &mut self,
        reference: &[Tensor],
        found: &[Tensor],
        labels: Option<&[u64]>,
    ) -> Result<()> {
        match self {
            Self::Noise(outputs) => {
                // Outputs that are no floats, such as classes, have no power.
                let floats = reference
                    .iter()
                    .zip(found)
                    .filter_map(|(a, b)| Some((a.as_f32()?, b.as_f32()?)));
                for (at, (reference, found)) in floats.enumerate() {
                    let seen = Difference::of(reference, found).map_err(|error| {
                        Error::new(ErrorKind::Execution, error.to_string()).caused_by(error)
                    })?;
                    match outputs.get_mut(at) {
                        Some(known) => *known = known.merge(&seen),
                        None => outputs.push(seen),
                    }
                }
            }
            Self::Metric(metric) => {
                let (Some(reference), Some(found)) = (reference.first(), found.first()) else {
                    return Err(Error::new(ErrorKind::Execution, "the graph gave no value"));
                };
                let (a, b) = (reference.to_f32(), found.to_f32());
                metric.update(&Batch {
                    output: ArrayView::new(&b, found.shape())?,
                    reference: Some(ArrayView::new(&a, reference.shape())?),
                    labels,
                })?;
            }
        }
        Ok(())
    }

    fn value(&self, name: &str) -> Result<f64> {
        let wrong =
            |text: &str| Err(Error::new(ErrorKind::Execution, text.to_owned()).within(name));
        let value = match self {
            Self::Noise(outputs) if outputs.is_empty() => {
                return wrong("no output holds 32-bit floats, so there is no signal and no noise");
            }
            Self::Noise(outputs) => {
                let ratios = outputs.iter().map(noise_ratio);
                ratios.sum::<f64>() / outputs.len() as f64
            }
            Self::Metric(metric) => metric.value().unwrap_or(f64::NAN),
        };
        if value.is_nan() {
            return wrong("the outputs hold values that are not finite, which cannot be judged");
        }
        Ok(value)
    }
}

/// Nothing is lost where nothing differs, and everything where there was no signal.
fn noise_ratio(seen: &Difference) -> f64 {
    match seen.sum_error_squared {
        0.0 => 0.0,
        noise => noise / seen.sum_reference_squared,
    }
}
