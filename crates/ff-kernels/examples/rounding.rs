//! What each algorithm leaves of the output error of rounding to nearest, on the layers of `examples/fashion`, weights per
//! channel, and what the network gets right then. `cargo run --release -p ff-kernels --example rounding`
#![allow(clippy::print_stdout, reason = "an example is there to be seen")]

#[path = "../tests/support/fashion.rs"]
mod fashion;

use std::time::Instant;

use fashion::{Fashion, images};
use ff_kernels::{
    AdaRoundOptions, AwqOptions, CandidateLayout, Candidates, FactorOptions, GptqOptions,
    HessianFactor, IntegerGrid, KernelError, LayerMoments, Parameters, RangeOptions, Tiling,
    activation_weighted_mse, adaround, awq, bias_correction, coordinate_descent, fake_quantize,
    gptq, min_max, parameters_for_range, reconstruction_losses, search_min_error, sequential_mse,
};

/// The weight of one group of a layer and what is known of its inputs.
struct Task<'a> {
    weight: &'a [f32],
    moments: &'a LayerMoments,
    tiling: Tiling,
    grid: IntegerGrid,
}

/// The weight that stands for the quantized one.
type Method = fn(&Task<'_>) -> Result<Vec<f32>, KernelError>;

const METHODS: [(&str, Method); 14] = [
    ("nearest", |t| t.nearest(&t.own_range()?)),
    ("mse range", |t| t.nearest(&t.mse_range()?)),
    ("weighted mse range", |t| t.nearest(&t.weighted_range()?)),
    ("sequential mse range", |t| t.nearest(&t.best_range()?)),
    ("awq", |t| t.awq(0)),
    ("awq, clipped", |t| t.awq(50)),
    ("gptq", |t| Ok(t.gptq()?.0)),
    ("coordinate descent", |t| t.descend(None, &t.own_range()?)),
    ("gptq, descent", |t| {
        let (weight, parameters) = t.gptq()?;
        t.descend(Some(&weight), &parameters)
    }),
    ("adaround", |t| t.adaround(&t.own_range()?, false)),
    ("adaround, descent", |t| t.adaround(&t.own_range()?, true)),
    ("sequential mse range, descent", |t| t.descend(None, &t.best_range()?)),
    ("sequential mse range, adaround, descent", |t| t.adaround(&t.best_range()?, true)),
    ("weighted mse range, adaround, descent", |t| t.adaround(&t.weighted_range()?, true)),
];

impl Task<'_> {
    fn own_range(&self) -> Result<Parameters, KernelError> {
        let range = min_max(self.weight, &self.tiling)?;
        parameters_for_range(&range.min, &range.max, self.grid, &RangeOptions::default())
    }

    fn candidates(&self) -> Result<Candidates, KernelError> {
        let range = min_max(self.weight, &self.tiling)?;
        Candidates::new(&range.min, &range.max, true, 100, CandidateLayout::default())
    }

    fn mse_range(&self) -> Result<Parameters, KernelError> {
        let (candidates, options) = (self.candidates()?, RangeOptions::default());
        let best = search_min_error(self.weight, &self.tiling, &candidates, self.grid, &options)?;
        let (min, max) = candidates.ranges(&best)?;
        parameters_for_range(&min, &max, self.grid, &options)
    }

    fn weighted_range(&self) -> Result<Parameters, KernelError> {
        let Self { weight, moments, tiling, grid } = self;
        let (candidates, options) = (self.candidates()?, RangeOptions::default());
        Ok(activation_weighted_mse(weight, moments, tiling, &candidates, *grid, &options)?
            .parameters)
    }

    fn best_range(&self) -> Result<Parameters, KernelError> {
        let Self { weight, moments, tiling, grid } = self;
        let (candidates, options) = (self.candidates()?, RangeOptions::default());
        Ok(sequential_mse(weight, moments, tiling, &candidates, *grid, &options)?.parameters)
    }

    fn nearest(&self, parameters: &Parameters) -> Result<Vec<f32>, KernelError> {
        let mut out = vec![0.0; self.weight.len()];
        fake_quantize(self.weight, &self.tiling, parameters.affine(), self.grid, &mut out)?;
        Ok(out)
    }

    fn awq(&self, clip_candidates: usize) -> Result<Vec<f32>, KernelError> {
        let Self { weight, moments, tiling, grid } = self;
        let options = AwqOptions { clip_candidates, ..Default::default() };
        let found = awq(weight, moments, tiling, *grid, &RangeOptions::default(), &options)?;
        let scale = found.scale.iter().cycle();
        Ok(found.weight.iter().zip(scale).map(|(weight, scale)| weight / scale).collect())
    }

    fn gptq(&self) -> Result<(Vec<f32>, Parameters), KernelError> {
        let factor = HessianFactor::new(&mut self.moments.hessian()?, &FactorOptions::default())?;
        let options = GptqOptions::default();
        let found = gptq(self.weight, &self.tiling, self.grid, &factor, &options)?;
        Ok((found.weight, found.parameters))
    }

    fn descend(
        &self,
        start: Option<&[f32]>,
        parameters: &Parameters,
    ) -> Result<Vec<f32>, KernelError> {
        let Self { weight, moments, tiling, grid } = self;
        let affine = parameters.affine();
        Ok(coordinate_descent(weight, start, moments, tiling, affine, *grid)?.weight)
    }

    fn adaround(&self, parameters: &Parameters, descent: bool) -> Result<Vec<f32>, KernelError> {
        let Self { weight, moments, tiling, grid } = self;
        let options = AdaRoundOptions { descent, ..Default::default() };
        Ok(adaround(weight, moments, tiling, parameters.affine(), *grid, &options)?.weight)
    }
}

fn main() -> Result<(), KernelError> {
    let float = Fashion::new();
    let (test, labels) = images("test2000.safetensors", usize::MAX);
    println!("float: {:.2} %", 100.0 * float.accuracy(&test, &labels));
    let moments = float.moments(&images("calib512.safetensors", usize::MAX).0);
    let names = float.layers.iter().map(|layer| format!("{:>6}", layer.name));
    let names: Vec<String> = names.collect();
    for bits in [4, 3, 2] {
        let grid = IntegerGrid::signed(bits)?;
        println!("\n{:<40}{}   mean   bias   none     ms", format!("{bits} bits"), names.join(" "));
        let mut nearest = Vec::new();
        for (name, method) in METHODS {
            let (mut plain, mut corrected) = (float.clone(), float.clone());
            let (mut losses, mut spent) = (Vec::new(), 0.0);
            for (at, layer) in float.layers.iter().enumerate() {
                let [rows, columns] = layer.matrix();
                let mut loss = 0.0;
                for (group, moments) in moments[at].iter().enumerate() {
                    let range = group * rows * columns..(group + 1) * rows * columns;
                    let weight = &layer.weight[range.clone()];
                    let tiling = Tiling::new(&[rows, columns], &[1, columns])?;
                    let start = Instant::now();
                    let found = method(&Task { weight, moments, tiling, grid })?;
                    spent += start.elapsed().as_secs_f64() * 1e3;
                    loss += reconstruction_losses(weight, &found, moments)?.iter().sum::<f64>();
                    let correction = bias_correction(weight, &found, moments)?.bias;
                    let biases = &mut corrected.layers[at].bias[group * rows..];
                    biases.iter_mut().zip(correction).for_each(|(bias, by)| *bias += by);
                    plain.layers[at].weight[range.clone()].copy_from_slice(&found);
                    corrected.layers[at].weight[range].copy_from_slice(&found);
                }
                losses.push(loss);
            }
            if nearest.is_empty() {
                nearest.clone_from(&losses);
            }
            let shares: Vec<f64> = losses.iter().zip(&nearest).map(|(a, b)| a / b).collect();
            let mean = (shares.iter().map(|s| s.ln()).sum::<f64>() / shares.len() as f64).exp();
            let shares: Vec<String> = shares.iter().map(|s| format!("{s:6.3}")).collect();
            let right = [corrected, plain].map(|net| 100.0 * net.accuracy(&test, &labels));
            let shares = shares.join(" ");
            let [with, without] = right;
            println!("{name:<40}{shares} {mean:6.3} {with:6.2} {without:6.2} {spent:6.0}");
        }
    }
    Ok(())
}
